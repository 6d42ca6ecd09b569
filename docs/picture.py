"""Draws docs/a-run.svg, the picture in the README, from what the demo printed (docs/demo.md): `python docs/picture.py`."""

from __future__ import annotations

import re
import textwrap
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
PAGE, PICTURE = HERE / "demo.md", HERE / "a-run.svg"
FIRST, LAST = (
    "$ adapter-merge run",
    "  http://",
)  # of the first run: from the command to the address of what it published
LEFT_OUT = (
    "files  ",
    "download  ",
    "fingerprint  ",
    "note  ",
    "Running ",
    "[…]",
    "▸ Reading",
    "▸ Downloading",
    "Created",
)
AMOUNT = re.compile(r"  [\d.]+ [kMG]?B\b")
GOOD_NEWS = ("✓", "Verified", "merged model")  # the sentence goes on in a second line
COLUMNS, LINE, ADVANCE, SIZE, MARGIN = 98, 18, 7.8, 13, 16  # of the page in characters; the rest in pixels

STYLE = f"""
  text {{ font: {SIZE}px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #1f2328; }}
  rect {{ fill: #f6f8fa; stroke: #d1d9e0; }}
  .strong {{ font-weight: bold; }} .good {{ fill: #116329; }} .quiet {{ fill: #59636e; }}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #e6edf3; }} rect {{ fill: #151b23; stroke: #3d444d; }} .good {{ fill: #57d364; }} .quiet {{ fill: #9198a1; }}
  }}
"""


def lines(page: str) -> list[str]:
    """The lines of the demo's first run that say what it did and how that was proven."""
    run = FIRST + page.partition(FIRST)[2]
    wanted: list[str] = []
    for line in run.splitlines():
        if line.startswith(LAST):
            break
        blank = not line.strip()
        if line.strip().startswith(LEFT_OUT) or AMOUNT.match(line) or (blank and (not wanted or not wanted[-1])):
            continue
        wanted += textwrap.wrap(line, COLUMNS, drop_whitespace=False) if len(line) > COLUMNS else [line]
    return wanted


def drawn(page: str) -> str:
    """The picture: text stays text, and a reader's dark mode is followed."""
    shown = lines(page)
    width, height = round(COLUMNS * ADVANCE) + 2 * MARGIN, LINE * len(shown) + 2 * MARGIN
    rows = [
        f'  <text y="{MARGIN + LINE * number + SIZE}"{_look(line)}>{_cells(line)}</text>'
        for number, line in enumerate(shown)
        if line.strip()
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    title = "  <title>adapter-merge run: the plan, the proof, and what was published</title>"
    frame = f'  <rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>'
    maker = "  <!-- Drawn by docs/picture.py from docs/demo.md -->"
    return "\n".join([head, title, maker, f"  <style>{STYLE}  </style>", frame, *rows, "</svg>"]) + "\n"


def _look(line: str) -> str:
    if line.startswith(("$", "▸")):
        return ' class="strong"'
    return ' class="strong good"' if line.startswith(GOOD_NEWS) else ""


def _cells(line: str) -> str:
    """What stands between two spaces or more, each at its column: so that columns stand in line in any font."""
    found = re.finditer(r"\S+(?: \S+)*", line)
    return "".join(_cell(one[0], MARGIN + ADVANCE * one.start()) for one in found)


def _cell(text: str, x: float) -> str:
    return f'<tspan x="{x:.1f}">{escape(text, quote=False)}</tspan>'


if __name__ == "__main__":
    PICTURE.write_text(drawn(PAGE.read_text("utf-8")), "utf-8")
