"""A report in Markdown, for the card, the summary and the pull request: what decides first, then the checks."""

from __future__ import annotations

from bot import verdict_text
from bot.report_document import CheckResult, Document
from bot.report_text import by_group
from bot.untrusted.markdown import cell

MARKS = {"pass": "pass", "warn": "remark", "fail": "**FAIL**", "skip": "not run"}
HEAD = ("", "check", "measured", "allowed", "result")


def opening(document: Document) -> str:
    """The verdict, of a failure its likely cause, and the six figures."""
    figures = [f"| {cell(figure.name)} | {cell(figure.text)} |" for figure in verdict_text.figures(document)]
    causes = [f"**{cell(cause)}**" for cause in verdict_text.causes(document)]
    table = "\n".join(["| | |", "| --- | --- |", *figures])
    return "\n\n".join([cell(verdict_text.sentence(document)), *causes, table])


def checks_table(document: Document) -> str:
    """The checks that had something to look at, group by group; "" where none had."""
    rows = []
    for group, checks in by_group(document.checks):
        seen = [check for check in checks if not verdict_text.had_nothing(check)]
        rows += [_row(group if number == 0 else "", check) for number, check in enumerate(seen)]
    lines = [f"| {' | '.join(HEAD)} |".replace("|  |", "| |"), "| --- | --- | --- | --- | --- |", *rows]
    return "\n".join(lines) if rows else ""


def remarks(document: Document) -> list[str]:
    """A list entry for each check that did not simply pass, and for what was not run."""
    entries = [(check.id, check.why) for check in document.checks if check.status != "pass" and check.why]
    entries += [(id, f"not run: {reason}") for id, reason in document.not_run]
    return [f"- {cell(str(id))}: {cell(str(why))}" for id, why in entries]


def idle(document: Document) -> str:
    """The checks that had nothing to look at, folded; "" where all had something."""
    checks = [check for check in document.checks if verdict_text.had_nothing(check)]
    if not checks:
        return ""
    count = f"{len(checks)} more check{'' if len(checks) == 1 else 's'} passed with nothing to look at"
    entries = "\n".join(f"- {cell(str(check.id))}: {cell(str(check.why or ''))}" for check in checks)
    return f"<details><summary>{count}</summary>\n\n{entries}\n\n</details>"


def _row(group: str, check: CheckResult) -> str:
    status = str(check.status)
    cells = [group, *(cell(str(text or "")) for text in (check.id, check.measured, check.allowed))]
    return f"| {' | '.join(cells)} | {MARKS.get(status, cell(status))} |".replace("|  |", "| |")
