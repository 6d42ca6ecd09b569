"""Bytes by offset: what the engines read, write and copy, and the sha256 of a file while it is being written."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from bot.errors import Refused
from bot.input_files import identity_of, look
from bot.records import Identity, Local, Role, Stored

COPY_RUN = 4 << 20  # bytes per copy call: they are still in the processor's cache when they are hashed
HASHED = 1 << 20  # bytes read at a time to be hashed
HELD = 16 << 20  # bytes that may wait to be hashed in the buffers that they were written from
KEEP_SIZE, PUNCH_HOLE = 1, 2  # of Linux's fallocate
AGAIN = "Run the merge again, with nothing else writing there."


class OpenInputs:
    """The input files, opened once each and shared by all threads. Notices files that change while they are open."""

    def __init__(self, inputs: Local) -> None:
        self._folders: dict[Role, Path] = {"base": inputs.base, "adapter": inputs.adapter}
        self._open: dict[tuple[Role, str], tuple[int, Identity]] = {}  # descriptor, and what it was when it was opened
        self._given_back: dict[int, list[tuple[int, int]]] = {}  # by descriptor: ranges that hold nothing any more
        self._lock = Lock()

    def __enter__(self) -> OpenInputs:
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor, _ in self._open.values():
            os.close(descriptor)

    def descriptor(self, role: Role, file: str) -> int:
        """The open file; opened when it is first asked for."""
        with self._lock:
            if (role, file) not in self._open:
                descriptor = os.open(self._folders[role] / file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                self._open[role, file] = descriptor, identity_of(os.fstat(descriptor))
            return self._open[role, file][0]

    def read(self, stored: Stored, start: int, buffer: memoryview) -> None:
        """Fill the buffer with the tensor's bytes from its byte `start` on."""
        descriptor, first = self.descriptor(stored.role, stored.file), stored.start + start
        self.require(descriptor, first, first + buffer.nbytes)
        read_all(descriptor, buffer, first)

    def require(self, descriptor: int, start: int, stop: int) -> None:
        """These bytes are about to be read: a range that was given back holds zeros, which no merge may take for weights."""
        if any(start < high and low < stop for low, high in self._given_back.get(descriptor, ())):
            raise RuntimeError(f"bytes {start} to {stop} of an input were given back before they were read")

    def give_back(self, role: Role, file: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Nobody needs these (start, stop) of a file any more: the filesystem gets their blocks back, where it can take them.

        The file has to be a copy of our own: a link to it is refused with OSError, so that nobody else's file is touched.
        """
        descriptor = self.descriptor(role, file)
        before, path = self._open[role, file][1], self._folders[role] / file
        if not identity_of(os.fstat(descriptor)) == before == look(path):
            raise _changed(file)
        with opened(path, os.O_RDWR | os.O_NOFOLLOW) as writable:
            if os.fstat(writable).st_nlink != 1:
                raise OSError(errno.EMLINK, "it has more than one name", file)
            for start, stop in ranges:
                known = self._given_back.setdefault(descriptor, [])
                known.append((known.pop()[0] if known and known[-1][1] == start else start, stop))
                punch(writable, start, stop - start)
        self._open[role, file] = descriptor, identity_of(os.fstat(descriptor))

    def unchanged(self) -> None:
        """Raises Refused when a file is not what it was when it was opened."""
        for (role, file), (descriptor, before) in self._open.items():
            if not identity_of(os.fstat(descriptor)) == before == look(self._folders[role] / file):
                raise _changed(file)


def _changed(file: str) -> Refused:
    return Refused(f"{file} changed while it was read.", remedy=AGAIN)


Final = tuple[int, bytearray | None]  # where final bytes stop, and the buffer that they still are in


class Output:
    """A file that several threads write by offset, in any order, and its sha256.

    Whoever writes the bytes that the hash has come to goes on hashing, as far as the file is final: out of the buffers
    that others have left, while those are in the processor's cache, or where they are too many, out of the file. So no
    thread waits for the hash, and no core is set aside for it. One writes at a time: where writers of one file meet in
    the kernel, they wait by spinning, on a core that another thread could use.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        """Makes the file `size` bytes long."""
        os.truncate(descriptor, size)
        self._descriptor, self._size = descriptor, size
        self._writing, self._lock = Lock(), Lock()
        self._digest, self._hashed = hashlib.sha256(), 0  # bytes from the start
        self._is_hashing, self._ended = False, False
        self._final: dict[int, Final] = {}  # what is not hashed yet, by where it starts
        self._spare: list[bytearray] = []
        self._held = 0  # bytes of buffers that wait to be hashed

    def reserve(self, start: int, stop: int) -> None:
        """Bytes `start` to `stop` will be written, not copied: have their blocks set aside. Writing costs a third less then,
        and a disk that is too small is noticed before the work. Raises OSError."""
        reserve(self._descriptor, start, stop - start)

    def buffer(self, size: int) -> bytearray:
        """At least `size` bytes to fill, for `put`."""
        with self._lock:
            spare = self._spare.pop() if self._spare else b""
        return spare if isinstance(spare, bytearray) and len(spare) >= size else bytearray(size)

    def put(self, buffer: bytearray, size: int, offset: int) -> None:
        """Write the buffer's first `size` bytes at the offset, as final. The buffer is this object's from now on."""
        self.write(memoryview(buffer)[:size], offset)
        with self._lock:
            is_kept = size > 0 and self._held + size <= HELD
            if is_kept:
                self._held += size
            else:
                self._spare.append(buffer)
        self.mark_final(offset, offset + size, buffer if is_kept else None)

    def copy(self, source: int, start: int, position: int, length: int) -> None:
        """Copy bytes of another file, from its byte `start` to this one's `position`, as final."""
        with self._writing:
            copy_range(source, self._descriptor, start, position, length)
        self.mark_final(position, position + length)

    def write(self, content: bytes | memoryview, offset: int) -> None:
        """Write all of it at the offset; `mark_final` says when that is final."""
        with self._writing:
            write_all(self._descriptor, content, offset)

    def stop(self) -> None:
        """No more is hashed: the rest of the work is given up."""
        self._ended = True

    def digest(self) -> str:
        """The sha256 of the whole file, once all of it is final."""
        if self._hashed != self._size:
            raise RuntimeError(f"bytes {self._hashed} and on were never written")
        return self._digest.hexdigest()

    def mark_final(self, start: int, stop: int, buffer: bytearray | None = None) -> None:
        """Bytes `start` to `stop` are final now. `buffer`: they still are in it."""
        if start == stop:
            return  # an empty tensor, which has its place in common with another
        with self._lock:
            self._final[start] = stop, buffer
            if self._is_hashing:
                return  # whoever does will come to it
            self._is_hashing = True
        while (final := self._next()) is not None:
            self._hash(*final)

    def _next(self) -> Final | None:
        with self._lock:
            final = None if self._ended else self._final.pop(self._hashed, None)
            self._is_hashing = final is not None
            return final

    def _hash(self, stop: int, buffer: bytearray | None) -> None:
        start = self._hashed
        if buffer is not None:
            self._digest.update(memoryview(buffer)[: stop - start])
        else:
            read = memoryview(bytearray(min(stop - start, HASHED)))
            for at in range(start, stop, HASHED):
                part = read[: min(HASHED, stop - at)]
                read_all(self._descriptor, part, at)
                self._digest.update(part)
        with self._lock:
            self._hashed = stop
            if buffer is not None:
                self._held -= stop - start
                self._spare.append(buffer)


def reserve(descriptor: int, start: int, length: int) -> None:
    """Have the filesystem set blocks aside, where it can. Raises OSError for a full disk."""
    try:
        # Not os.posix_fallocate, which writes into every block where the filesystem cannot reserve.
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    except AttributeError:  # not on this system
        return
    fallocate.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong
    if length and fallocate(descriptor, 0, start, length):
        number = ctypes.get_errno()
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(number, os.strerror(number))


def punch(descriptor: int, start: int, length: int) -> bool:
    """Give the blocks of a range back; it reads as zeros from then on, and the file keeps its size. False: not on this filesystem."""
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    except AttributeError:  # not on this system
        return False
    fallocate.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong
    return not length or fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE, start, length) == 0


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
    content = os.pread(source, min(count, 8 << 20), start)
    write_all(target, content, position)
    return len(content)


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
