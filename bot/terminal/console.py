"""Where a run's events become lines for a person: a terminal, a log file, or the Actions log. Always on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from threading import RLock

from bot.events import Event, Note, Parts, Stage, StepProgress, TextBlock, TextLine, Tone
from bot.terminal.progress import Progress
from bot.terminal.screen import Screen
from bot.terminal.workflow_commands import command


class Console:
    """Prints events, from any thread. `quiet` keeps warnings only; `verbose` shows details too. One per run; `close` ends an
    open line or group."""

    def __init__(
        self, *, quiet: bool = False, verbose: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._screen = Screen(sys.stderr)
        self._quiet, self._verbose = quiet, verbose
        self._actions = os.environ.get("GITHUB_ACTIONS") == "true"
        self._progress = Progress(terminal=self._screen.interactive, clock=clock)
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
                        self._show(event.details if self._verbose and event.details else event.parts)

    def close(self) -> None:
        """End whatever line or group is open."""
        self._end_drawing()
        if self._grouped:
            self._command("endgroup")
            self._grouped = False

    def _stage(self, event: Stage) -> None:
        self.close()
        self._progress.stage()
        if self._quiet:
            return
        if self._actions:
            self._command("group", event.title)
            self._grouped = True
        else:
            self._show((TextLine(text=""), TextLine(text=f"▸ {event.title}", tone="strong")))

    def _moved(self, event: StepProgress) -> None:
        line = None if self._quiet else self._progress.take(event)
        if line is None:
            return
        if line.finished or not self._screen.interactive:
            self._line(f"  {line.text}")
            return
        self._try(lambda: self._screen.redraw(line.share, line.text))
        self._drawing = True

    def _note(self, event: Note) -> None:
        if event.level != "warning":
            if not self._quiet:
                self._line(f"  {event.text}")
        elif self._actions:
            self._command("warning", event.text)
        else:
            self._line(f"  ! {event.text}", "remark")

    def _line(self, text: str, tone: Tone = "plain") -> None:
        self._show((TextLine(text=text, tone=tone),))

    def _show(self, parts: Parts) -> None:
        self._end_drawing()
        self._try(lambda: self._screen.show(parts))

    def _command(self, name: str, text: str = "") -> None:
        """For the runner, so that nothing of it is changed."""
        self._end_drawing()
        self._try(lambda: self._screen.write(command(name, text)))

    def _end_drawing(self) -> None:
        """What was under way is over, or will be drawn again: only finished steps leave a line."""
        if self._drawing:
            self._try(self._screen.erase)
            self._drawing = False

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError:
            self._screen = Screen(open(os.devnull, "w"))  # noqa: SIM115, PTH123  nobody listens any more; the work goes on
