"""How many of a worker's model runs are done: written down for the process that waits for it, and read there."""

from __future__ import annotations

import json
from pathlib import Path


class Forwards:
    """A worker's count. Until `begin`, it is kept nowhere."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._done = self._total = 0

    def begin(self, path: Path) -> None:
        """Count into this file from now on."""
        self._path = path

    def expect(self, total: int) -> None:
        """So many runs there will be, as far as is known now; 0: unknown."""
        self._total = total
        self._write()

    def ran(self) -> None:
        """One more is done."""
        self._done += 1
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            fresh = self._path.with_suffix(".tmp")
            fresh.write_text(json.dumps([self._done, self._total]))
            fresh.replace(self._path)


FORWARDS = Forwards()  # of this process: one worker, one count


def read_forwards(path: Path) -> tuple[int, int]:
    """(done, expected) as the worker has them now; (0, 0) before its first."""
    try:
        done, total = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return 0, 0
    return done, max(done, total)
