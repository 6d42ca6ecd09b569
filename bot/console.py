"""Where a run's events become lines for a person: a terminal, a log file, or the Actions log. Always on stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

from bot.budget import readable
from bot.events import Event, Moved, Note, Show, Stage
from bot.streams import defused, escape

BAR = 24
REDRAW = 0.1  # seconds between two drawings of the bar
LOG_EVERY = 10.0  # seconds between two lines where there is no terminal


class Console:
    """Prints events. `quiet` keeps warnings only. One per run; `close` ends an open line or group."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._stream: TextIO = sys.stderr
        self._quiet = quiet
        self._terminal = self._stream.isatty()
        self._actions = os.environ.get("GITHUB_ACTIONS") == "true"
        self._began = self._drawn = time.monotonic()
        self._first_bytes = 0
        self._drawing = self._grouped = False

    def __call__(self, event: Event) -> None:
        match event:
            case Stage():
                self._stage(event)
            case Moved():
                self._moved(event)
            case Note():
                self._note(event)
            case Show():
                if not self._quiet:
                    self._said(event.text)

    def close(self) -> None:
        """End whatever line or group is open."""
        self._end_drawing()
        if self._grouped:
            self._line("::endgroup::")
            self._grouped = False

    def _stage(self, event: Stage) -> None:
        self.close()
        self._began, self._drawn, self._first_bytes = time.monotonic(), 0.0, -1
        if self._quiet:
            return
        if self._actions:
            self._line(f"::group::{escape(event.title)}")
            self._grouped = True
        else:
            self._line(f"\n▸ {event.title}")

    def _moved(self, event: Moved) -> None:
        if self._quiet:
            return
        now, finished = time.monotonic(), bool(event.total) and event.done >= event.total
        if self._first_bytes < 0:
            self._first_bytes = event.done  # bytes that were there before are no measure of speed
        if not finished and now - self._drawn < (REDRAW if self._terminal else LOG_EVERY):
            return
        if self._drawn == 0.0 and not self._terminal and not finished:
            self._drawn = now
            return
        self._drawn = now
        text = self._sentence(event, now - self._began, finished)
        if self._terminal:
            self._write(f"\r\x1b[K  {text}")
            self._drawing = True
            if finished:
                self._end_drawing()
        else:
            self._line(f"  {text}")

    def _sentence(self, event: Moved, seconds: float, finished: bool) -> str:
        rate = (event.done - max(0, self._first_bytes)) / seconds if seconds > 0.05 else 0.0
        speed = f", {readable(rate)}/s" if rate else ""
        if finished:
            return f"{readable(event.done)} in {seconds:.1f} s{speed}"
        if not event.total:
            return f"{readable(event.done)}{speed}"
        left = f", {_duration((event.total - event.done) / rate)} left" if rate else ""
        share = event.done / event.total
        bar = ("█" * int(BAR * share)).ljust(BAR, "░") + " " if self._terminal else ""
        return f"{bar}{share:4.0%}  {readable(event.done)} of {readable(event.total)}{speed}{left}"

    def _note(self, event: Note) -> None:
        if event.level == "warning":
            self._line(f"::warning::{escape(event.text)}" if self._actions else f"  ! {event.text}")
        elif not self._quiet:
            self._said(f"  {event.text}")

    def _said(self, text: str) -> None:
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
        if self._drawing:
            self._write("\n")
            self._drawing = False


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
