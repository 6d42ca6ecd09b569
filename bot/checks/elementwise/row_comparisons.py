"""The three comparisons of the sweep: touched tensors, untouched ones, and untouched ones whose dtype changes.

Each looks at a range of rows at once first (`at_once`), which settles what is right beyond doubt: with a right merge, nearly all of
it. Only what that leaves open is made again number by number, and judged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bot.checks.elementwise import arithmetic
from bot.checks.elementwise.arithmetic import BoundTerms, Magnitudes
from bot.checks.elementwise.at_once import READ, compare_at_once, nonfinite, same_when_cast
from bot.checks.elementwise.drift import LAST, measure
from bot.checks.elementwise.rederive import Numbers
from bot.checks.elementwise.steps import Parts, Steps, within
from bot.checks.elementwise.stored_rounding import ANY, STORED, clamp, keeps, round_once
from bot.checks.elementwise.tally import Tally
from bot.checks.expected.changes import AddProduct, Expected
from bot.checks.reading.checkpoint import FLOATS, TensorRef
from bot.checks.reading.rows import Opened, chunks, flat_view
from bot.checks.reading.stored_numbers import HELD_AS, Array, as_float64

LOOKED_AT = 1 << 19  # elements of one tensor that are asked which way they lean: 1 % too much shows in a tenth of that


@dataclass(frozen=True, kw_only=True)
class RowRange:
    """Some rows of one tensor, and of what it is made from; every range in `ranges` fits the working set.

    `steps` are shared by all row ranges of the tensor, and freed with the last of them. `clamps`: too large numbers should
    have been clamped; `foreign`: it need not be exact, and is asked whether it leans.
    """

    wanted: Expected
    merged: TensorRef
    steps: Steps
    clamps: bool
    foreign: bool
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class ExactRows:
    """Rows low to high of one tensor's view: the numbers it is made from, and what they become, in float64."""

    low: int
    high: int
    weight: Array
    exact: Array


