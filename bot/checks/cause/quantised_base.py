"""Merged into weights that went through a quantised form, or put through one after the merge.

nf4 and fp4: blocks of 64 numbers along the rows, each divided by its largest and set to the nearest of 16 levels (Dettmers et al.
2023, arXiv 2305.14314, appendix E; fp4's levels are bitsandbytes'). Double quantisation moves the largest by less than a per cent,
which is left unexplained here. int8: each row divided by its largest over 127 (Dettmers et al. 2022, arXiv 2208.07339).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from bot.checks.cause.evidence import Evidence
from bot.checks.cause.hypothesis import Cause, Explained, Hypothesis, Prediction, left_of
from bot.checks.cause.numbers import Floats
from bot.checks.cause.suspects import Sample, TensorPart, squares
from bot.checks.finding import counted

BLOCK = 64
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4_SIZES = (0.0, 0.0052083333, 0.16666667, 0.25, 0.33333333, 0.5, 0.66666667, 1.0)
FP4 = tuple(sorted({sign * size for size in FP4_SIZES for sign in (-1.0, 1.0)}))
LEVELS = {"nf4": NF4, "fp4": FP4}
LIMIT = 0.2  # of the deviation that may stay unexplained: double quantisation, and a compute dtype


def _quantised(part: TensorPart, sample: Sample, evidence: Evidence) -> Iterable[Prediction]:
    if len(part.wanted.shape) < 2 or part.shape[0] < 2 or part.columns != (0, part.view[1]) or part.replaces:
        return
    for form, values in forms(part, sample, sample.source):
        yield Prediction(values=part.exact(sample.rows, values), label=f"base {form}",
                         details={"moved": squares(values - sample.source), "size": squares(sample.source)})  # fmt: skip
    for form, values in forms(part, sample, sample.exact):
        yield Prediction(values=values, label=f"result {form}",
                         details={"moved": squares(values - sample.exact), "size": squares(sample.exact)})  # fmt: skip


def forms(part: TensorPart, sample: Sample, weight: Floats) -> Iterator[tuple[str, Floats]]:
    """(form, the weight there and back) for every form and orientation that the rows at hand allow."""
    whole = len(sample.rows) == len(part.lines)
    for transposed in (False, True):
        if transposed and not whole:
            continue
        numbers = weight.T if transposed else weight
        if (whole and numbers.size % BLOCK == 0) or numbers.shape[1] % BLOCK == 0:
            for form, levels in LEVELS.items():
                back = _nearest_levels(np.ascontiguousarray(numbers).reshape(-1, BLOCK), np.array(levels))
                yield form, _as_it_was(back.reshape(numbers.shape), transposed)
        largest = np.abs(numbers).max(axis=1, keepdims=True)
        scale = np.where(largest > 0, largest, 1.0) / 127
        yield "int8", _as_it_was(np.rint(numbers / scale) * scale, transposed)


def _as_it_was(values: Floats, transposed: bool) -> Floats:
    return values.T if transposed else values


def _nearest_levels(blocks: Floats, levels: Floats) -> Floats:
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    scaled = blocks / np.where(largest > 0, largest, 1.0)
    middles = (levels[1:] + levels[:-1]) / 2
    values: Floats = levels[np.searchsorted(middles, scaled)] * largest
    return values


def _describe(label: str, explained: list[Explained], evidence: Evidence) -> Cause:
    what, _, form = label.partition(" ")
    keys = tuple(dict.fromkeys(each.part.key for each in explained))
    distance = (sum(e.details["moved"] for e in explained) / sum(e.details["size"] for e in explained)) ** 0.5
    left = left_of(explained)
    if what == "base":
        kind, front = "quantised-base", f"The merge was made into the base as {form} holds it, dequantised"
    else:
        kind, front = "quantised-result", f"The merge went through {form} and back after it was made"
    sentence = (
        f"{front}: {counted(len(keys), 'tensor')} lie {distance:.2g} of their size from what they must be, and "
        f"{1 - left:.1%} of that is {form}'s error."
    )
    figures = {"distance": distance, "unexplained": left}
    return Cause(kind=kind, sentence=sentence, tensors=keys, figures=figures)


QUANTISED_BASE = Hypothesis(name="quantised base", predict=_quantised, describe=_describe, costly=True, limit=LIMIT)
