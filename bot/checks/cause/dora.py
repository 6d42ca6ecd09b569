"""DoRA taken for LoRA: its magnitudes left out, or its norm taken of the base."""

from __future__ import annotations

from collections.abc import Iterable

from bot.checks.cause.evidence import Evidence
from bot.checks.cause.hypothesis import Cause, Explained, Hypothesis, Prediction, left_of
from bot.checks.cause.suspects import Sample, TensorPart
from bot.checks.expected.changes import AddProduct
from bot.checks.finding import counted

SENTENCES = {
    "none": "DoRA's magnitudes were left out: {} are base plus B·A, without them.",
    "base": "DoRA's norm is the base's: {} are scaled by m/‖W‖, not by m/‖W + D‖.",
}


def _without_norm(part: TensorPart, sample: Sample, evidence: Evidence) -> Iterable[Prediction]:
    if isinstance(part.step, AddProduct) and part.step.magnitude is not None:
        for norm in SENTENCES:
            yield Prediction(values=part.exact(sample.rows, sample.source, norm_of=norm), label=norm)


def _describe(label: str, explained: list[Explained], evidence: Evidence) -> Cause:
    keys = tuple(dict.fromkeys(each.part.key for each in explained))
    what = SENTENCES[label].format(counted(len(keys), "tensor"))
    return Cause(kind="dora-magnitude", sentence=what, tensors=keys, figures={"unexplained": left_of(explained)})


DORA = Hypothesis(name="DoRA's magnitude", predict=_without_norm, describe=_describe)
