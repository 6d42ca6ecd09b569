"""Where a run's events become lines for a person: a terminal, a log file, or the Actions log. Always on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from threading import RLock
from typing import TextIO

from bot.events import Event, Note, Stage, StepProgress, TextBlock
from bot.terminal.progress import Progress
from bot.terminal.workflow_commands import command, defused


class Console:
    """Prints events, from any thread. `quiet` keeps warnings only. One per run; `close` ends an open line or group."""

    def __init__(self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream: TextIO = sys.stderr
        self._quiet = quiet
        self._terminal = self._stream.isatty()
        self._actions = os.environ.get("GITHUB_ACTIONS") == "true"
        self._progress = Progress(terminal=self._terminal, clock=clock)
        self._lock = RLock()
        self._drawing = self._grouped = False

    def __call__(self, event: Event) -> None:
        with self._lock:
            match event:
                case Stage():
                    self._stage(event)
                case StepProgress():
                    self._moved(event)
                case Note():
                    self._note(event)
                case TextBlock():
                    if not self._quiet:
                        self._print(event.text)

    def close(self) -> None:
        """End whatever line or group is open."""
        self._end_drawing()
        if self._grouped:
            self._line(command("endgroup"))
            self._grouped = False

    def _stage(self, event: Stage) -> None:
        self.close()
        self._progress.stage()
        if self._quiet:
            return
        if self._actions:
            self._line(command("group", event.title))
            self._grouped = True
        else:
            self._line(f"\n▸ {event.title}")

    def _moved(self, event: StepProgress) -> None:
        line = None if self._quiet else self._progress.take(event)
        if line is None:
            return
        if not self._terminal:
            self._print(f"  {line.text}")
            return
        self._write(f"\r\x1b[K  {line.text}{chr(10) if line.finished else ''}")
        self._drawing = not line.finished

    def _note(self, event: Note) -> None:
        if event.level == "warning":
            self._line(command("warning", event.text) if self._actions else f"  ! {event.text}")
        elif not self._quiet:
            self._print(f"  {event.text}")

    def _print(self, text: str) -> None:
        self._line(defused(text) if self._actions else text)

    def _line(self, text: str) -> None:
        self._end_drawing()
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._stream = open(os.devnull, "w")  # noqa: SIM115, PTH123  nobody listens any more; the work goes on

    def _end_drawing(self) -> None:
        """What was under way is over, or will be drawn again: only finished steps leave a line."""
        if self._drawing:
            self._write("\r\x1b[K")
            self._drawing = False
