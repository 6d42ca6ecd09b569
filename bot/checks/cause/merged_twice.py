"""The adapter was merged into what was merged already."""

from __future__ import annotations

from collections.abc import Iterable

from bot.checks.cause.evidence import Evidence
from bot.checks.cause.hypothesis import Cause, Explained, Hypothesis, Prediction, left_of, mean
from bot.checks.cause.names import listed
from bot.checks.cause.numbers import round_to
from bot.checks.cause.suspects import Sample, TensorPart, apply
from bot.checks.expected.changes import AddProduct
from bot.checks.finding import counted


def _twice(part: TensorPart, sample: Sample, evidence: Evidence) -> Iterable[Prediction]:
    step = part.step
    if not isinstance(step, AddProduct) or (step.magnitude is not None and step.along == "columns"):
        return
    for dtype in dict.fromkeys((part.wanted.source.dtype, sample.dtype)):
        once = round_to(sample.exact, dtype)
        yield Prediction(values=apply(part, sample.rows, once))


def _describe(label: str, explained: list[Explained], evidence: Evidence) -> Cause:
    keys = tuple(dict.fromkeys(each.part.key for each in explained))
    number = len({part.key for part in evidence.parts()})
    share = "all" if number == len(keys) else f"{len(keys)} of"
    which = "" if number == len(keys) else f": {listed(keys)}"
    matched = mean(each.matched for each in explained)
    what = (
        f"The adapter was merged twice: {share} {counted(number, 'tensor')} are what a second merge makes of a first "
        f"({matched:.1%} of their elements exactly){which}."
    )
    figures = {"times": 2.0, "matched": matched, "unexplained": left_of(explained)}
    return Cause(kind="merged-twice", sentence=what, tensors=keys, figures=figures)


MERGED_TWICE = Hypothesis(name="merged twice", predict=_twice, describe=_describe)
