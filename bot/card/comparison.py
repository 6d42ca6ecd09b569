"""What quantisation costs, as a small table: the ways to use base and adapter, measured on the same texts."""

from __future__ import annotations

from bot.card.markdown import cell
from bot.checks.table import comparison_cells
from bot.records import Json
from bot.report_document import Document

HEAD = ("way to use it", "KL ratio", "perplexity", "top-1 agreement", "size")
WORDS = (
    "KL ratio: the distance from the model as trained, as a share of what the adapter moves; 0 is the same, and at 1 the tune "
    "is gone. Top-1 agreement: with the model as trained."
)


def section(document: Document) -> str:
    """The section with its heading; "" where nothing is quantised, or nothing was measured."""
    rows = document.comparison
    if not rows:
        return ""
    lines = [f"| {' | '.join(HEAD)} |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    lost = [
        f"- {cell(str(row.get('what')))}: not run, {cell(str(row['not_run']))}." for row in rows if row.get("not_run")
    ]
    return "\n".join(["## What quantisation costs", "", *lines, "", WORDS, *(["", *lost] if lost else []), "", ""])


def _cells(row: Json) -> list[str]:
    what = cell(str(row.get("what")))
    return [f"**{what} (this model)**" if row.get("published") else what, *comparison_cells(row)]
