"""Numbers of eight and four bits, which numpy does not know: decoded through tables, encoded with integer arithmetic.

Sources: e4m3 ("fn": no infinities, one NaN) is Micikevicius et al., "FP8 Formats for Deep Learning" (2022); e8m0 and e2m1 are
the OCP Microscaling Formats specification (2023).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LARGEST = 448.0  # of e4m3
SIGN, REST = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
SMALLEST_NORMAL = np.float32(2.0**-6)
ALIGNER = np.float32(2.0**14)  # its neighbours are 2⁻⁹ apart, as e4m3's subnormal numbers are


def _e4m3() -> Array:
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    values = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8 + mantissa, exponent - 10))
    values[(code & 0x7F) == 0x7F] = np.nan
    signed: Array = np.where(code & 0x80, -values, values).astype(np.float32)
    return signed


def _powers() -> Array:
    with np.errstate(over="ignore"):
        return np.ldexp(1.0, np.arange(256) - 127).astype(np.float32)  # the last one is beyond float32: infinity


def _pairs() -> Array:
    """Byte → two e2m1 numbers, the low four bits first, as one complex64 (two float32 side by side)."""
    positive = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    values = np.concatenate([positive, -positive])
    code = np.arange(256)
    return np.stack([values[code & 15], values[code >> 4]], axis=1).view(np.complex64)[:, 0]


E4M3 = _e4m3()
POWERS = _powers()  # scale bytes as exponents: 2^(byte − 127), where a library reads them as plain bytes
E8M0 = np.where(np.arange(256) == 255, np.float32(np.nan), POWERS).astype(np.float32)  # and as numbers of that type
E2M1_PAIRS = _pairs()
# Byte → two unsigned numbers of four bits with their offset of 8 taken off, the low four first.
NIBBLES = (np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=1) - 8).astype(np.float32).view(np.complex64)[:, 0]
# 2v · 2^(byte − 128) is v · 2^(byte − 127) without the infinity of 2^128 on the way, as torch.ldexp has it.
TWICE_E2M1_PAIRS = (_pairs().view(np.float32) * np.float32(2)).view(np.complex64)
HALF_POWERS = np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)


def encode_e4m3(values: Array) -> Array:
    """float32 → e4m3 as uint8: to nearest, ties to even; larger numbers become ±448; NaN stays NaN, zeros keep their sign.

    The upper half of a float32 has eight significant bits, four more than e4m3: with its last bit set wherever the lower half
    is not zero (rounding to odd) it rounds as the whole does, and a table of all upper halves holds the codes.
    """
    halves = np.ascontiguousarray(values).view(np.uint16).reshape(*values.shape, 2)
    codes: Array = _CODES.take(halves[..., 1] | (halves[..., 0] != 0), mode="clip")
    return codes


def encode_e2m1(values: Array) -> Array:
    """float32 → e2m1 as uint8, one number in each: to nearest, ties to even; beyond ±6 it is ±6; the sign bit is kept.

    By the table of all upper halves, as `encode_e4m3` has it. No NaN may come in.
    """
    halves = np.ascontiguousarray(values).view(np.uint16).reshape(*values.shape, 2)
    codes: Array = _E2M1_CODES.take(halves[..., 1] | (halves[..., 0] != 0), mode="clip")
    return codes


def _e2m1_code(values: Array) -> Array:
    """By the midpoints between neighbours; where one is met, the neighbour whose code is even is taken."""
    size = np.abs(values)
    code = np.zeros(values.shape, np.uint8)
    for number, middle in enumerate((0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)):
        code += size >= middle if number % 2 else size > middle
    return code | np.signbit(values).astype(np.uint8) << 3


def _code(values: Array) -> Array:
    bits = values.view(np.uint32)
    sign = (bits & SIGN) >> np.uint32(24)
    size = np.minimum((bits & REST).view(np.float32), np.float32(LARGEST))
    plain = size.view(np.uint32)
    odd = plain >> np.uint32(20) & np.uint32(1)
    normal = (plain + np.uint32(0x7FFFF) + odd >> np.uint32(20)) - np.uint32(960)  # 960: the biases, (127 − 7) · 8
    # Adding the aligner rounds to its grid; what is left of its bits is the subnormal code (8: the smallest normal).
    with np.errstate(invalid="ignore"):
        small = (size + ALIGNER).view(np.uint32) - ALIGNER.view(np.uint32)
    code = np.where(size < SMALLEST_NORMAL, small, normal)
    codes: Array = (np.where(np.isnan(size), np.uint32(0x7F), code) | sign).astype(np.uint8)
    return codes


_HALVES = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
_CODES, _E2M1_CODES = _code(_HALVES), _e2m1_code(_HALVES)
