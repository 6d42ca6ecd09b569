"""Bytes by offset: what the engines read, write and copy, and the sha256 of a file while it is being written."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Lock, Thread

from bot.errors import Refused
from bot.records import Local, Stored

COPY_RUN = 32 << 20  # bytes per copy call, so that progress moves and the hash can follow
HASHED = 1 << 20  # bytes hashed at a time: they are still in the processor's cache when they are hashed
AGAIN = "Run the merge again, with nothing else writing there."


class Inputs:
    """The input files, opened once each and shared by all threads. Notices files that change while they are open."""

    def __init__(self, inputs: Local) -> None:
        self._folders = {0: inputs.base, 1: inputs.adapter}  # by owner
        self._open: dict[tuple[int, str], tuple[int, int, int]] = {}  # descriptor, size, time of the last change
        self._lock = Lock()

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor, _, _ in self._open.values():
            os.close(descriptor)

    def descriptor(self, owner: int, file: str) -> int:
        """The open file; opened when it is first asked for."""
        with self._lock:
            if (owner, file) not in self._open:
                descriptor = os.open(self._folders[owner] / file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                status = os.fstat(descriptor)
                self._open[owner, file] = descriptor, status.st_size, status.st_mtime_ns
            return self._open[owner, file][0]

    def read(self, stored: Stored, start: int, buffer: memoryview) -> None:
        """Fill the buffer with the tensor's bytes from its byte `start` on."""
        read_all(self.descriptor(stored.owner, stored.file), buffer, stored.start + start)

    def unchanged(self) -> None:
        """Raises Refused when a file is not what it was when it was opened."""
        for (_owner, file), (descriptor, size, changed) in self._open.items():
            status = os.fstat(descriptor)
            if (status.st_size, status.st_mtime_ns) != (size, changed):
                raise Refused(f"{file} changed while it was read.", remedy=AGAIN)


class Output:
    """A file that several threads write by offset, in any order; one thread hashes it from its start, as far as it is whole.

    One writes at a time: where writers of one file meet in the kernel, they wait by spinning, on a core that another
    thread could use.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        """Makes the file `size` bytes long. `stop` ends its thread."""
        os.truncate(descriptor, size)
        self._descriptor, self._size = descriptor, size
        self._writing = Lock()
        self._whole = 0  # bytes from the start that are written
        self._beyond: dict[int, int] = {}  # start → stop of what is written behind that
        self._changed = Condition()
        self._ended = False
        self._digest = hashlib.sha256()
        self._thread = Thread(target=self._follow, name="sha256")
        self._thread.start()

    def write(self, content: bytes | memoryview, offset: int) -> None:
        """Write all of it at the offset."""
        with self._writing:
            write_all(self._descriptor, content, offset)

    def copy(self, source: int, start: int, position: int, length: int) -> None:
        """Copy bytes of another file, from its byte `start` to this one's `position`."""
        with self._writing:
            copy_range(source, self._descriptor, start, position, length)

    def written(self, start: int, stop: int) -> None:
        """Bytes `start` to `stop` are final now."""
        with self._changed:
            self._beyond[start] = stop
            while self._whole in self._beyond:
                self._whole = self._beyond.pop(self._whole)
            self._changed.notify()

    def digest(self) -> str:
        """The sha256 of the whole file, once it is written and hashed."""
        self._thread.join()
        return self._digest.hexdigest()

    def stop(self) -> None:
        """End the thread, whatever is still missing."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def _follow(self) -> None:
        buffer, done = memoryview(bytearray(HASHED)), 0
        while done < self._size:
            with self._changed:
                while not self._ended and self._whole <= done:
                    self._changed.wait()
                if self._ended:
                    return
                whole = self._whole
            while done < whole and not self._ended:
                part = buffer[: min(HASHED, whole - done)]
                read_all(self._descriptor, part, done)
                self._digest.update(part)
                done += part.nbytes


def copy_range(source: int, target: int, start: int, position: int, length: int) -> None:
    """Copy bytes from file to file, inside the kernel where it can; filesystems with reflinks share the blocks."""
    while length:
        count = _copy_some(source, target, length, start, position)
        if count == 0:
            raise Refused("An input file became shorter while it was read.", remedy=AGAIN)
        start, position, length = start + count, position + count, length - count


def _copy_some(source: int, target: int, count: int, start: int, position: int) -> int:
    try:
        if not hasattr(os, "copy_file_range"):
            raise OSError(errno.ENOSYS, "not on this system")
        return os.copy_file_range(source, target, count, start, position)
    except OSError as error:
        # Not between these two filesystems, or not on this kernel: through a buffer then.
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            raise
    piece = os.pread(source, min(count, 8 << 20), start)
    write_all(target, piece, position)
    return len(piece)


def read_all(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fill the buffer from the file. Raises Refused where the file ends too early."""
    while buffer.nbytes:
        count = os.preadv(descriptor, [buffer], offset)
        if count == 0:
            raise Refused("An input file became shorter while it was read.", remedy=AGAIN)
        buffer, offset = buffer[count:], offset + count


def write_all(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write all of it at the offset."""
    view = memoryview(content).cast("B")
    while view.nbytes:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A file descriptor that is closed again."""
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
