"""The three comparisons of the sweep: touched tensors, untouched ones, and untouched ones whose dtype changes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from bot.checks import arithmetic
from bot.checks.arithmetic import Terms
from bot.checks.checkpoint import FLOATS, Place
from bot.checks.rounding import round_once
from bot.checks.rows import TORCH, Factors, Opened
from bot.checks.tally import Tally
from bot.checks.touch import Touch

Ranges = Iterable[tuple[int, int]]


def compare_touched(base: Place, merged: Place, touch: Touch, ranges: Ranges, opened: Opened, tally: Tally) -> None:
    """Every element against round(W + s·B·A), evaluated in float64."""
    factors = Factors(touch, opened)
    for low, high in ranges:
        stored, found = opened.rows(base, low, high), opened.rows(merged, low, high)
        weight, delta = stored.to(torch.float64), factors.delta(low, high)
        right = round_once(weight + delta, found.dtype)
        tally.elements += found.numel()
        if not torch.equal(right, found):
            terms = Terms(weight=weight, delta=delta, magnitude=factors.magnitude(low, high), rank=factors.rank,
                          storage=found.dtype)  # fmt: skip
            _blame(tally, terms, right, found, low)
        _retain(tally, stored, found, delta)


def _blame(tally: Tally, terms: Terms, right: Tensor, found: Tensor, low: int) -> None:
    """Sort the elements that differ into undecided and wrong, and find the arithmetic that explains them."""
    differs = right != found  # NaN differs from everything, as it should
    close = arithmetic.fits(terms, found, arithmetic.EXACT)
    wrong = differs & ~close
    tally.undecided += int((differs & close).sum())
    tally.wrong += int(wrong.sum())
    tally.arithmetic = max(tally.arithmetic, arithmetic.tightest(terms, found))
    if not tally.example and bool(wrong.any()):
        row, column = (int(at) for at in wrong.nonzero()[0])
        tally.example = f"[{low + row}, {column}] is {found[row, column]:.9g}, not {right[row, column]:.9g}"


def _retain(tally: Tally, stored: Tensor, found: Tensor, delta: Tensor) -> None:
    """<W'−W, D> and <D, D>; a NaN or infinity shows up in the first, and is only then looked for."""
    moved = found.to(torch.float64) - stored
    kept, power = float(torch.dot(moved.flatten(), delta.flatten())), float(torch.dot(delta.flatten(), delta.flatten()))
    tally.changed += int(torch.count_nonzero(moved))
    if math.isfinite(kept):
        tally.kept += kept
        tally.power += power
    else:
        _count_bad(tally, stored, found)


def compare_bytes(base: Place, merged: Place, ranges: Ranges, opened: Opened, tally: Tally) -> None:
    """The same dtype on both sides: the bytes must be the same, whatever they mean."""
    for low, high in ranges:
        stored, found = _bytes(base, low, high, opened), _bytes(merged, low, high, opened)
        if not found:
            continue
        tally.elements += merged.elements // (merged.stored.shape[0] if merged.stored.shape else 1) * (high - low)
        if merged.stored.dtype in FLOATS:
            dtype = TORCH[merged.stored.dtype]
            _count_bad(tally, torch.frombuffer(stored, dtype=dtype), torch.frombuffer(found, dtype=dtype))
        if stored != found:
            _count_differing_bytes(tally, stored, found, merged)


def _count_differing_bytes(tally: Tally, stored: bytearray, found: bytearray, merged: Place) -> None:
    size = max(1, (merged.stored.stop - merged.stored.start) // max(1, merged.elements))
    mine, theirs = torch.frombuffer(found, dtype=torch.uint8), torch.frombuffer(stored, dtype=torch.uint8)
    count = int((mine != theirs).view(-1, size).any(dim=1).sum())
    tally.wrong += count
    tally.changed += count


def compare_cast(base: Place, merged: Place, ranges: Ranges, opened: Opened, tally: Tally) -> None:
    """Another floating-point dtype: every element must be the base's, correctly rounded."""
    for low, high in ranges:
        stored, found = opened.rows(base, low, high), opened.rows(merged, low, high)
        right = round_once(stored.to(torch.float64), found.dtype)
        differs = (right != found) & ~(right.isnan() & found.isnan())
        count = int(differs.sum())
        tally.elements += found.numel()
        tally.wrong += count
        tally.changed += count
        _count_bad(tally, stored, found)


def _bytes(place: Place, low: int, high: int, opened: Opened) -> bytearray:
    count = place.stored.shape[0] if place.stored.shape else 1
    size = (place.stored.stop - place.stored.start) // max(1, count)
    return opened.read(place.path, place.stored.start + low * size, (high - low) * size)


def _count_bad(tally: Tally, stored: Tensor, found: Tensor) -> None:
    """NaN and infinity in the merged tensor, by whether the base has one in the same place."""
    # x − x is 0 for a finite x and NaN otherwise: one sum says whether there is anything to count.
    if bool(torch.isfinite((found - found).sum(dtype=torch.float32))):
        return
    bad = ~torch.isfinite(found)
    inherited = int((bad & ~torch.isfinite(stored)).sum())
    tally.inherited += inherited
    tally.bad += int(bad.sum()) - inherited
