"""The sha256 of every file that the document vouches for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from bot.events import Emit, Moved

REPORT = "verification.json"
# The card and .gitattributes may be rewritten by the Hub, and the report cannot contain its own hash.
NOT_VOUCHED = frozenset({"README.md", ".gitattributes", REPORT})
THREADS = 2
PIECE = 1 << 24  # bytes; small pieces would wait for the interpreter


def vouched(files: Iterable[str]) -> tuple[str, ...]:
    """The files whose bytes belong to the result."""
    return tuple(name for name in files if name not in NOT_VOUCHED)


def sha256_of(folder: Path, names: Iterable[str], emit: Emit) -> dict[str, str]:
    """{name: lowercase hex sha256}; hashlib frees the GIL, so two threads keep two disks' worth busy."""
    names = [name for name in names if (folder / name).is_file()]  # a dangling link is for the strays check to name
    total, done, lock = sum((folder / name).stat().st_size for name in names), 0, Lock()

    def read(amount: int) -> None:
        nonlocal done
        with lock:
            done += amount
            emit(Moved(stage="verify", done=done, total=total, what="Hashing the result"))

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
