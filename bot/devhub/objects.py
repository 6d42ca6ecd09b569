"""The bytes: content-addressed files, written under a temporary name and renamed."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from pathlib import Path
from typing import BinaryIO

BLOCK = 4 << 20
UNFINISHED_SECONDS = 24 * 3600


class Mismatch(ValueError):
    """The bytes that came are not the bytes that were announced."""


class Objects:
    """A folder of objects named by their sha256, plus a folder of unfinished ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "objects"
        self._unfinished = folder / "unfinished"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._unfinished.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where an object lies, or would lie."""
        return self._folder / sha256[:2] / sha256[2:]

    def has(self, sha256: str) -> bool:
        """Whether the object is here, complete."""
        return self.path(sha256).is_file()

    def size(self, sha256: str) -> int | None:
        """Bytes of the object, None where it is missing."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, sha256: str, limit: int = -1) -> bytes:
        """The first `limit` bytes of an object (all of it by default: for small ones)."""
        with self.path(sha256).open("rb") as file:
            return file.read(limit)

    def add(self, content: bytes) -> str:
        """Store small content; its sha256."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.has(sha256):
            temporary = self.temporary()
            temporary.write_bytes(content)
            self._move_in(temporary, sha256)
        return sha256

    def temporary(self, name: str | None = None) -> Path:
        """A path to write to before `adopt`; a name makes it findable again (parts of one upload)."""
        return self._unfinished / (name or uuid.uuid4().hex)

    def adopt(self, temporary: Path, sha256: str, size: int, digest: str | None = None) -> None:
        """Rename a finished file to its final place, after checking size and sha256 (`digest`: already computed)."""
        if temporary.stat().st_size != size:
            raise Mismatch(f"expected {size} bytes, got {temporary.stat().st_size}")
        if digest is None:
            with temporary.open("rb") as file:
                digest = digest_of(file)
        if digest != sha256:
            raise Mismatch(f"expected sha256 {sha256}, got {digest}")
        self._move_in(temporary, sha256)

    def _move_in(self, temporary: Path, sha256: str) -> None:
        final = self.path(sha256)
        final.parent.mkdir(exist_ok=True)
        os.replace(temporary, final)

    def sweep(self) -> None:
        """Forget uploads whose URLs have expired; younger ones may still be finished after a restart."""
        for leftover in self._unfinished.iterdir():
            if leftover.stat().st_mtime < time.time() - UNFINISHED_SECONDS:
                leftover.unlink(missing_ok=True)


def digest_of(file: BinaryIO) -> str:
    """sha256 of an open file, in blocks."""
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()
