"""A stream as a person sees it: a terminal, which is drawn on, or a pipe, a file or a log, which get plain text.

rich is imported when the first thing is drawn on a terminal, and by nobody else.
"""

from __future__ import annotations

import os
from typing import TextIO

from bot.events import Parts
from bot.terminal.plain import plain
from bot.terminal.streams import draw
from bot.terminal.workflow_commands import defused

USUAL = 80  # columns of a terminal that does not say


class Screen:
    """One stream. `interactive`: its lines can be drawn over; `styled`: it is drawn on at all (FORCE_COLOR asks for that too)."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._actions = os.environ.get("GITHUB_ACTIONS") == "true"
        self.interactive = _is_terminal(stream) and os.environ.get("TERM", "") not in ("dumb", "unknown")
        self.styled = not self._actions and (self.interactive or bool(os.environ.get("FORCE_COLOR")))

    @property
    def width(self) -> int:
        """Columns, now: COLUMNS, else what the terminal says."""
        asked = os.environ.get("COLUMNS", "")
        if asked.isdecimal() and int(asked):
            return int(asked)
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or USUAL
        except (OSError, ValueError, AttributeError):
            return USUAL

    def show(self, parts: Parts) -> None:
        """Print the parts. In a workflow's log, words out of other people's repos are no commands."""
        if not parts:
            return
        if self.styled:
            from bot.terminal.drawing import drawn

            draw(self.stream, drawn(parts, self.width))
        else:
            text = plain(parts)
            self.stream.write(f"{defused(text) if self._actions else text}\n")
        self.stream.flush()

    def write(self, line: str) -> None:
        """Write a line as it is."""
        self.stream.write(f"{line}\n")
        self.stream.flush()

    def redraw(self, share: float | None, text: str) -> None:
        """Draw a step's progress over the line that is open."""
        from bot.terminal.drawing import bar

        draw(self.stream, f"\r\x1b[K{bar(share, text, self.width)}")
        self.stream.flush()

    def erase(self) -> None:
        """Take the open line away."""
        draw(self.stream, "\r\x1b[K")
        self.stream.flush()


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # it is closed
        return False
