"""Rows and columns of a square delta exchanged."""

from __future__ import annotations

from collections.abc import Iterable

from bot.checks.cause.evidence import Evidence
from bot.checks.cause.hypothesis import Cause, Explained, Hypothesis, Prediction, left_of
from bot.checks.cause.names import listed
from bot.checks.cause.suspects import Sample, TensorPart
from bot.checks.finding import counted


def _transposed(part: TensorPart, sample: Sample, evidence: Evidence) -> Iterable[Prediction]:
    if part.is_square_product:
        yield Prediction(values=part.exact(sample.rows, sample.source, transposed=True))


def _describe(label: str, explained: list[Explained], evidence: Evidence) -> Cause:
    keys = tuple(dict.fromkeys(each.part.key for each in explained))
    left = left_of(explained)
    square = len([part for part in evidence.parts() if part.is_square_product])
    what = (
        f"The delta was added transposed in {len(explained)} of {counted(square, 'square weight')}, which leaves {left:.1%} of "
        f"the deviation unexplained: {listed(keys)}."
    )
    return Cause(kind="transposed", sentence=what, tensors=keys, figures={"unexplained": left})


TRANSPOSED = Hypothesis(name="transposed", predict=_transposed, describe=_describe)
