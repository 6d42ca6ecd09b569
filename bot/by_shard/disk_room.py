"""Room on the disk, in bytes, shared by what is fetched, made and sent at the same time."""

from __future__ import annotations

from threading import Condition

from bot.errors import Interrupted


class DiskRoom:
    """As many bytes as may lie on the disk at once. `most`: how many did, at any moment, by this account."""

    def __init__(self, size: int) -> None:
        self._free, self._size, self._closed = size, size, False
        self._changed = Condition()
        self.most = 0

    def take(self, size: int) -> None:
        """Wait until there is room for so many bytes. More than there is at all is given when nothing else is there.
        Raises Interrupted where nobody gets room any more: something else went wrong, and says what."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or size <= self._free or self._free == self._size)
            if self._closed:
                raise Interrupted("The work was given up.", remedy="Run it again.")
            self._free -= size
            self.most = max(self.most, self._size - self._free)

    def give(self, size: int) -> None:
        """So many bytes are gone from the disk."""
        with self._changed:
            self._free += size
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody waits any longer: the work is given up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
