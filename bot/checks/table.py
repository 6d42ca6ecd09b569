"""The findings as a table that a person reads: plain text, at most 100 columns."""

from __future__ import annotations

import textwrap

from bot.records import Finding, Report

WIDTH = 100
GAP = "  "
LONGEST = {"measured": 24, "allowed": 14}
HEADING = Finding(id="check", status="pass", measured="measured", allowed="allowed", why="why")


def table(report: Report) -> str:
    """One line per check, the reasons wrapped beside it, examples below what did not pass; then the verdict."""
    found = [*report.findings, *(_not_run(id, reason) for id, reason in report.not_run)]
    widths = (
        max(len(one.id) for one in (HEADING, *found)),
        len("pass"),
        *(
            min(longest, max(len(getattr(one, column)) for one in (HEADING, *found)))
            for column, longest in LONGEST.items()
        ),
    )
    lines = [_row(widths, ("check", "", "measured", "allowed"), "why")]
    for one in found:
        lines += _lines(widths, one)
    return "\n".join([*lines, "", f"{report.verdict} at level {report.level}"])


def _not_run(id: str, reason: str) -> Finding:
    return Finding(id=id, status="skip", measured="not run", allowed="", why=reason)


def _lines(widths: tuple[int, ...], one: Finding) -> list[str]:
    before = sum(widths) + len(GAP) * len(widths)
    why = textwrap.wrap(one.why, WIDTH - before) or [""]
    rows = [_row(widths, (one.id, one.status, one.measured, one.allowed), why[0])]
    rows += [" " * before + more for more in why[1:]]
    if one.status != "pass":
        indent = " " * (widths[0] + len(GAP))
        for example in one.worst:
            rows += textwrap.wrap(example, WIDTH, initial_indent=indent, subsequent_indent=indent + GAP)
    return rows


def _row(widths: tuple[int, ...], cells: tuple[str, ...], why: str) -> str:
    padded = [f"{_cut(cell, width):<{width}}" for cell, width in zip(cells, widths, strict=True)]
    return GAP.join([*padded, why]).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
