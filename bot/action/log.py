"""Where a run's events become lines of the Actions log: stages are folds, warnings are annotations."""

from __future__ import annotations

import time

from bot.action.commands import Commands
from bot.action.words import as_inputs
from bot.budget import readable
from bot.events import Event, Moved, Note, Show, Stage

LOG_EVERY = 10.0  # seconds between two lines of progress


class Log:
    """An `Emit` for Actions. `file` is what annotations point at, a path in the GitHub repo."""

    def __init__(self, commands: Commands, file: str = "") -> None:
        self._commands, self._file = commands, file
        self._told = time.monotonic()

    def __call__(self, event: Event) -> None:
        match event:
            case Stage():
                self._commands.group(event.title)
                self._told = time.monotonic()
            case Moved():
                self._moved(event)
            case Note() if event.level == "warning":
                self._commands.annotate("warning", as_inputs(event.text), title="adapter-merge", file=self._file)
            case Note() if event.level == "notice":
                self._commands.annotate("notice", as_inputs(event.text), title="adapter-merge", file=self._file)
            case Note():
                self._commands.line(f"  {as_inputs(event.text)}")
            case Show():
                self._commands.line(event.text)

    def _moved(self, event: Moved) -> None:
        now = time.monotonic()
        if now - self._told < LOG_EVERY:
            return
        self._told = now
        share = f" of {readable(event.total)} ({event.done / event.total:.0%})" if event.total else ""
        self._commands.line(f"  {readable(event.done)}{share}")
