"""Lines and tables as plain text: for pipes, files and logs. The same whatever the environment says."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from bot.events import Parts, TextLine, TextTable

WIDTH = 100  # columns of a table with a head; sentences and lists run on, so that whoever searches them gets them whole
GAP = "  "
CELL = 24  # columns that a cell before the last one gets at most
LAST = 30  # columns that the last one gets at least


def plain(parts: Parts) -> str:
    """The parts, one below the other."""
    return "\n".join(line for part in parts for line in _lines(part))


def _lines(part: TextLine | TextTable) -> list[str]:
    if isinstance(part, TextLine):
        return part.text.split("\n")
    rows = [part.head, *part.rows] if part.head else [*part.rows]
    widths = _widths(rows, WIDTH - part.indent if part.head else None)
    return [" " * part.indent + line if line else "" for row in rows for line in _row(row, widths)]


def _widths(rows: Sequence[tuple[str, ...]], room: int | None) -> list[int]:
    """Columns for each cell. `room`: all that there are; None: as many as it takes."""
    longest = [
        max((len(line) for cell in column for line in cell.split("\n")), default=0)
        for column in zip(*rows, strict=True)
    ]
    if room is None or not longest:
        return longest
    widths = [min(width, CELL) for width in longest[:-1]]
    left = room - sum(widths) - len(GAP) * len(widths)
    return [*widths, min(longest[-1], max(LAST, left))]


def _row(row: tuple[str, ...], widths: Sequence[int]) -> list[str]:
    cells = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    height = max(map(len, cells), default=0)
    padded = [[*cell, *[""] * (height - len(cell))] for cell in cells]
    lines = zip(*padded, strict=True)
    return [GAP.join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a cell; what goes on below is indented as its first line is."""
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(line, max(width, 1), subsequent_indent=indent) or [""]
    return lines
