"""What the page's tables and lists say: rows of a report that may be anybody's, as text."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from bot import verdict_text
from bot.budget import readable
from bot.records import Json
from bot.report_document import CheckResult, Document
from bot.report_page.numbers import number, percent, short

RESULTS = {"pass": "✓ pass", "warn": "! remark", "fail": "✗ fail", "skip": "– not run"}
ORDER = ("fail", "skip", "warn", "pass")
SHOWN = 5000  # rows of a table
SHORT_VALUE = 24  # letters that a figure's large text may have
NO_DELTA = "Not measured: no weight was compared, or the adapter changes none that is stored plain."
NO_PROMPTS = "Not measured: the models were not run."
NO_ANSWERS = "Not asked. A report asks them where it is wanted while the models run: --report, at the level full."


class FigureTile(NamedTuple):
    """One of the six figures: what is large, and what stands beside it."""

    name: str
    value: str
    note: str
    measured: bool


class CheckRow(NamedTuple):
    """One check as the table has it; `status`: for its colour, of the four only."""

    id: str
    status: str
    result: str
    measured: str
    allowed: str
    why: str
    worst: list[str]


class Cause(NamedTuple):
    """What most likely went wrong, with the tensors that show it and the figures that it was told by."""

    sentence: str
    tensors: list[str]
    figures: list[tuple[str, str]]


class Answered(NamedTuple):
    """A prompt, and (whose, the answer, a remark) three times."""

    prompt: str
    texts: list[tuple[str, str, str]]


def tile(figure: verdict_text.Figure) -> FigureTile:
    """A figure's text, cut where a reader would: `0 of 1,000` is 0, and of 1,000."""
    if not figure.measured:
        return FigureTile(figure.name, figure.text, "", False)
    match = re.fullmatch(r"(\S+(?: ± \S+?)?)(?:,? (.+))?", figure.text, re.DOTALL)
    value, note = (match[1].rstrip(",;"), match[2] or "") if match else (figure.text, "")
    return (
        FigureTile(figure.name, value, note, True)
        if len(value) <= SHORT_VALUE
        else FigureTile(figure.name, figure.text, "", True)
    )


def cause(document: Document) -> Cause | None:
    """What most likely went wrong; None where nobody can tell, or nothing did."""
    sentence, likely = verdict_text.cause(document), document.cause or {}
    if sentence is None:
        return None
    pairs = [(str(name), number(value)) for name, value in (likely.get("figures") or {}).items()]
    figures = [(name, short(value, 4)) for name, value in pairs if value is not None]
    return Cause(sentence, [str(key) for key in likely.get("tensors") or ()], figures)


def delta(document: Document) -> list[Json]:
    """Every row of layers and modules."""
    return [
        {
            "layer": "–" if row.get("layer") is None else str(row["layer"]),
            "module": str(row.get("module")),
            "tensors": str(row.get("tensors", "")),
            "relative": _shown(row.get("relative"), percent),
            "retention": _shown(row.get("retention"), lambda value: short(value, 4)),
        }
        for row in document.delta[:SHOWN]
    ]


def comparison(document: Document) -> list[Json]:
    """The ways to use a quantised base or result."""
    return [
        {
            "what": str(row.get("what")),
            "published": row.get("published") is True,
            "not_run": str(row.get("not_run") or ""),
            "kl_ratio": _shown(row.get("kl_ratio"), short),
            "perplexity": _shown(row.get("perplexity"), lambda value: short(value, 4)),
            "top1": _shown(row.get("top1_agreement"), lambda value: percent(value, 3)),
            "size": _shown(row.get("bytes"), readable),
        }
        for row in document.comparison
    ]


def answers(document: Document) -> list[Answered]:
    """The prompts, and what each of the three models says."""
    asked = []
    for row in rows(document, "answers"):
        base, unmerged, merged = (str(row.get(name, "")).strip() for name in ("base", "unmerged", "merged"))
        remark = "the same as unmerged" if merged == unmerged else "differs from unmerged"
        texts = [("base", base, ""), ("unmerged", unmerged, ""), ("merged", merged, remark)]
        asked.append(Answered(str(row.get("prompt", "")), texts))
    return asked


def checks(document: Document, *, idle: bool) -> list[CheckRow]:
    """What did not pass first; `idle`: those that had nothing to check."""
    chosen = [_check(check) for check in document.checks if verdict_text.had_nothing(check) == idle]
    return sorted(chosen, key=lambda check: ORDER.index(check.status))


def absent(document: Document) -> dict[str, str]:
    """Why a section is empty."""
    reasons = {str(id): str(reason) for id, reason in document.not_run}
    full = f"Not run: {reasons['full']}." if "full" in reasons else ""
    weights = f"Not run: {reasons['weights']}." if "weights" in reasons else ""
    answers = f"Not asked: {reasons['answers']}." if "answers" in reasons else full or NO_ANSWERS
    return {"delta": weights or NO_DELTA, "prompts": full or NO_PROMPTS, "answers": answers}


def rows(document: Document, name: str) -> list[Json]:
    """A list of objects that the report may have."""
    return [row for row in document.json.get(name) or () if isinstance(row, dict)]


def _check(check: CheckResult) -> CheckRow:
    status = check.status if check.status in ORDER else "skip"
    return CheckRow(
        id=str(check.id),
        status=status,
        result=RESULTS.get(str(check.status), str(check.status)),
        measured=str(check.measured or ""),
        allowed=str(check.allowed or ""),
        why=str(check.why or ""),
        worst=[str(line) for line in check.worst or ()] if status != "pass" else [],
    )


def _shown(value: Any, form: Any) -> str:
    shown = number(value)
    return "–" if shown is None else str(form(shown))
