"""Lines, tables and a bar for a terminal of any width, by rich. Whatever is drawn is text: nothing in it is markup."""

from __future__ import annotations

import io
import re
import time

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from bot.events import Parts, TextLine, TextTable, Tone
from bot.terminal.streams import visible

STYLES: dict[Tone, str] = {
    "plain": "", "strong": "bold", "quiet": "dim", "good": "bold green", "remark": "yellow", "bad": "bold red",
}  # fmt: skip
NARROWEST = 20  # columns: a terminal that says less is not believed
READABLE = 120  # columns of a paragraph
BAR = 24
BLANKS = re.compile(r"(?: |\x1b\[[0-9;]*m)+$")
GAP = 2
LAST = 34  # columns that the last cell of a row needs beside the others; with less it goes below them
LISTED = 20  # the same of a list, whose names are short


def drawn(parts: Parts, width: int) -> str:
    """The parts with what the terminal can show of their tones (TERM, COLORTERM, NO_COLOR decide), ending in a line end."""
    console = _console(width)
    for part in parts:
        if isinstance(part, TextLine):
            _paragraph(part, console)
        else:
            console.print(Padding(_table(part, console.width - part.indent), (0, 0, 0, part.indent)))
    return _printed(console)


def bar(share: float | None, text: str, width: int) -> str:
    """One line, cut to the width: how much of a step is done, and what is said of it. `share`: None where nobody knows."""
    console = _console(width - 1)
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    grid.add_row(_mark(share, console.width), Text(visible(text), overflow="ellipsis"))
    console.print(Padding(grid, (0, 0, 0, 2)), end="")
    return _printed(console).rstrip("\n")


def _mark(share: float | None, width: int) -> RenderableType:
    if share is None:
        return Spinner("line").render(time.monotonic())
    return ProgressBar(total=1.0, completed=share, width=max(4, min(BAR, width // 4)))


def _console(width: int) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=max(width, NARROWEST), markup=False, highlight=False, emoji=False
    )


def _printed(console: Console) -> str:
    """What was printed, without the blanks that fill its lines."""
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{BLANKS.sub(_without_blanks, line)}\n" for line in console.file.getvalue().splitlines())


def _without_blanks(end: re.Match[str]) -> str:
    return end[0].replace(" ", "")


def _paragraph(line: TextLine, console: Console) -> None:
    indent, longest = len(line.text) - len(line.text.lstrip(" ")), max(map(len, line.text.split()), default=0)
    if longest + indent > console.width:  # as an address: left to the terminal, it stays one to be copied
        console.print(_text(line.text, line.tone), soft_wrap=True)
        return
    text = Padding(_text(line.text.lstrip(" "), line.tone), (0, 0, 0, indent))
    console.print(text, width=min(console.width, READABLE))


# --- tables -------------------------------------------------------------------------------------------------------


def _table(part: TextTable, width: int) -> Table:
    """Its columns side by side as far as they fit; the others of a row stand below it, indented."""
    beside = _beside(part, width)
    table = Table.grid(padding=(0, GAP, 0, 0))
    for _ in range(beside):
        table.add_column(overflow="fold")
    if beside < _columns(part):
        return _stacked(part, beside)
    if part.head:
        table.add_row(*(_text(cell, "strong") for cell in part.head))
    for row, tone in _toned(part):
        table.add_row(*(_cell(part, row, number, tone) for number in range(beside)))
    return table


def _stacked(part: TextTable, beside: int) -> Table:
    """One column of small tables: the first cells of each row in line with those of the others, then what did not fit."""
    longest = [max(_longest(row[number]) for row in _rows(part)) for number in range(beside)]
    table = Table.grid()
    head: list[tuple[tuple[str, ...], Tone]] = [(part.head, "strong")] if part.head else []
    for row, tone in (*head, *_toned(part)):
        line = Table.grid(padding=(0, GAP, 0, 0))
        for size in longest:
            line.add_column(min_width=size, overflow="fold")
        line.add_row(*(_cell(part, row, number, tone) for number in range(beside)))
        table.add_row(line)
        if row is not part.head:
            for cell in filter(None, row[beside:]):
                table.add_row(Padding(_lines(cell), (0, 0, 0, GAP)))
    return table


def _beside(part: TextTable, width: int) -> int:
    """How many of a row's cells stand side by side."""
    longest = [max(_longest(row[number]) for row in _rows(part)) for number in range(_columns(part))]
    if sum(longest[:-1]) + GAP * (len(longest) - 1) + min(longest[-1], LAST if part.head else LISTED) <= width:
        return len(longest)
    fitting = [count for count in range(1, len(longest)) if sum(longest[:count]) + GAP * (count - 1) <= width]
    return max(fitting, default=1)


def _rows(part: TextTable) -> list[tuple[str, ...]]:
    return [*([part.head] if part.head else []), *part.rows]


def _columns(part: TextTable) -> int:
    return len(next(iter(_rows(part)), ()))


def _toned(part: TextTable) -> list[tuple[tuple[str, ...], Tone]]:
    return [(row, part.tones[number] if part.tones else "plain") for number, row in enumerate(part.rows)]


def _longest(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def _cell(part: TextTable, row: tuple[str, ...], number: int, tone: Tone) -> RenderableType:
    """A row's tone is that of its first cells; what is written about it stays plain. Of a list, names stand back."""
    if tone == "strong" and row is part.head:
        return _text(row[number], tone)
    if number == len(row) - 1:
        return _lines(row[number])
    return _text(row[number], "quiet" if tone == "plain" and not part.head else tone)


def _lines(cell: str) -> Group:
    """The lines of a cell; the indent of each goes on where it is wrapped."""
    indents = [(len(line) - len(line.lstrip(" ")), line.lstrip(" ")) for line in cell.split("\n")]
    return Group(*(Padding(_text(line), (0, 0, 0, indent)) for indent, line in indents))


def _text(text: str, tone: Tone = "plain") -> Text:
    return Text(visible(text), style=STYLES[tone], overflow="fold")
