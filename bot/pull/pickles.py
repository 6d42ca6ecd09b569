"""An adapter that is a pickle: read by torch's restricted loader in a process of its own, and kept as safetensors.

The conversion lies in a private folder named by the source's pin, so that `fetch` finds what `pin` made.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bot.checkpoint.header import read_header
from bot.errors import Refused
from bot.events import Emit, Note
from bot.input_files import holding
from bot.machine import bare_environment
from bot.pull.damage import hold, with_sound_files
from bot.pull.weights import ADAPTER, PICKLE
from bot.records import FileEntry, Source

if TYPE_CHECKING:
    from bot.hub import Hub

LONGEST = 900  # seconds; a pickle of 10 GB takes a minute
NOTE = ".sha256"  # beside the conversion: what it is
# weights_only: the unpickler knows tensors and containers, and no function of anybody else's.
CONVERT = """
import sys, torch
from safetensors.torch import save_file
found = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items()):
    sys.exit("it does not hold a dict of tensors")
save_file({key: value.detach().contiguous().clone() for key, value in found.items()}, sys.argv[2], {"format": "pt"})
"""


def convert(source: Source, hub: Hub, emit: Emit) -> Source:
    """The source with its pickle's tensors as `adapter_model.safetensors`."""
    made = derived_folder(source, hub) / ADAPTER
    digest = _sha256(made) if made.is_file() else None
    if digest is None or digest != _recorded_sha256(made):
        emit(Note(text=f"{PICKLE} is read by torch's restricted loader and kept as safetensors.", level="warning"))
        with_sound_files(lambda: _make(source, made, hub), hub, emit)
        digest = _sha256(made)
    entry = FileEntry(name=ADAPTER, size=made.stat().st_size, sha256=digest, here=True)
    return replace(source, files=(*source.files, entry), headers=(read_header(made, file=ADAPTER, role="adapter"),))


def _make(source: Source, made: Path, hub: Hub) -> None:
    """Convert the pickle that the source states. Raises Damaged, Refused."""
    if source.repo is None:
        assert source.ref.folder is not None
        folder = source.ref.folder
    else:
        there = source.in_repo(PICKLE)
        folder = (hub.download(source.repo, source.sha, [there]) / there).parent
    entry = next(entry for entry in source.files if entry.name == PICKLE)
    with holding([hold(source, entry, folder)]) as keeper:
        keeper.finish()  # before anything reads it
        _convert_isolated(folder / PICKLE, made, source)


def _recorded_sha256(made: Path) -> str | None:
    """The sha256 that the conversion had when it was made."""
    note = made.with_name(NOTE)
    return note.read_text() if note.is_file() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _convert_isolated(pickle: Path, made: Path, source: Source) -> None:
    made.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
        part = Path(scratch) / ADAPTER
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", CONVERT, str(pickle.resolve()), str(part)],
                capture_output=True, text=True, errors="replace", env=bare_environment(), stdin=subprocess.DEVNULL,
                timeout=LONGEST,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Refused(
                f"{PICKLE} of {source.called} was not read within {LONGEST} seconds.",
                remedy=f"Save the adapter again as {ADAPTER}.",
            ) from error
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            raise Refused(
                f"{PICKLE} of {source.called} cannot be read safely: {lines[-1][:200]}",
                remedy=f"Save the adapter again as {ADAPTER}.",
            )
        made.unlink(missing_ok=True)
        made.with_name(NOTE).write_text(_sha256(part))
        os.replace(part, made)  # existing means complete


def is_converted(source: Source, name: str, hub: Hub) -> bool:
    """Whether this file of the source is one that `convert` made."""
    return source.role == "adapter" and name == ADAPTER and (derived_folder(source, hub) / ADAPTER).is_file()


def derived_folder(source: Source, hub: Hub, kind: str = "converted") -> Path:
    """A private folder for what is made of a source, or gathered of it."""
    # A folder of the same content elsewhere has its own: the links lead to the files of this one.
    folder = source.ref.folder.resolve() if source.ref.folder is not None else None
    key = f"{folder or source.called}@{source.sha}"
    return hub.scratch / kind / hashlib.sha256(key.encode()).hexdigest()[:32]
