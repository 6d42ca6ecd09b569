"""The right numbers, rounded otherwise than once: each known way is carried out, and held to what is stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from bot.checks.cause.evidence import Evidence
from bot.checks.cause.hypothesis import Cause, Explained, Hypothesis, Prediction
from bot.checks.cause.numbers import Floats, matrix, round_to, toward_zero
from bot.checks.cause.suspects import Sample, TensorPart
from bot.checks.expected.changes import AddProduct
from bot.checks.finding import counted

FLOAT32 = "float32 accumulation, then one rounding"
DELTA = "delta rounded to the storage dtype, then added"
PRODUCT = "the product computed in the storage dtype, then added"
BASE = "base cast first, then all in the storage dtype"
HALF, BRAIN = "by way of float16", "by way of bfloat16"
TRUNCATED = "toward zero, not to nearest"


def _otherwise(part: TensorPart, sample: Sample, evidence: Evidence) -> Iterable[Prediction]:
    dtype = sample.dtype
    if not part.wanted.touched:
        if dtype != part.wanted.source.stored.dtype:
            yield from _by_way_of(sample.exact, dtype)
        return
    if isinstance(part.step, AddProduct) and part.step.magnitude is None:
        for label, values in _products(part, part.step, sample):
            yield Prediction(values=values, label=label)
    yield from _by_way_of(sample.exact, dtype)
    yield Prediction(values=toward_zero(sample.exact, dtype), label=TRUNCATED)


def _by_way_of(exact: Floats, dtype: str) -> Iterator[Prediction]:
    for narrow, label in (("F16", HALF), ("BF16", BRAIN)):
        if narrow != dtype:
            yield Prediction(values=round_to(exact, narrow), label=label)


def _products(part: TensorPart, step: AddProduct, sample: Sample) -> Iterator[tuple[str, Floats]]:
    """(name, W + D as that arithmetic has it before it is stored)."""
    dtype, start = sample.dtype, sample.source
    delta = sample.exact - start
    single = (start.astype(np.float32) + delta.astype(np.float32)).astype(np.float64)
    yield FLOAT32, single
    yield DELTA, start + round_to(delta, dtype)
    if step.right is not None:
        own = [step.lines.index(row) for row in sample.rows]
        left, right = (round_to(matrix(factor), dtype) for factor in (step.left, step.right))
        inner = round_to((left[own] @ right), dtype)
        in_storage = round_to(inner * step.scaling, dtype)
        yield PRODUCT, start + in_storage
        if part.wanted.source.stored.dtype != dtype:
            yield BASE, round_to(start, dtype) + in_storage
    if part.wanted.source.stored.dtype != dtype:
        yield BASE, round_to(start, dtype) + round_to(delta, dtype)
        yield HALF, round_to(round_to(start, "F16") + round_to(delta, "F16"), "F16")


def _cause(label: str, explained: list[Explained], evidence: Evidence) -> Cause:
    remark = not evidence.failed("touched", "untouched")
    looked_at = {each.part.key for each in explained}
    # Where nothing is wrong, only some tensors were looked at, and all that differ were rounded.
    tallies = [tally for tally in evidence.tallies if tally.key in looked_at or (remark and tally.wrong)]
    keys = tuple(tally.key for tally in tallies)
    differ, elements = sum(tally.wrong for tally in tallies), sum(tally.elements for tally in tallies)
    matched = min(each.matched for each in explained)
    figures = {"differ": differ, "elements": elements, "matched": matched}
    what = (
        f"Rounded differently ({label}): {differ:,} of {elements:,} elements of {counted(len(keys), 'tensor')} differ"
    )
    what += f", and {matched:.1%} or more of each tensor are what this arithmetic gives." if matched > 0 else "."
    return Cause(kind="rounded", sentence=what, tensors=keys, figures=figures, remark=remark)


def _within_bounds(remaining: list[Explained], evidence: Evidence) -> Iterable[tuple[Cause, list[Explained]]]:
    """What lies within the error of an arithmetic, by the bound that the sweep holds it to."""
    from bot.checks.elementwise.arithmetic import NONE_FITS, name_of

    own = [each for each in remaining if each.part.wanted.touched and each.part.arithmetic < NONE_FITS]
    if own:
        yield _cause(name_of(max(each.part.arithmetic for each in own)), own, evidence), own


ROUNDED = Hypothesis(name="rounded", predict=_otherwise, describe=_cause, remaining=_within_bounds)
