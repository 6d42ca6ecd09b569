"""The sha256 of a file out of what others read of it for their own sake: no second pass over a disk, and the bytes that were
judged are those that were hashed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from threading import Condition, Lock

HELD = 1 << 24  # bytes that wait to be hashed, of all files together; whoever brings more waits as well
PIECE = 1 << 22  # bytes that are read at once where nobody else read them


class Waiting:
    """How many bytes wait, of all the files that are hashed together."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held = 0

    def add(self, count: int) -> None:
        """So many more, or fewer."""
        with self._lock:
            self._held += count

    @property
    def too_many(self) -> bool:
        """Whether those that there are had better be hashed, over gaps as well."""
        return self._held > HELD


class FileDigest:
    """Several threads hand over what they have read, in any order; whoever brings the bytes that the hash has come to goes on
    hashing, so that no thread is kept for it; they wait where hashing is what takes longest. What was handed over must stay as it
    is."""

    def __init__(self, path: Path, together: Waiting | None = None) -> None:
        """The file's size is taken now. `together`: of the files that are read at the same time. Raises OSError."""
        self._together = together or Waiting()
        self._path, self._size = path, path.stat().st_size
        self._changed = Condition()
        self._digest, self._hashed = hashlib.sha256(), 0  # bytes from the start
        self._is_hashing = False
        self._waiting: dict[int, memoryview] = {}  # by where they start

    def take(self, start: int, content: memoryview) -> None:
        """Bytes of the file from `start` on. Of what was handed over already, or reaches back before it, the first counts.
        Raises OSError, EOFError."""
        with self._changed:
            if start < self._hashed or start in self._waiting or not len(content):
                return
            self._waiting[start] = content
            self._together.add(len(content))
            self._changed.wait_for(lambda: not self._together.too_many or not self._is_hashing)
            if self._is_hashing:
                return  # whoever does will come to it
            self._is_hashing = True
        self._go_on(self._hashed)

    def finish(self) -> str:
        """Lowercase hex of the whole file; what nobody has read is read now. Raises OSError, EOFError."""
        self._go_on(self._size)
        self._read_up_to(self._size)
        return self._digest.hexdigest()

    def _go_on(self, until: int) -> None:
        """Hash what has come, without a gap; over gaps where bytes up to `until` are due, or too many of them wait."""
        try:
            while (following := self._next(until)) is not None:
                start, content = following
                self._read_up_to(start)
                if start == self._hashed:  # else it reaches back
                    self._digest.update(content)
                    self._hashed += len(content)
        except BaseException:
            with self._changed:  # nobody waits for what does not come
                self._is_hashing = False
                self._together.add(-sum(map(len, self._waiting.values())))
                self._waiting.clear()
                self._changed.notify_all()
            raise

    def _next(self, until: int) -> tuple[int, memoryview] | None:
        with self._changed:
            self._changed.notify_all()
            start = min(self._waiting, default=self._size)
            is_next = start <= self._hashed or start < until or self._together.too_many
            self._is_hashing = is_next and bool(self._waiting)
            if not self._is_hashing:
                return None
            content = self._waiting.pop(start)
            self._together.add(-len(content))
            return start, content

    def _read_up_to(self, stop: int) -> None:
        if self._hashed >= stop:
            return
        with self._path.open("rb", buffering=0) as opened:
            opened.seek(self._hashed)
            while self._hashed < stop:
                piece = opened.read(min(PIECE, stop - self._hashed))
                if not piece:
                    raise EOFError(f"{self._path.name} ended at byte {self._hashed}")
                self._digest.update(piece)
                self._hashed += len(piece)
