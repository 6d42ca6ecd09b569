"""Work beside the dispatcher's, which must not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock, Thread


class Background:
    """Does something in a thread of its own whenever it is called, never twice at the same time: whoever calls goes on at once."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do, self._lock = do, Lock()
        self._thread: Thread | None = None

    def __call__(self) -> None:
        """Have it done, unless it is being done."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._do, name="beside", daemon=True)
                self._thread.start()

    def finish(self, seconds: float) -> bool:
        """Whether nothing is being done any more, after `seconds` at most."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()
