"""A report as a person reads it: what decides, or with everything that was looked at. Lines and tables, for whoever shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from bot import verdict_text
from bot.budget import readable
from bot.events import Parts, TextBlock, TextLine, TextTable, Tone
from bot.report_document import CheckResult, Document, Json

GROUPS = ("files", "config", "tokenizer", "weights", "behaviour")
MARKS = {"pass": "pass", "warn": "remark", "fail": "FAIL", "skip": "not run"}
TONES: dict[str, Tone] = {"pass": "plain", "warn": "remark", "fail": "bad", "skip": "remark"}
COLUMNS = ("KL ratio", "perplexity", "top-1", "size")
HEAD = ("check", "result", "measured", "allowed", "why")
WORDS = {"warn": "with a remark", "fail": "failed", "skip": "not run"}
EMPTY = TextLine(text="")


def block(document: Document) -> TextBlock:
    """What decides; with every check in its details."""
    return TextBlock(parts=summary(document), details=everything(document))


def summary(document: Document) -> Parts:
    """The verdict, the six figures, each check that did not pass with its examples, and how many did."""
    return (*_verdict(document), *_open(document), *comparison(document.comparison), EMPTY, _tally(document))


def everything(document: Document) -> Parts:
    """The verdict, the six figures, and every check, group by group."""
    rows: list[tuple[str, ...]] = []
    tones: list[Tone] = []
    for group, checks in by_group(document.checks):
        rows += [(group, "", "", "", "")] if group else []
        tones += ["strong"] if group else []
        rows += [_row(check) for check in checks]
        tones += [
            "quiet" if verdict_text.had_nothing(check) else TONES.get(str(check.status), "plain") for check in checks
        ]
    rows += [(str(id), MARKS["skip"], "", "", str(reason)) for id, reason in document.not_run]
    tones += [TONES["skip"]] * len(document.not_run)
    table = TextTable(head=HEAD, rows=tuple(rows), tones=tuple(tones))
    return (*_verdict(document), EMPTY, table, *comparison(document.comparison), EMPTY, _tally(document))


def _row(check: CheckResult) -> tuple[str, ...]:
    status = str(check.status)
    return (str(check.id), MARKS.get(status, status), str(check.measured or ""), str(check.allowed or ""), _why(check))


def by_group(checks: Sequence[CheckResult]) -> Iterator[tuple[str, list[CheckResult]]]:
    """(group, its checks) in the order of GROUPS; those of a report without groups, or of others, come last, as ""."""
    for group in GROUPS:
        if members := [check for check in checks if check.group == group]:
            yield group, members
    if left := [check for check in checks if check.group not in GROUPS]:
        yield "", left


def comparison(rows: Sequence[Json]) -> Parts:
    """The ways to use a quantised base or result, side by side; () where nothing was compared."""
    if not rows:
        return ()
    labels = [str(row.get("what")) + (" (this model)" if row.get("published") else "") for row in rows]
    table = TextTable(
        head=("way to use it", *COLUMNS),
        rows=tuple((label, *comparison_cells(row)) for label, row in zip(labels, rows, strict=True)),
        tones=tuple("strong" if row.get("published") else "plain" for row in rows),
    )
    notes = (TextLine(text=f"{row.get('id')}: not run, {row['not_run']}") for row in rows if row.get("not_run"))
    return (EMPTY, table, *notes)


def comparison_cells(row: Json) -> list[str]:
    """KL ratio, perplexity, top-1 agreement and size of one way, as text."""
    forms = {
        "kl_ratio": "{:.2g}".format,
        "perplexity": "{:.4g}".format,
        "top1_agreement": "{:.1%}".format,
        "bytes": readable,
    }
    return [form(row[key]) if isinstance(row.get(key), int | float) else "–" for key, form in forms.items()]


def _verdict(document: Document) -> Parts:
    tone: Tone = "good" if document.verdict == "verified" else "bad"
    figures = verdict_text.figures(document)
    return (
        TextLine(text=verdict_text.sentence(document), tone=tone),
        *(TextLine(text=cause, tone="strong") for cause in verdict_text.causes(document)),
        EMPTY,
        TextTable(rows=tuple((figure.name, figure.text) for figure in figures), indent=2),
    )


def _open(document: Document) -> Parts:
    """The checks that did not pass, what failed first."""
    order = {"fail": 0, "skip": 1, "warn": 2}
    checks = sorted(
        (check for check in document.checks if check.status in order), key=lambda check: order[str(check.status)]
    )
    if not checks:
        return ()
    rows = [(MARKS[str(check.status)], str(check.id), f"{_measured(check)}\n{_why(check)}") for check in checks]
    tones = tuple(TONES[str(check.status)] for check in checks)
    return (EMPTY, TextTable(rows=tuple(rows), tones=tones, indent=2))


def _measured(check: CheckResult) -> str:
    return f"{check.measured}; allowed: {check.allowed}" if check.allowed else str(check.measured)


def _why(check: CheckResult) -> str:
    examples = check.worst if check.status != "pass" else ()
    return "\n".join([str(check.why or ""), *(f"  {example}" for example in examples)])


def _tally(document: Document) -> TextLine:
    """`33 checks: 31 passed, 11 of them with nothing to look at, 2 with a remark.`"""
    counts = Counter(str(check.status) for check in document.checks)
    idle = sum(map(verdict_text.had_nothing, document.checks))
    passed = f"{counts['pass']} passed" + (f" ({idle} had nothing to look at)" if idle else "")
    others = [f"{counts[status]} {words}" for status, words in WORDS.items() if counts[status]]
    return TextLine(text=f"{len(document.checks)} checks: {', '.join([passed, *others])}.", tone="quiet")
