"""The parts of quantised weights, in numpy: as they are stored, and as the float32 numbers that they mean. No torch is needed."""

from __future__ import annotations

import numpy as np

from bot.checks.reading.checkpoint import TensorRef
from bot.checks.reading.packed import read_bytes
from bot.checks.reading.stored_numbers import Array

# safetensors' names for what components are stored as; floats that numpy lacks are held as their bits.
HELD: dict[str, type[np.generic]] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8, "I8": np.int8,
    "I16": np.int16, "I32": np.int32, "I64": np.int64, "BOOL": np.bool_, "F8_E4M3": np.uint8, "F8_E8M0": np.uint8,
}  # fmt: skip


# Numbers of four bits: a sign, two bits of exponent and one behind the point.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


def component(ref: TensorRef, slab: int | None = None) -> Array:
    """A part as it is stored, in its own shape; of several slabs, that one (without the first axis). Raises EOFError, and KeyError
    for a dtype that is none of HELD."""
    held, shape = read_bytes(ref, slab)
    return np.frombuffer(held, dtype=HELD[ref.stored.dtype]).reshape(shape)


def as_float32(held: Array, dtype: str) -> Array:
    """The numbers in float32: exactly, but for float64's, and integers of more than 24 bits."""
    if dtype == "BF16":
        return (held.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "F8_E4M3":
        return E4M3[held]
    if dtype == "F8_E8M0":
        return E8M0[held]
    return held.astype(np.float32)


def wide_component(ref: TensorRef, slab: int | None = None) -> Array:
    """A part in float32."""
    return as_float32(component(ref, slab), ref.stored.dtype)


def powers(exponents: Array) -> Array:
    """2ᵉ for a byte e + 127, in float32; 2¹²⁸ is infinite."""
    with np.errstate(over="ignore"):
        made: Array = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
    return made.astype(np.float32)


def _e4m3() -> Array:
    """Every number of one sign, four bits of exponent (less 7) and three behind the point; 1111·111 is NaN, nothing is infinite."""
    bits = np.arange(256)
    exponent, fraction = bits >> 3 & 15, (bits & 7) / 8
    size = np.where(exponent == 0, fraction * 2.0**-6, (1 + fraction) * 2.0 ** (exponent - 7.0))
    size[(bits & 127) == 127] = np.nan
    return np.where(bits < 128, size, -size).astype(np.float32)


def _e8m0() -> Array:
    """Powers of two; the last byte is NaN."""
    table = powers(np.arange(256))
    table[255] = np.nan
    return table


E4M3, E8M0 = _e4m3(), _e8m0()
