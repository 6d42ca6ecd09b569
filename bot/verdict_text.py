"""The verdict as everybody is told it: one sentence, six figures, the likely cause of a failure, and which checks had something
to check. Terminal, card, summary and report page say the same, from the document alone, whichever version wrote it.

All of it is plain text out of a report that nobody may have checked: whoever shows it escapes it.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from bot.report_document import CheckResult, Document

LEVELS: tuple[Literal["full", "weights"], ...] = ("full", "weights")
# The check that a level stands for: of `full`, the second where the result is stored quantised.
PROVEN_BY = {"full": ("behaviour", "requantised"), "weights": ("touched",)}
RAN = {"pass", "warn"}
# What a check measures that passed because there was nothing to look at.
NOTHING = frozenset({"none", "no report", "single file", "plain", "not told", "not plain", "no delta"})
CHANGED = ("merged", "replaced", "rows", "new")  # of the kinds in merge.tensors: what the adapter had a part in
SHARE = re.compile(r"([\d,]+) of ([\d,]+)\b")
COUNT = re.compile(r"([\d,]+) \w+")


class Figure(NamedTuple):
    """One of the six. `measured` False: the text says why there is no number."""

    id: str
    name: str
    text: str
    measured: bool = True


def level(document: Document) -> Literal["files", "weights", "full"]:
    """The hardest level whose own check ran through; of a report that is not verified, the hardest that was tried."""
    counts = RAN if document.verdict == "verified" else {*RAN, "fail"}
    ran = {check.id for check in document.checks if check.status in counts}
    return next((each for each in LEVELS if ran & {*PROVEN_BY[each]}), "files")


def sentence(document: Document) -> str:
    """What came of the verification, in a sentence or two."""
    if document.verdict != "verified":
        return _not_verified(document)
    if why := without_effect(document):
        return f"Verified at level {level(document)}, and this is the base under another name: {_inner(why)}"
    proven = f"{_of_weights(document)}; {_of_models(document)}"
    warned = [str(check.id) for check in document.checks if check.status == "warn"]
    remarks = f" With {_counted(len(warned), 'remark')}: {', '.join(warned)}." if warned else ""
    return f"Verified at level {level(document)}: {proven}.{remarks}"


def cause(document: Document) -> str | None:
    """The line under the sentence: what most likely went wrong; None where nothing did, or nobody can tell."""
    return next(iter(causes(document)), None)


def causes(document: Document) -> list[str]:
    """The same, and a line for whatever else went wrong."""
    likely = document.cause or {}
    also = likely.get("also") or () if isinstance(likely.get("also"), list | tuple) else ()
    sentences = [each.get("sentence") for each in (likely, *also)]
    known = [each for each in sentences if isinstance(each, str) and each]
    return [f"{'Besides' if number else 'Most likely'}: {each}" for number, each in enumerate(known)]


def figures(document: Document) -> tuple[Figure, ...]:
    """The six figures, always these and in this order."""
    return (
        _elements(document),
        _tensors(document),
        _retention(document),
        _delta(document),
        _k(document),
        _top1(document),
    )


def without_effect(document: Document) -> str:
    """What the check `effect` says where it did not pass: that the merge is the base, and why; else ""."""
    check = _check(document, "effect")
    return str(check.why) if check is not None and check.status in ("warn", "fail") else ""


def had_nothing(check: CheckResult) -> bool:
    """Whether a check passed because there was nothing to check: no such file, no earlier report."""
    return check.status == "pass" and str(check.measured) in NOTHING


# --- the sentence -------------------------------------------------------------------------------------------------


def _not_verified(document: Document) -> str:
    failed = [check for check in document.checks if check.status == "fail"]
    skipped = [check for check in document.checks if check.status == "skip"]
    if not failed and not skipped:
        return "Not verified: the report names no check that failed."
    first, *others = failed or skipped
    what = "failed" if failed else "could not be run"
    measured = f" ({first.measured})" if failed and first.measured else ""
    rest = [f"{_counted(len(others), 'other check')} {what}"] if others else []
    rest += [f"{_counted(len(skipped), 'check')} could not be run"] if failed and skipped else []
    end = f" Besides, {' and '.join(rest)}." if rest else ""
    return f"Not verified: {first.id} {what}{measured}: {_inner(str(first.why))}{end}"


def _of_weights(document: Document) -> str:
    """What is known of the merged weights."""
    touched, packed = _check(document, "touched"), _check(document, "quantised")
    if touched is None or touched.status not in RAN:
        return "the files are whole, and no weight was compared"
    count = _compared(document)[1]
    if touched.status == "warn":
        return f"{touched.measured} from base plus adapter, within the error of another arithmetic ({touched.allowed})"
    exact = f"every one of {count:,} weights is base plus adapter, rounded once"
    if packed is None or packed.status not in RAN:
        return exact
    stored = f"all quantised tensors ({_number(packed)}) are what their library makes of the exact merge, bit for bit"
    return f"{stored}; of the others {exact}" if count else stored


def _of_models(document: Document) -> str:
    """What is known of what the model does."""
    behaviour, stored = _check(document, "behaviour"), _check(document, "requantised")
    if behaviour is not None and behaviour.status in RAN:
        number = _k(document)
        return "the merged model answers as the unmerged one" + (f" (K = {number.text})" if number.measured else "")
    if stored is not None and stored.status in RAN:
        keeps = "keeps what the adapter taught" if stored.status == "pass" else "has lost what the adapter taught"
        return f"the quantised model {keeps} ({stored.measured}, at most {_limit(stored)})"
    return "the models were not run"


# --- the figures --------------------------------------------------------------------------------------------------


def _elements(document: Document) -> Figure:
    id, name = "elements", "elements that differ"
    touched, packed = _check(document, "touched"), _check(document, "quantised")
    if touched is None or touched.status == "skip":
        return Figure(id, name, _why_not(document, touched, "weights"), False)
    differ, count, others = _compared(document)
    return Figure(id, name, "; ".join([f"{differ:,} of {count:,}", *others, *_packed(packed)]))


def _packed(check: CheckResult | None) -> list[str]:
    """What is known of the quantised tensors."""
    if check is None or check.status == "skip":
        return []
    if check.status == "fail":
        return [f"quantised tensors: {check.measured}"]
    return [f"{_number(check)} quantised tensors bit for bit"]


def _compared(document: Document) -> tuple[int, int, list[str]]:
    """(elements that differ, elements compared, what was measured in other words) of touched and untouched together."""
    differ = count = 0
    others = []
    for id in ("touched", "untouched"):
        check = _check(document, id)
        if check is None or check.status == "skip":
            continue
        if share := SHARE.match(str(check.measured)):
            differ, count = differ + _whole(share[1]), count + _whole(share[2])
        else:
            others.append(f"{id}: {check.measured}")
    return differ, count, others


def _tensors(document: Document) -> Figure:
    id, name = "tensors", "tensors changed"
    coverage, keys = _check(document, "coverage"), _check(document, "keys")
    share = SHARE.match(str(coverage.measured)) if coverage is not None and coverage.status == "pass" else None
    total = COUNT.match(str(keys.measured)) if keys is not None and keys.status == "pass" else None
    if share and total:
        return Figure(id, name, f"{share[2]} of {total[1]}")
    counts = {kind: count for kind, count in document.merge.tensors.items() if kind != "dropped"}
    if counts:
        changed = sum(counts.get(kind, 0) for kind in CHANGED)
        return Figure(id, name, f"{changed:,} of {sum(counts.values()):,}, as planned")
    return Figure(id, name, _why_not(document, coverage, "weights"), False)


def _retention(document: Document) -> Figure:
    id, name = "retention", "delta that survived rounding"
    check = _check(document, "retention")
    kept = retention(document)
    if kept is not None:
        return Figure(id, name, f"{kept:.1%}")
    if check is None or check.status == "skip":
        return Figure(id, name, _why_not(document, check, "weights"), False)
    return Figure(
        id,
        name,
        "not measured: it is stored quantised" if check.measured == "not plain" else str(check.measured),
        False,
    )


def retention(document: Document) -> float | None:
    """How much of the delta survived rounding, 1.0 being all of it; None where it was not measured."""
    value = document.merge.retention
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    check = _check(document, "retention")
    number = re.match(r"\s*(-?\d+(?:\.\d+)?(?:e-?\d+)?)", str(check.measured or "")) if check is not None else None
    return float(number[1]) if number else None


def _delta(document: Document) -> Figure:
    id, name = "delta", "size of the delta, ‖D‖/‖W‖"
    sizes = [row["relative"] for row in document.delta if _is_number(row.get("relative"))]
    if not sizes:
        return Figure(id, name, "not measured", False)
    low, high = _percent(min(sizes)), _percent(max(sizes))
    return Figure(id, name, low if low == high else f"{low} to {high}, by layer and module")


def _k(document: Document) -> Figure:
    id, name = "k", "K, distance in roundings"
    floor, check = document.noise_floor or {}, _check(document, "behaviour")
    numbers = [floor.get(key) for key in ("ratio", "standard_error", "limit")]
    if check is not None and check.status != "skip" and all(map(_is_number, numbers)):
        ratio, error, limit = numbers
        return Figure(id, name, f"{ratio:.3g} ± {error:.1g}, at most {limit:.3g}")
    stored = _check(document, "requantised")
    if stored is not None and stored.status != "skip" and stored.measured != "not run":
        return Figure(id, "KL ratio, of what the adapter moves", f"{_bare(stored)}, at most {_limit(stored)}")
    return Figure(id, name, _why_not(document, check or stored, "full"), False)


def _top1(document: Document) -> Figure:
    id, name = "top1", "top-1 agreement"
    floor = document.noise_floor or {}
    if _is_number(share := floor.get("top1_agreement")) and _is_number(positions := floor.get("positions")):
        return Figure(id, name, f"{share:.1%} of {positions:,} positions")
    row = next((row for row in document.comparison if row.get("published")), {})
    if _is_number(share := row.get("top1_agreement")):
        return Figure(id, name, f"{share:.1%}, with the model as trained")
    check = _check(document, "behaviour") or _check(document, "requantised")
    return Figure(id, name, _why_not(document, check, "full"), False)


# --- small things -------------------------------------------------------------------------------------------------


def _check(document: Document, id: str) -> CheckResult | None:
    return next((check for check in document.checks if check.id == id), None)


def _why_not(document: Document, check: CheckResult | None, wanted: str) -> str:
    """Why something was not run: the check's own words, else those of the level that it belongs to."""
    if check is not None and check.status == "skip":
        return f"not run: {_inner(str(check.why).removeprefix('Not run: '))}".rstrip(".")
    if check is not None:
        return f"not measured: {check.measured}"
    reason = next((reason for id, reason in document.not_run if id == wanted), None)
    return f"not run: {reason}" if reason else "not run"


def _inner(text: str) -> str:
    """A sentence that goes on after a colon: an ordinary first word without its capital."""
    first = text.partition(" ")[0]
    return text[:1].lower() + text[1:] if first.istitle() and first.isalpha() else text


def _limit(check: CheckResult) -> str:
    """`0.2` of `KL ratio ≤ 0.2`."""
    return str(check.allowed).rpartition("≤")[2].strip()


def _bare(check: CheckResult) -> str:
    """`0.03` of `KL ratio 0.03`."""
    return str(check.measured).rpartition(" ")[2]


def _number(check: CheckResult) -> str:
    count = COUNT.match(str(check.measured))
    return count[1] if count else str(check.measured)


def _whole(digits: str) -> int:
    return int(digits.replace(",", "") or 0)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _percent(share: float) -> str:
    """Two digits, and never a power of ten: 0.012%, 1.5%, 150%."""
    return f"{100 * share:.2g}%" if share < 0.995 else f"{100 * share:.0f}%"
