"""The three comparisons of the sweep: touched tensors, untouched ones, and untouched ones whose dtype changes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bot.checks.elementwise import arithmetic
from bot.checks.elementwise.arithmetic import BoundTerms, Magnitudes
from bot.checks.elementwise.drift import measure
from bot.checks.elementwise.rounding import ANY, STORED, clamp, keeps, round_once
from bot.checks.elementwise.steps import Parts, Ready
from bot.checks.elementwise.tally import Tally
from bot.checks.expected.changes import AddProduct, Expected, TensorStep
from bot.checks.reading.checkpoint import FLOATS, TensorRef
from bot.checks.reading.rows import TORCH, Opened

LOOKED_AT = 1 << 19  # elements of one tensor that are asked which way they lean: 1 % too much shows in a tenth of that
Steps = tuple[tuple[TensorStep, Ready], ...]


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
    weight: Tensor
    exact: Tensor


def compare_touched(rows: RowRange, opened: Opened, tally: Tally) -> None:
    """Every element against the source's, changed by every step and rounded once; evaluated in float64."""
    wanted, merged, steps, clamps = rows.wanted, rows.merged, rows.steps, rows.clamps
    every = max(1, merged.elements // LOOKED_AT)
    leans = rows.foreign and bool(steps) and all(isinstance(step, AddProduct) and step.right for step, _ in steps)
    for number, (low, high) in enumerate(rows.ranges):
        actual = opened.rows(merged, low, high, wanted.view)
        weight = opened.rows(wanted.source, low, high, wanted.view).to(torch.float64)
        exact = _exact(weight, steps, low, high, opened)
        part = ExactRows(
            low=low, high=high, weight=weight, exact=_clamped(exact, actual.dtype, tally) if clamps else exact
        )
        right = round_once(part.exact, actual.dtype)
        tally.elements += actual.numel()
        if not torch.equal(right, actual):
            _blame(tally, _terms(part, steps, opened, actual.dtype), right, actual, low)
        if leans and number % every == 0:
            wider = wanted.source.stored.dtype != merged.stored.dtype
            measure(tally.drifts, weight, exact, actual, low, wider=wider)
        before = _before(wanted, low, high, opened)
        if STORED not in tally.keeps:
            tally.keeps |= keeps(part.exact, _alone(wanted, before, weight, actual.dtype, clamps), actual.dtype)
            if not tally.keeps and bool(_terms(part, steps, opened, actual.dtype).delta.any()):
                tally.keeps.add(ANY)
        if before is None:
            _count_bad(tally, weight, actual)
            tally.changed += actual.numel()
        else:
            size = float(torch.dot(before.flatten(), before.flatten()))
            if clamps:  # a clamped number says nothing of how much of the delta is left
                before = torch.where(part.exact == exact, before, part.exact)
            _retain(tally, before, actual, part.exact - before, size)


def _clamped(exact: Tensor, dtype: torch.dtype, tally: Tally) -> Tensor:
    """What the merge was asked to store of numbers that are too large for their dtype."""
    tally.clamped += int((round_once(exact, dtype).isinf() & exact.isfinite()).sum())
    return clamp(exact, dtype)


def exact_rows(wanted: Expected, steps: Steps, low: int, high: int, opened: Opened) -> tuple[Tensor, Tensor]:
    """(what the base has there, what the merge makes of it), float64, by rows of the tensor's view."""
    weight = opened.rows(wanted.source, low, high, wanted.view).to(torch.float64)
    return weight, _exact(weight, steps, low, high, opened)


def _before(wanted: Expected, low: int, high: int, opened: Opened) -> Tensor | None:
    """What the base has there, to measure the change by; None where it has no such tensor or one of another shape."""
    if wanted.base is None or wanted.base.stored.shape != wanted.shape or wanted.base.stored.dtype not in FLOATS:
        return None
    return opened.rows(wanted.base, low, high, wanted.view).to(torch.float64)


def _alone(wanted: Expected, before: Tensor | None, weight: Tensor, dtype: torch.dtype, clamps: bool) -> Tensor | None:
    """What would stand there without the adapter; None where nothing would, or something of another shape."""
    if before is None and (wanted.base is not None or wanted.uses):
        return None
    value = weight if before is None else before  # a head that is written apart, a layer that is there twice
    return clamp(value, dtype) if clamps else value


def _exact(weight: Tensor, steps: Steps, low: int, high: int, opened: Opened) -> Tensor:
    result = weight
    for step, ready, lines in _within(steps, low, high):
        left, right = step.columns
        if (lines, left, right) == (range(low, high), 0, weight.shape[1]):
            return ready.exact(weight, low, high, opened)  # steps do not overlap: this is the only one here
        if result is weight:
            result = weight.clone()
        block = slice(lines.start - low, lines.stop - low, lines.step), slice(left, right)
        result[block] = ready.exact(weight[block], lines.start, lines.stop, opened)
    return result


def _within(steps: Steps, low: int, high: int) -> Iterable[tuple[TensorStep, Ready, range]]:
    """The steps that change rows between `low` and `high`, and those rows."""
    for step, ready in steps:
        lines = step.lines
        skipped = max(0, -(-(low - lines.start) // lines.step))
        there = range(lines.start + skipped * lines.step, min(high, lines.stop), lines.step)
        if there:
            yield step, ready, there


def _terms(part: ExactRows, steps: Steps, opened: Opened, storage: torch.dtype) -> BoundTerms:
    """What the error bounds are made of; between the steps' rectangles nothing is computed and nothing can err."""
    weight, zero = part.weight.clone(), torch.zeros_like(part.weight)
    delta, product, factor = zero.clone(), zero.clone(), torch.ones_like(zero)
    shares = Magnitudes(weight=zero, delta=zero, product=zero, value=zero).map(torch.clone)
    rank = length = 0
    for step, ready, lines in _within(steps, part.low, part.high):
        block = slice(lines.start - part.low, lines.stop - part.low, lines.step), slice(*step.columns)
        parts: Parts = ready.parts(part.weight[block], lines.start, lines.stop, opened)
        weight[block], delta[block], product[block] = parts.weight, parts.delta, parts.product
        rank, length = max(rank, parts.rank), max(length, parts.length)
        if parts.factor is not None and parts.shares is not None:
            factor[block] = parts.factor
            for name in ("weight", "delta", "product", "value"):
                getattr(shares, name)[block] = getattr(parts.shares, name)
    return BoundTerms(
        exact=part.exact, weight=weight, delta=delta, magnitude=product, rank=rank, storage=storage,
        factor=factor if length else None, shares=shares if length else None, length=length,
    )  # fmt: skip


def _blame(tally: Tally, terms: BoundTerms, right: Tensor, actual: Tensor, low: int) -> None:
    """Sort the elements that differ into undecided and wrong, and find the arithmetic that explains them."""
    differs = right != actual  # NaN differs from everything, as it should
    close = arithmetic.fits(terms, actual, arithmetic.EXACT)
    wrong = differs & ~close
    tally.undecided += int((differs & close).sum())
    tally.wrong += int(wrong.sum())
    tally.arithmetic = max(tally.arithmetic, arithmetic.tightest(terms, actual))
    if not tally.example and bool(wrong.any()):
        row, column = (int(at) for at in wrong.nonzero()[0])
        tally.example = f"[{low + row}, {column}] is {actual[row, column]:.9g}, not {right[row, column]:.9g}"


def _retain(tally: Tally, stored: Tensor, actual: Tensor, delta: Tensor, size: float) -> None:
    """<W'−W, D>, <D, D> and `size`, <W, W>. A NaN or infinity shows up in the first, and is only then looked for."""
    moved = actual.to(torch.float64) - stored
    kept, power = float(torch.dot(moved.flatten(), delta.flatten())), float(torch.dot(delta.flatten(), delta.flatten()))
    tally.changed += int(torch.count_nonzero(moved))
    if math.isfinite(kept):
        tally.kept += kept
        tally.power += power
        tally.size += size
    else:
        _count_bad(tally, stored, actual)


def compare_bytes(rows: RowRange, opened: Opened, tally: Tally) -> None:
    """The same dtype on both sides: the bytes must be the same, whatever they mean."""
    base, merged = rows.wanted.source, rows.merged
    for low, high in rows.ranges:
        stored, actual = _bytes(base, low, high, opened), _bytes(merged, low, high, opened)
        if not actual:
            continue
        tally.elements += merged.elements // (merged.stored.shape[0] if merged.stored.shape else 1) * (high - low)
        if merged.stored.dtype in FLOATS:
            dtype = TORCH[merged.stored.dtype]
            _count_bad(tally, torch.frombuffer(stored, dtype=dtype), torch.frombuffer(actual, dtype=dtype))
        if stored != actual:
            _count_differing_bytes(tally, stored, actual, merged)


def _count_differing_bytes(tally: Tally, stored: bytearray, actual: bytearray, merged: TensorRef) -> None:
    size = max(1, (merged.stored.stop - merged.stored.start) // max(1, merged.elements))
    mine, theirs = torch.frombuffer(actual, dtype=torch.uint8), torch.frombuffer(stored, dtype=torch.uint8)
    count = int((mine != theirs).view(-1, size).any(dim=1).sum())
    tally.wrong += count
    tally.changed += count


def compare_cast(rows: RowRange, opened: Opened, tally: Tally) -> None:
    """Another floating-point dtype: every element must be the base's, correctly rounded."""
    for low, high in rows.ranges:
        stored, actual = opened.rows(rows.wanted.source, low, high), opened.rows(rows.merged, low, high)
        exact = stored.to(torch.float64)
        right = round_once(_clamped(exact, actual.dtype, tally) if rows.clamps else exact, actual.dtype)
        differs = (right != actual) & ~(right.isnan() & actual.isnan())
        count = int(differs.sum())
        tally.elements += actual.numel()
        tally.wrong += count
        tally.changed += count
        _count_bad(tally, stored, actual)


def _bytes(ref: TensorRef, low: int, high: int, opened: Opened) -> bytearray:
    count = ref.stored.shape[0] if ref.stored.shape else 1
    size = (ref.stored.stop - ref.stored.start) // max(1, count)
    return opened.read(ref.path, ref.stored.start + low * size, (high - low) * size)


def _count_bad(tally: Tally, stored: Tensor, actual: Tensor) -> None:
    """NaN and infinity in the merged tensor, by whether the base has one in the same place."""
    # x − x is 0 for a finite x and NaN otherwise: one sum says whether there is anything to count.
    if bool(torch.isfinite((actual - actual).sum(dtype=torch.float32))):
        return
    bad, own = ~torch.isfinite(actual), ~torch.isfinite(stored)
    numbers, inherited = int((bad & own & actual.isnan()).sum()), int((bad & own & actual.isinf()).sum())
    tally.unnumbered += numbers
    tally.inherited += inherited
    tally.bad += int(bad.sum()) - numbers - inherited
