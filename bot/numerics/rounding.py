"""Numbers as checkpoints store them: widened exactly, and rounded once, to nearest, ties to even. numpy only.

bfloat16, which numpy does not know, is held as the uint16 of its bits.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

RAW: dict[str, Any] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
UNIT = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): 2.0**-53}
# (precision in bits with the hidden one, smallest exponent e of a normal number 1.x·2^e)
FORMAT = {"BF16": (8, -126), "F16": (11, -14), "F32": (24, -126)}
LARGEST = {
    "BF16": float(np.uint32(0x7F7F0000).view(np.float32)),
    "F16": 65504.0,
    "F32": float(np.finfo(np.float32).max),
    "F64": math.inf,
}
INFINITY = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F80_0000, "F64": 0x7FF0 << 48}  # as bits
HALF_SIGN, HALF_REST = np.uint32(0x8000), np.uint32(0x7FFF)


def widen(raw: Array, dtype: str, out: Array | None = None) -> Array:
    """Stored numbers as float32 (BF16, F16, F32) or float64 (F64), exactly. `out`: contiguous, of raw's shape."""
    if dtype in ("F32", "F64"):
        if out is None:
            return raw
        np.copyto(out, raw)
        return out
    wide: Array = np.empty(raw.shape, np.float32) if out is None else out
    bits = wide.view(np.uint32)
    np.copyto(bits, raw.view(np.uint16))
    if dtype == "BF16":
        bits <<= np.uint32(16)
        return wide
    sign = bits & HALF_SIGN
    sign <<= np.uint32(16)
    bits &= HALF_REST
    bits <<= np.uint32(13)
    wide *= np.float32(2.0**112)  # moves the exponent's bias; exact, for float16's subnormals too
    bits |= sign
    if bool((wide.view(np.uint32) & np.uint32(0x7FFFFFFF) >= np.uint32(0x47800000)).any()):
        np.copyto(wide, raw)  # infinities and NaN, which the short way takes for numbers of 65,536 and more
    return wide


def narrow(values: Array, dtype: str) -> Array:
    """float32 or float64 → stored numbers, correctly rounded. (A cast of float64 by way of float32 would round twice.)

    The way round that is round-to-odd into float32 (Boldo and Melquiond, 2008): its sticky last bit keeps the second
    rounding honest, since float32 has more than two bits over bfloat16.
    """
    if dtype in ("F32", "F16", "F64"):
        with np.errstate(over="ignore"):
            return values.astype(RAW[dtype])  # numpy rounds float64 straight to float16
    near = values if values.dtype == np.float32 else to_odd(values)
    bits = near.view(np.uint32)
    lost = np.isnan(near)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    bits16: Array = (rounded >> np.uint32(16)).astype(np.uint16)
    return np.where(lost, (bits >> np.uint32(16)).astype(np.uint16) | np.uint16(0x40), bits16) if lost.any() else bits16


def clamp(stored: Array, dtype: str, where: Array | bool = True) -> None:
    """Infinities (only those in `where`, a mask of stored's shape) become the largest number of their sign, in place."""
    bits = stored.view(f"u{stored.itemsize}")
    infinite = bits << bits.dtype.type(1) == bits.dtype.type(2 * INFINITY[dtype])
    bits -= infinite & where  # the largest number's bits are the ones before infinity's


def to_odd(values: Array) -> Array:
    """float64 → float32, where an inexact result takes the neighbour whose last bit is 1."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.uint32)
    # Toward zero: where rounding moved away from zero, step one back; then set the last bit if anything was lost.
    truncated = np.where(np.abs(back) > np.abs(values), bits - np.uint32(1), bits)
    odd = np.where(back != values, truncated | np.uint32(1), bits)
    return np.where(np.isfinite(near), odd, bits).astype(np.uint32).view(np.float32)


def round_rational(value: Fraction, dtype: str) -> float:
    """A rational number rounded to nearest, ties to even, in BF16, F16 or F32; infinity beyond its largest."""
    if value == 0:
        return 0.0
    quantum = quantum_of(value, dtype)
    result = float(round(abs(value) / quantum) * quantum)  # Python rounds a Fraction's ties to even
    return math.copysign(result if result <= LARGEST[dtype] else math.inf, value.numerator)


def quantum_of(value: Fraction, dtype: str) -> Fraction:
    """The distance of `dtype`'s numbers around a value that is not zero."""
    precision, lowest = FORMAT[dtype]
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    return Fraction(2) ** (max(exponent, lowest) - precision + 1)
