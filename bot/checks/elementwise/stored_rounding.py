"""Rounding from float64 to a storage dtype, once and correctly, in numpy: to nearest, ties to even.

What is rounded stays float64, which holds every number of the narrower dtypes. `rounding` is the same in torch, for who has that.
"""

from __future__ import annotations

import numpy as np

from bot.checks.reading.stored_numbers import Array

# Unit roundoff: the largest relative error of one rounding to nearest, 2⁻ᵖ for p significant bits.
UNIT = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
SMALLEST = {"F32": 2.0**-149, "F16": 2.0**-24, "BF16": 2.0**-133}  # the subnormal spacing
LARGEST = {"F64": float(np.finfo(np.float64).max), "F32": (2 - 2.0**-23) * 2.0**127, "F16": 65504.0,
           "BF16": (2 - 2.0**-7) * 2.0**127}  # fmt: skip
NORMAL = {"F32": 2.0**-126, "F16": 2.0**-14, "BF16": 2.0**-126}  # the smallest number with all its bits
LOST_BITS = {"F32": 29, "F16": 42, "BF16": 45}  # of float64's 52 behind the point
EXPONENT = np.uint64(0x7FF0 << 48)

# Where a change is not lost: in the dtype that it is stored in, in the widest of those that it could be, or anywhere.
STORED, ANY = "stored", "any"
WIDEST = "float32"  # it holds every number that a 16-bit dtype does: what is lost in it is lost in all


def round_once(exact: Array, dtype: str) -> Array:
    """float64 → the nearest numbers of `dtype`, as float64; any shape."""
    if dtype == "F64":
        return exact
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        if dtype == "F32":
            return exact.astype(np.float32).astype(np.float64)
        sizes = np.abs(exact)
        rounded = _at_the_last_bit(exact, LOST_BITS[dtype])
        small = sizes < NORMAL[dtype]
        if small.any():  # there the spacing no longer follows the exponent
            np.copyto(rounded, np.rint(exact / SMALLEST[dtype]) * SMALLEST[dtype], where=small)
        if not sizes.max(initial=0.0) < LARGEST[dtype]:  # or NaN
            rounded[np.abs(rounded) > LARGEST[dtype]] *= np.inf
            np.copyto(rounded, exact, where=~np.isfinite(exact))
    return rounded


def _at_the_last_bit(exact: Array, lost: int) -> Array:
    """To nearest, ties to even, as if exponents had no end: half of the last bit that stays is added, less where that bit is 0
    already, and a carry goes into the exponent as it should."""
    bits = exact.view(np.uint64)
    rounded = bits >> np.uint64(lost)
    rounded &= np.uint64(1)
    rounded += np.uint64((1 << (lost - 1)) - 1)
    rounded += bits
    rounded &= np.uint64(((1 << 64) - 1) >> lost << lost)
    return rounded.view(np.float64)


def clamp(exact: Array, dtype: str) -> Array:
    """Finite numbers that are too large for `dtype`, as its largest; any shape, float64 → float64."""
    return np.where(np.isfinite(exact), np.clip(exact, -LARGEST[dtype], LARGEST[dtype]), exact)


def keeps(exact: Array, alone: Array | None, stored: str) -> set[str]:
    """Where float64 `exact` is not `alone`, the base's (None: it has none): {STORED} in the stored dtype already, else
    WIDEST where it is not in that, and ANY where it is not the same number."""
    if alone is None or _differ(exact, alone, stored):
        return {STORED}
    if np.array_equal(exact, alone, equal_nan=True):
        return set()
    return {ANY, WIDEST} if _differ(exact, alone, "F32") else {ANY}


def _differ(exact: Array, alone: Array, dtype: str) -> bool:
    first, second = round_once(exact, dtype), round_once(alone, dtype)
    return bool(((first != second) & ~(np.isnan(first) & np.isnan(second))).any())