def compare_touched(rows: RowRange, opened: Opened, tally: Tally) -> None:
    """Every element against the source's, changed by every step and rounded once; evaluated in float64."""
    wanted, merged, steps = rows.wanted, rows.merged, rows.steps
    every = max(1, merged.elements // LOOKED_AT)
    leans = rows.foreign and bool(steps) and all(isinstance(step, AddProduct) and step.right for step, _ in steps)
    for number, (low, high) in enumerate(rows.ranges):
        asked = leans and number % every == 0
        if asked or not compare_at_once(wanted, merged, steps, (low, high), opened, tally):
            for first, last in chunks((high - low, wanted.view[1])):
                _compare_each(rows, low + first, low + last, opened, tally, leans=asked)


def _compare_each(rows: RowRange, low: int, high: int, opened: Opened, tally: Tally, *, leans: bool) -> None:
    wanted, steps, clamps, dtype = rows.wanted, rows.steps, rows.clamps, rows.merged.stored.dtype
    actual = opened.wide_rows(rows.merged, low, high, wanted.view)
    weight = opened.wide_rows(wanted.source, low, high, wanted.view)
    exact = _exact(weight, steps, low, high, opened)
    part = ExactRows(low=low, high=high, weight=weight, exact=_clamped(exact, dtype, tally) if clamps else exact)
    right = round_once(part.exact, dtype)
    tally.elements += actual.size
    if not np.array_equal(right, actual):
        _blame(tally, _terms(part, steps, opened, dtype), right, actual, low)
    if leans:
        _measure_drift(rows, part, exact, actual, tally)
    before = _before(wanted, low, high, opened)
    if STORED not in tally.keeps:
        tally.keeps |= keeps(part.exact, _alone(wanted, before, weight, dtype, clamps), dtype)
        if not tally.keeps and bool(_terms(part, steps, opened, dtype).delta.any()):
            tally.keeps.add(ANY)
    if before is None:
        _count_bad(tally, weight, actual)
        tally.changed += actual.size
    else:
        size = _dot(before, before)
        if clamps:  # a clamped number says nothing of how much of the delta is left
            before = np.where(part.exact == exact, before, part.exact)
        _retain(tally, before, actual, part.exact - before, size)


def _measure_drift(rows: RowRange, part: ExactRows, exact: Array, actual: Array, tally: Tally) -> None:
    stored = rows.merged.stored.dtype
    if stored in LAST:
        wider = rows.wanted.source.stored.dtype != stored
        measure(tally.drifts, part.weight, exact, actual, stored, part.low, wider=wider)


def _clamped(exact: Array, dtype: str, tally: Tally) -> Array:
    """What the merge was asked to store of numbers that are too large for their dtype."""
    tally.clamped += int(np.count_nonzero(np.isinf(round_once(exact, dtype)) & np.isfinite(exact)))
    return clamp(exact, dtype)


def exact_rows(wanted: Expected, steps: Steps, low: int, high: int, opened: Opened) -> tuple[Array, Array]:
    """(what the base has there, what the merge makes of it), float64, by rows of the tensor's view."""
    weight = opened.wide_rows(wanted.source, low, high, wanted.view)
    return weight, _exact(weight, steps, low, high, opened)


def _before(wanted: Expected, low: int, high: int, opened: Opened) -> Array | None:
    """What the base has there, to measure the change by; None where it has no such tensor or one of another shape."""
    if wanted.base is None or wanted.base.stored.shape != wanted.shape or wanted.base.stored.dtype not in FLOATS:
        return None
    return opened.wide_rows(wanted.base, low, high, wanted.view)


def _alone(wanted: Expected, before: Array | None, weight: Array, dtype: str, clamps: bool) -> Array | None:
    """What would stand there without the adapter; None where nothing would, or something of another shape."""
    if before is None and (wanted.base is not None or wanted.uses):
        return None
    value = weight if before is None else before  # a head that is written apart, a layer that is there twice
    return clamp(value, dtype) if clamps else value


def _exact(weight: Array, steps: Steps, low: int, high: int, opened: Opened) -> Array:
    result = weight
    for step, ready, lines in within(steps, low, high):
        left, right = step.columns
        if (lines, left, right) == (range(low, high), 0, weight.shape[1]):
            return ready.exact(weight, low, high, opened)  # steps do not overlap: this is the only one here
        if result is weight:
            result = weight.copy()
        block = slice(lines.start - low, lines.stop - low, lines.step), slice(left, right)
        result[block] = ready.exact(weight[block], lines.start, lines.stop, opened)
    return result


def _terms(part: ExactRows, steps: Steps, opened: Opened, storage: str) -> BoundTerms:
    """What the error bounds are made of; between the steps' rectangles nothing is computed and nothing can err."""
    weight = part.weight.copy()
    delta, product = np.zeros_like(weight), np.zeros_like(weight)
    factor: Array | None = None
    shares: Magnitudes | None = None
    rank = length = 0
    for step, ready, lines in within(steps, part.low, part.high):
        block = slice(lines.start - part.low, lines.stop - part.low, lines.step), slice(*step.columns)
        parts: Parts = ready.parts(part.weight[block], lines.start, lines.stop, opened)
        weight[block], delta[block], product[block] = parts.weight, parts.delta, parts.product
        rank, length = max(rank, parts.rank), max(length, parts.length)
        if parts.factor is not None and parts.shares is not None:
            if factor is None or shares is None:
                factor = np.ones_like(weight)
                shares = Magnitudes(weight=delta, delta=delta, product=delta, value=delta).map(np.zeros_like)
            factor[block] = parts.factor
            for name in ("weight", "delta", "product", "value"):
                getattr(shares, name)[block] = getattr(parts.shares, name)
    return BoundTerms(
        exact=part.exact, weight=weight, delta=delta, magnitude=product, rank=rank, storage=storage,
        factor=factor, shares=shares, length=length,
    )  # fmt: skip


def _blame(tally: Tally, terms: BoundTerms, right: Array, actual: Array, low: int) -> None:
    """Sort the elements that differ into undecided and wrong, and find the arithmetic that explains them, and so all."""
    differs = right != actual  # NaN differs from everything, as it should
    some, stored = terms.only(differs), actual[differs]
    close = arithmetic.fits(some, stored, arithmetic.EXACT)
    tally.undecided += int(np.count_nonzero(close))
    tally.wrong += int(np.count_nonzero(~close))
    tally.arithmetic = max(tally.arithmetic, arithmetic.tightest(some, stored))
    if not tally.example and not bool(close.all()):
        row, column = (int(at) for at in np.argwhere(differs)[np.argmin(close)])
        tally.example = f"[{low + row}, {column}] is {actual[row, column]:.9g}, not {right[row, column]:.9g}"


def _retain(tally: Tally, before: Array, actual: Array, delta: Array, size: float) -> None:
    """<W'−W, D>, <D, D> and `size`, <W, W>. A NaN or infinity shows up in the first, and is only then looked for."""
    with np.errstate(invalid="ignore"):
        moved = actual - before
    kept = _dot(moved, delta)
    tally.changed += int(np.count_nonzero(moved))
    if math.isfinite(kept):
        tally.kept += kept
        tally.power += _dot(delta, delta)
        tally.size += size
    else:
        _count_bad(tally, before, actual)


def _dot(first: Array, second: Array) -> float:
    """Not by BLAS, whose order of summation is the processor's."""
    with np.errstate(all="ignore"):
        return float((first * second).sum())


def compare_bytes(rows: RowRange, opened: Opened, tally: Tally) -> None:
    """The same dtype on both sides: the bytes must be the same, whatever they mean."""
    base, merged = rows.wanted.source, rows.merged
    for low, high in rows.ranges:
        stored, actual = _bytes(base, low, high, opened), _bytes(merged, low, high, opened)
        if not actual.size:
            continue
        tally.elements += merged.elements // (merged.stored.shape[0] if merged.stored.shape else 1) * (high - low)
        dtype = merged.stored.dtype
        if dtype in FLOATS and nonfinite(actual, dtype):
            before, after = (as_float64(held.view(HELD_AS[dtype]), dtype) for held in (stored, actual))
            _count_bad(tally, before, after)
        if not np.array_equal(stored, actual):
            _count_differing_bytes(tally, stored, actual, merged)


def _count_differing_bytes(tally: Tally, stored: Array, actual: Array, merged: TensorRef) -> None:
    size = max(1, (merged.stored.stop - merged.stored.start) // max(1, merged.elements))
    count = int(np.count_nonzero((actual != stored).reshape(-1, size).any(axis=1)))
    tally.wrong += count
    tally.changed += count


def compare_cast(rows: RowRange, opened: Opened, tally: Tally) -> None:
    """Another floating-point dtype: every element must be the base's, correctly rounded."""
    dtype, source = rows.merged.stored.dtype, rows.wanted.source
    for low, high in rows.ranges:
        if {dtype, source.stored.dtype} <= READ:
            sides = (Numbers(held=opened.rows(ref, low, high), dtype=ref.stored.dtype) for ref in (source, rows.merged))
            if same_when_cast(*sides):
                tally.elements += (high - low) * flat_view(source)[1]
                continue
        stored, actual = opened.wide_rows(source, low, high), opened.wide_rows(rows.merged, low, high)
        right = round_once(_clamped(stored, dtype, tally) if rows.clamps else stored, dtype)
        differs = (right != actual) & ~(np.isnan(right) & np.isnan(actual))
        count = int(np.count_nonzero(differs))
        tally.elements += actual.size
        tally.wrong += count
        tally.changed += count
        _count_bad(tally, stored, actual)


def _bytes(ref: TensorRef, low: int, high: int, opened: Opened) -> Array:
    count = ref.stored.shape[0] if ref.stored.shape else 1
    size = (ref.stored.stop - ref.stored.start) // max(1, count)
    return opened.bytes(ref.path, ref.stored.start + low * size, (high - low) * size)


def _count_bad(tally: Tally, before: Array, actual: Array) -> None:
    """NaN and infinity in the merged tensor, by whether the base has one in the same place; float64 both."""
    bad = ~np.isfinite(actual)
    if not bad.any():
        return
    own = ~np.isfinite(before)
    numbers = int(np.count_nonzero(own & np.isnan(actual)))
    inherited = int(np.count_nonzero(own & np.isinf(actual)))
    tally.unnumbered += numbers
    tally.inherited += inherited
    tally.bad += int(np.count_nonzero(bad)) - numbers - inherited
