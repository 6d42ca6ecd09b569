"""The findings as a table that a person reads: plain text, at most 100 columns."""

from __future__ import annotations

import textwrap

from bot.budget import readable
from bot.records import Finding, Json, Report

WIDTH = 100
GAP = "  "
LONGEST = {"measured": 24, "allowed": 14}
COLUMNS = ("KL ratio", "perplexity", "top-1", "size")
HEADING = Finding(id="check", status="pass", measured="measured", allowed="allowed", why="why")


def table(report: Report) -> str:
    """One line per check, the reasons wrapped beside it, examples below what did not pass; then the verdict."""
    findings = [*report.findings, *(_not_run(id, reason) for id, reason in report.not_run)]
    widths = (
        max(len(finding.id) for finding in (HEADING, *findings)),
        len("pass"),
        *(
            min(longest, max(len(getattr(finding, column)) for finding in (HEADING, *findings)))
            for column, longest in LONGEST.items()
        ),
    )
    lines = [_row(widths, ("check", "", "measured", "allowed"), "why")]
    for finding in findings:
        lines += _lines(widths, finding)
    compared = comparison_lines(report.document.comparison)
    ending = f"{report.verdict} at level {report.level}"
    return "\n".join([*lines, *compared, "", ending, *cause_lines(report.document.cause)])


def cause_lines(cause: Json | None) -> list[str]:
    """What most likely went wrong, and what else did; [] where nothing did."""
    if not cause:
        return []
    sentences = [
        f"Most likely: {cause['sentence']}",
        *(f"Besides: {other['sentence']}" for other in cause.get("also", ())),
    ]
    return [line for sentence in sentences for line in textwrap.wrap(sentence, WIDTH, subsequent_indent="  ")]


def comparison_lines(rows: list[Json]) -> list[str]:
    """The ways to use a quantised base or result, side by side; [] where nothing was compared."""
    if not rows:
        return []
    labels = [str(row.get("what")) + (" (this model)" if row.get("published") else "") for row in rows]
    cells = [("way", *COLUMNS), *((label, *comparison_cells(row)) for label, row in zip(labels, rows, strict=True))]
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    aligned = [[f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)] for row in cells]
    lines = [GAP.join([f"{row[0]:<{widths[0]}}", *rest]) for row, rest in zip(cells, aligned, strict=True)]
    notes = [f"{row['id']}: not run, {row['not_run']}" for row in rows if row.get("not_run")]
    return ["", *(line.rstrip() for line in lines), *notes]


def comparison_cells(row: Json) -> list[str]:
    """KL ratio, perplexity, top-1 agreement and size of one way, as text."""
    forms = {
        "kl_ratio": "{:.2g}".format,
        "perplexity": "{:.4g}".format,
        "top1_agreement": "{:.1%}".format,
        "bytes": readable,
    }
    return [form(row[key]) if isinstance(row.get(key), int | float) else "–" for key, form in forms.items()]


def _not_run(id: str, reason: str) -> Finding:
    return Finding(id=id, status="skip", measured="not run", allowed="", why=reason)


def _lines(widths: tuple[int, ...], finding: Finding) -> list[str]:
    before = sum(widths) + len(GAP) * len(widths)
    why = textwrap.wrap(finding.why, WIDTH - before) or [""]
    rows = [_row(widths, (finding.id, finding.status, finding.measured, finding.allowed), why[0])]
    rows += [" " * before + more for more in why[1:]]
    if finding.status != "pass":
        indent = " " * (widths[0] + len(GAP))
        for example in finding.worst:
            rows += textwrap.wrap(example, WIDTH, initial_indent=indent, subsequent_indent=indent + GAP)
    return rows


def _row(widths: tuple[int, ...], cells: tuple[str, ...], why: str) -> str:
    padded = [f"{_cut(cell, width):<{width}}" for cell, width in zip(cells, widths, strict=True)]
    return GAP.join([*padded, why]).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
