"""W + left · right in float64, rounded once, held to what is stored: one pass over rows, compiled, or in numpy where it is not.

Both give the same bits on every processor: each sum is one chain, multiplied and added in the order of the rank, never fused; what
is summed over elements is summed in one order, too (`compare`). See _rederive.c, which shares no line with the merger's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bot.checks.elementwise.stored_rounding import LOST_BITS, NORMAL, SMALLEST
from bot.checks.reading.stored_numbers import Array, as_float64

try:
    from bot.checks.elementwise import _rederive as compiled
except ImportError:  # installed where there is no C compiler
    compiled = None  # type: ignore[assignment]

# The compiled loop's kinds that this processor runs, the fastest first; none without a C compiler.
KINDS: tuple[str, ...] = compiled.KINDS if compiled else ()
NUMPY = "numpy"
FASTEST = KINDS[0] if KINDS else NUMPY
TILE, SUMS = 128, 8  # as in _rederive.c: columns at a time, and partial sums


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Some rows of a tensor as they are stored: `held`, rows × columns, and the name of their dtype."""

    held: Array
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """What `compare` counts and sums over all elements, with V = W + left · right in float64.

    `equal`: elements that are V, correctly rounded, beyond doubt; an infinity that is right is not counted. `same`: elements
    that are W's. `kept`, `power` and `size`: <W'−W, V−W>, <V−W, V−W> and <W, W>; not finite where some element is not.
    """

    equal: int
    same: int
    kept: float
    power: float
    size: float


def compare(weight: Numbers, stored: Numbers, left: Array, right: Array, kind: str | None = None) -> Likeness:
    """`left` (rows × rank, scaled) and `right` (rank × columns): float64, C-contiguous; a rank of 0 adds nothing.

    `kind`: one of KINDS, or NUMPY; by default the fastest. Raises ValueError.
    """
    rows, columns = weight.held.shape
    kind = kind or FASTEST
    if kind == NUMPY:
        return _compare_in_numpy(weight, stored, left, right)
    counts = compiled.compare(
        weight.held, weight.dtype, stored.held, stored.dtype, left, right, rows, left.shape[1], columns, kind
    )
    return Likeness(**dict(zip(("equal", "same", "kept", "power", "size"), counts, strict=True)))  # type: ignore[arg-type]


def product(left: Array, right: Array, kind: str | None = None) -> Array:
    """left · right, float64, C-contiguous, each element one chain of sums; `kind` as for `compare`."""
    out = np.empty((left.shape[0], right.shape[1]))
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    kind = kind or FASTEST
    if kind == NUMPY:
        out[:] = 0
        for k in range(left.shape[1]):
            out += left[:, k, None] * right[k]
        return out
    compiled.product(left, right, out, left.shape[0], left.shape[1], right.shape[1], kind)
    return out


def _compare_in_numpy(weight: Numbers, stored: Numbers, left: Array, right: Array) -> Likeness:
    equal = same = 0
    sums = np.zeros((3, SUMS))
    with np.errstate(all="ignore"):
        for start in range(0, weight.held.shape[1], TILE):
            columns = slice(start, start + TILE)
            w = as_float64(weight.held[:, columns], weight.dtype)
            s = as_float64(stored.held[:, columns], stored.dtype)
            value = w + product(left, right[:, columns], NUMPY)
            equal += int(np.count_nonzero(_rounded(value, stored.dtype) == s))
            same += int(np.count_nonzero(s == w))
            change = value - w
            for total, terms in zip(sums, ((s - w) * change, change * change, w * w), strict=True):
                _add_up(total, terms)
    return Likeness(equal=equal, same=same, kept=_total(sums[0]), power=_total(sums[1]), size=_total(sums[2]))


def _rounded(value: Array, dtype: str) -> Array:
    """To nearest, ties to even, at the dtype's last bit; what is too large for it stays finite."""
    lost = np.uint64(LOST_BITS[dtype])
    bits = value.view(np.uint64)
    half = (np.uint64(1) << (lost - np.uint64(1))) - np.uint64(1)
    bits = (bits + half + ((bits >> lost) & np.uint64(1))) >> lost << lost
    grid = 1.5 * 2.0**52 * SMALLEST[dtype]
    return np.where(np.abs(value) < NORMAL[dtype], value + grid - grid, bits.view(np.float64))


def _add_up(sums: Array, terms: Array) -> None:
    """Add the terms to the partial sums of their columns, modulo SUMS, row after row."""
    wide = np.zeros((terms.shape[0], -(-terms.shape[1] // SUMS) * SUMS))
    wide[:, : terms.shape[1]] = terms
    np.add.reduce(
        np.concatenate((sums[None], wide.reshape(-1, SUMS))), axis=0, out=sums
    )  # along an outer axis: in order


def _total(sums: Array) -> float:
    a, b, c, d, e, f, g, h = (float(part) for part in sums)
    return ((a + b) + (c + d)) + ((e + f) + (g + h))
