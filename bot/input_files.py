"""Input files, held to what their sources state of them: hashed while they are read, and the same ones to the end.

A `Keeper` hashes in threads of its own what others are reading at that moment, out of the page cache, so that no pass over
the disk is added. A file is what it was when nothing of its identity has changed: size, inode, times of its last change of
content and of state. So whatever read it in between, by whatever way, has read the bytes that were hashed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from bot.errors import AdapterMergeError, Damaged, Refused
from bot.records import Held, Identity

PIECE = 1 << 20  # bytes hashed at a time
THREADS = 2


def identity_of(status: os.stat_result) -> Identity:
    """What `stat` or `fstat` says of a file."""
    return Identity(
        device=status.st_dev,
        inode=status.st_ino,
        size=status.st_size,
        modified=status.st_mtime_ns,
        changed=status.st_ctime_ns,
    )


def look(path: Path) -> Identity:
    """The identity of the file that a path leads to now. Raises OSError."""
    return identity_of(path.stat())


def git_blob_id(size: int) -> Any:
    """A digest that gives git's name for a file of that size: sha1 over `blob <size>\\0` and the bytes."""
    return hashlib.sha1(b"blob %d\x00" % size, usedforsecurity=False)


def is_stated(chunks: Iterable[bytes | memoryview], size: int, sha256: str | None, oid: str | None) -> bool:
    """Whether these `size` bytes are those that a source states; yes where it states nothing."""
    digest = hashlib.sha256() if sha256 is not None else git_blob_id(size)
    for chunk in chunks:
        digest.update(chunk)
    return bool(digest.hexdigest() == (sha256 or oid or digest.hexdigest()))


class Keeper:
    """Holds some files. For one thread to use; the hashing is done in others."""

    def __init__(self, files: Iterable[Held]) -> None:
        self._files = {held.path: held for held in files}
        self._hashed: dict[Path, Future[bool]] = {}  # whether each is as stated
        self._pool = ThreadPoolExecutor(max_workers=THREADS)
        self._stopped = False
        self._expected: list[Path] = []

    def expect(self, paths: Iterable[Path]) -> None:
        """Somebody else is to hash these: `note_sha256`. Where the block fails before that, they are followed."""
        self._expected += paths

    def follow(self, paths: Iterable[Path]) -> None:
        """Begin to hash these, in this order, beside whoever reads them; those that are not held are left out."""
        for path in paths:
            if path in self._files and path not in self._hashed:
                self._hashed[path] = self._pool.submit(self._examine, self._files[path])

    def note_sha256(self, path: Path, sha256: str) -> None:
        """Somebody else has hashed all that was read of this file."""
        held = self._files.get(path)
        if held is not None and held.sha256 is not None and path not in self._hashed:
            self._note(path, held.sha256 == sha256)

    def copy(self, path: Path, target: Path) -> None:
        """Copy a file, held to what is stated of it. Raises Refused where it is not the one that was looked at."""
        held = self._files.get(path)
        with _opened(path, held) as source, target.open("wb") as out:
            if held is None:
                shutil.copyfileobj(source, out)
                return
            self._note(path, self._hash(held, source, out))

    def require(self, paths: Iterable[Path]) -> None:
        """Raises Refused where one of these files is not the one that was looked at."""
        for held in [self._files[path] for path in paths if path in self._files]:
            _require_same(held)

    def check_hashes(self) -> None:
        """Wait for all that was begun. Raises Damaged, once every file has been looked at, where one is not as stated."""
        self.follow(self._expected)
        if all(done.result() for done in list(self._hashed.values())):
            return
        self.follow(self._files)  # a disk that was wrong once is asked about everything, so that all is mended at once
        raise _damaged([self._files[path] for path, done in self._hashed.items() if not done.result()])

    def finish(self) -> None:
        """All files are as stated, and have been the same all along. Raises Damaged, Refused."""
        self.follow(self._files)
        self.check_hashes()
        self.require(self._files)

    def close(self) -> None:
        """No more is hashed."""
        self._stopped = True
        self._pool.shutdown(cancel_futures=True)

    def _note(self, path: Path, as_stated: bool) -> None:
        done: Future[bool] = Future()
        done.set_result(as_stated)
        self._hashed[path] = done

    def _examine(self, held: Held) -> bool:
        if held.sha256 is None and held.oid is None:
            return True
        with _opened(held.path, held) as opened:
            return self._hash(held, opened)

    def _hash(self, held: Held, opened: FileIO, out: BinaryIO | None = None) -> bool:
        """Whether the open file, which is copied to `out`, is as stated. Raises Refused where it is, or becomes, another."""
        if identity_of(os.fstat(opened.fileno())) != held.identity:
            raise _changed(held)
        same = is_stated(self._pieces(opened, out), held.identity.size, held.sha256, held.oid)
        if identity_of(os.fstat(opened.fileno())) != held.identity:
            raise _changed(held)
        return same

    def _pieces(self, opened: FileIO, out: BinaryIO | None) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(PIECE))
        while not self._stopped and (count := opened.readinto(buffer)):
            if out is not None:
                out.write(buffer[:count])
            yield buffer[:count]


def _opened(path: Path, held: Held | None) -> FileIO:
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        if held is None:
            raise
        raise _changed(held) from None


@contextmanager
def holding(files: Iterable[Held]) -> Iterator[Keeper]:
    """A keeper of the files for as long as the block runs; at its end they are all as stated. Raises Damaged, Refused.

    Where the block fails and a file that was followed turns out to be damaged, that is told instead: it may be why.
    """
    keeper = Keeper(files)
    try:
        try:
            yield keeper
        except AdapterMergeError:
            keeper.check_hashes()
            raise
        keeper.finish()
    finally:
        keeper.close()


@contextmanager
def unchanging(files: Iterable[Held]) -> Iterator[None]:
    """Raises Refused where, at the end of the block, one of the files is not the one that was looked at; also in place of
    another error of ours, which may come of that."""
    try:
        yield
    except Damaged:
        raise
    except AdapterMergeError:
        for held in files:
            _require_same(held)
        raise
    for held in files:
        _require_same(held)


def _require_same(held: Held) -> None:
    try:
        same = look(held.path) == held.identity
    except OSError:
        same = False
    if not same:
        raise _changed(held)


def _changed(held: Held) -> Refused:
    return Refused(
        f"{held.name} of {held.owner} is not the file that was planned for.",
        remedy="Run it again, with nothing else writing there.",
    )


def not_its_hash(name: str, owner: str, files: tuple[Held, ...] = ()) -> Damaged:
    """A folder's file that is not what its remembered hash, or its name in the Hub's cache, stands for."""
    return Damaged(
        f"{name} of {owner} does not hold the bytes that its hash stands for.",
        remedy="The disk may be failing, or the file came damaged: fetch it again, or compare it with its origin.",
        files=files,
    )


def not_the_repos(name: str, owner: str, files: tuple[Held, ...] = ()) -> Damaged:
    """A repo's file whose copy on this disk has other bytes."""
    return Damaged(
        f"{name} of {owner}, as it came or lay on this disk, is not the file that the repo states.",
        remedy="It was removed from the cache: run it again, and it is fetched anew. Where it comes damaged again, look at the "
        "disk and the network, then at the repo.",
        files=files,
    )


def _damaged(files: list[Held]) -> Damaged:
    first = files[0]
    names = first.name + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    return (not_its_hash if first.repo is None else not_the_repos)(names, first.owner, tuple(files))
