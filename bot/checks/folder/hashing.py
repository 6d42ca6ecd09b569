"""The sha256 of every file that the document vouches for, and of the base's that nobody has hashed before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from bot.checks.case import Case
from bot.events import StepProgress
from bot.report_document import InputPins, is_vouched

THREADS = 2
PIECE = 1 << 24  # bytes; small pieces would wait for the interpreter


def name_inputs(case: Case) -> InputPins:
    """The inputs as the document names them. What was to be hashed of the base, and was not compared, is read now."""
    subject = case.subject
    return subject.inputs if subject.inputs_of is None else subject.inputs_of(case.once(hash_base))


def hash_base(case: Case) -> dict[str, str]:
    """{name: lowercase hex sha256} of the base's files that nobody had hashed before."""
    left = [name for name in case.subject.unhashed if name not in case.base_hashed]
    case.base_hashed |= _hashed(case, case.subject.base, left, "Hashing the base")
    return case.base_hashed


def hash_files(case: Case) -> dict[str, str]:
    """{name: lowercase hex sha256} of every file whose bytes belong to the result; what was hashed while it was written, or
    compared, is not read again. hashlib frees the GIL, so two threads keep two disks' worth busy."""
    folder, hashed = case.subject.folder, case.hashed
    vouched = [name for name in case.files if is_vouched(name)]
    # A dangling link is for the strays check to name.
    names = [name for name in vouched if name not in hashed and (folder / name).is_file()]
    fresh = _hashed(case, folder, names, "Hashing the result")
    return {name: hashed.get(name) or fresh[name] for name in vouched if name in hashed or name in fresh}


def _hashed(case: Case, folder: Path, names: list[str], what: str) -> dict[str, str]:
    total, done, lock = sum((folder / name).stat().st_size for name in names), 0, Lock()

    def read(amount: int) -> None:
        nonlocal done
        with lock:
            done += amount
            case.emit(StepProgress(stage="verify", done=done, total=total, what=what))

    read(0)
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name, read), names), strict=True))


def _sha256(path: Path, read: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while piece := opened.read(PIECE):
            digest.update(piece)
            read(len(piece))
    return digest.hexdigest()
