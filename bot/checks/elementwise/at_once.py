"""What one pass over some rows settles: that every element of them is right. What it leaves open is for others to judge."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from bot.checks.elementwise.rederive import Likeness, Numbers, compare
from bot.checks.elementwise.steps import ReadyProduct, Steps
from bot.checks.elementwise.stored_rounding import STORED
from bot.checks.elementwise.tally import Tally
from bot.checks.expected.changes import Expected, SetRows
from bot.checks.reading.checkpoint import TensorRef
from bot.checks.reading.rows import Opened
from bot.checks.reading.stored_numbers import Array

READ = frozenset({"BF16", "F16", "F32"})
INFINITY: dict[str, Any] = {"BF16": np.uint16(0x7F80), "F16": np.uint16(0x7C00), "F32": np.uint32(0x7F80_0000),
            "F64": np.uint64(0x7FF0 << 48)}  # the bits of the exponent  # fmt: skip
Band = tuple[int, int, ReadyProduct | None]  # rows of the view, and what is added to all of them


def compare_at_once(
    wanted: Expected, merged: TensorRef, steps: Steps, span: tuple[int, int], opened: Opened, tally: Tally
) -> bool:
    """Add rows `span` to the tally, where each element of them is surely right, finite, and of a kind that is read here."""
    bands = _bands(wanted, merged, steps, span)
    if bands is None:
        return False
    low, high = span
    weight = Numbers(held=opened.rows(wanted.source, low, high, wanted.view), dtype=wanted.source.stored.dtype)
    stored = Numbers(held=opened.rows(merged, low, high, wanted.view), dtype=merged.stored.dtype)
    parts = [_compare_band(weight, stored, low, band, opened) for band in bands]
    elements = stored.held.size
    whole = sum(part.equal for part in parts) == elements and all(
        math.isfinite(part.kept) and math.isfinite(part.size) for part in parts
    )
    changed = elements - sum(part.same for part in parts)
    # Where nothing is another number than before, whether a wider dtype would have kept it is not seen from here.
    keeps = STORED in tally.keeps or (changed > 0 and weight.dtype == stored.dtype)
    if not whole or not keeps:
        return False
    tally.keeps.add(STORED)
    tally.elements += elements
    if wanted.base is None:
        tally.changed += elements
        return True
    tally.changed += changed
    for part in parts:
        tally.kept += part.kept
        tally.power += part.power
        tally.size += part.size
    return True


def same_when_cast(stored: Numbers, merged: Numbers) -> bool:
    """Whether each element is finite, and surely the other's, rounded once; see `Numbers` for what they are."""
    rows, columns = stored.held.shape
    seen = compare(stored, merged, np.empty((rows, 0)), np.empty((0, columns)))
    return seen.equal == stored.held.size and math.isfinite(seen.size) and math.isfinite(seen.kept)


def _compare_band(weight: Numbers, stored: Numbers, top: int, band: Band, opened: Opened) -> Likeness:
    low, high, ready = band
    rows, columns = slice(low - top, high - top), weight.held.shape[1]
    left, right = np.empty((high - low, 0)), np.empty((0, columns))
    if ready is not None and ready.right is not None and ready.right.wide is not None:
        left, right = ready.left(low, high, opened), ready.right.wide
    return compare(
        Numbers(held=weight.held[rows], dtype=weight.dtype),
        Numbers(held=stored.held[rows], dtype=stored.dtype),
        left,
        right,
    )


def _bands(wanted: Expected, merged: TensorRef, steps: Steps, span: tuple[int, int]) -> list[Band] | None:
    """The rows, cut where another product begins; None where something else than whole rows of products is done to them."""
    source = wanted.source
    if not {source.stored.dtype, merged.stored.dtype} <= READ:
        return None
    if wanted.base is not source and not (wanted.base is None and not wanted.uses):
        return None
    bands: list[Band] = []
    at, end = span
    for low, high, ready in _products(steps, span, wanted.view[1]):
        if ready is None or low < at:
            return None
        if low > at:
            bands.append((at, low, None))
        bands.append((low, high, ready))
        at = high
    return [*bands, (at, end, None)] if at < end else bands


def _products(steps: Steps, span: tuple[int, int], width: int) -> Iterator[tuple[int, int, ReadyProduct | None]]:
    """(the rows that a step changes, the step); None, where that is no product on whole rows."""
    for step, ready in steps:
        low, high = max(span[0], step.rows[0]), min(span[1], step.rows[1])
        if low >= high or (isinstance(step, SetRows) and not any(low <= row < high for row in step.at)):
            continue
        whole = step.every == 1 and step.columns == (0, width)
        yield low, high, ready if whole and isinstance(ready, ReadyProduct) and ready.is_plain else None


def nonfinite(held: Array, dtype: str) -> bool:
    """Whether some number is NaN or infinite; `held`: their bytes."""
    exponent = INFINITY[dtype]
    return bool((held.view(exponent.dtype) & exponent).max() == exponent)
