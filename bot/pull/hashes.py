"""The sha256 of large files in folders, remembered from one run to the next: hashing a base takes longer than merging it.

A hash is taken from memory only for the same file (device, inode) of the same size, with the same times of its last
change of content and of state (ctime, which no program can set back), as git's index does; and, as git does, a file that
changed just before it was hashed is not remembered. A merge compares what it reads with what is remembered here; a proof
(`verify`) never asks: it reads every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bot.input_files import identity_of
from bot.records import Identity

LARGE = 32 << 20  # bytes; smaller files are hashed before they are looked up
SETTLED = 2.0  # seconds since the last change, so that a later one must show in the times
KEPT = 2000  # files
PIECE = 1 << 24  # bytes; small pieces would wait for the interpreter


class Hashes:
    """Remembered hashes in one file; without a path, nothing is remembered."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.remember = path is not None
        self._known: dict[str, str] = _read(path) if path else {}
        self._new: dict[str, str] = {}

    def knows(self, path: Path) -> bool:
        """Whether the file need not be read."""
        status = path.stat()
        return status.st_size >= LARGE and _key(identity_of(status)) in self._known

    def sha256(self, path: Path, read: Callable[[int], None]) -> str:
        """The file's sha256; `read` is told of the bytes that were read."""
        status = path.stat()
        identity = _key(identity_of(status))
        if status.st_size >= LARGE and identity in self._known:
            return self._known[identity]
        settled = time.time() - max(status.st_mtime, status.st_ctime) > SETTLED
        digest = _sha256(path, read)
        if status.st_size >= LARGE and settled and path.stat().st_ctime_ns == status.st_ctime_ns:
            self._new[identity] = digest
        return digest

    def forget(self, identities: Iterable[Identity]) -> None:
        """These files turned out to hold other bytes: the next run hashes them anew."""
        gone = {_key(identity) for identity in identities}
        if self._path is not None and gone & self._known.keys():
            _write(self._path, {key: value for key, value in _read(self._path).items() if key not in gone})

    def keep(self) -> None:
        """Write what was learnt; where that fails, the next run hashes again."""
        if self._path is None or not self._new:
            return
        _write(self._path, dict(list((_read(self._path) | self._new).items())[-KEPT:]))


def _key(identity: Identity) -> str:
    times = (identity.device, identity.inode, identity.size, identity.modified, identity.changed)
    return ":".join(map(str, times))


def _write(path: Path, known: dict[str, str]) -> None:
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh.write_text(json.dumps(known))
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str)} if isinstance(known, dict) else {}


def _sha256(path: Path, read: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while piece := opened.read(PIECE):
            digest.update(piece)
            read(len(piece))
    return digest.hexdigest()
