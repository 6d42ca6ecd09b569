"""float32 numbers in MXFP4: groups of 32 e2m1 numbers (two in a byte, the low half first) under one exponent byte − 127.

A group's scale is 2^(⌊log2 m⌋ − 2), m its largest number without its sign, rounded to two significant bits: it is doubled from
7 scales on, between e2m1's largest, 6, and what would be the next one, 8; 2⁻¹²⁷ at the least. Each number ÷ scale, which is
exact, is rounded to the nearest e2m1 number, ties to even, and what is beyond ± 6 is ± 6. A number keeps its sign, and an exact
zero has none; a group of zeros has the byte 0.

So do compressed-tensors (generate_mx_scales, cast_to_fp4) and vLLM's reference (tests/quantization/reference_mxfp4.py). Others choose
other scales: the OCP Microscaling Formats specification (2023) 2^(⌊log2 max⌋ − 2), triton_kernels (transformers' own quantiser, by
default) and NVIDIA's export to gpt-oss's layout (Model-Optimizer's MXFP4QTensor) the smallest under which nothing is beyond 6. Both
have an edge where the numbers of a base lie: one whose largest is 4 scales, or 6, gets another scale by the smallest delta, and
its other numbers are rounded anew. Measured on groups of normal numbers under either rule and a delta of 1 % of their size: 3 to 7 %
of error by those rules, 1 % by this one. Integers decide the scale, so that it is the same everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bot.formats.float8 import encode_e2m1

Array = NDArray[Any]

BEHIND = np.uint32((1 << 23) - 1)  # the bits of a float32 behind its point
DOUBLED = np.uint32(3 << 21)  # those of 1.75: 7 is 1.75 · 2²
UPWARDS = np.ldexp(np.float32(1), 127 - np.arange(254)).astype(np.float32)  # 1 ÷ scale; exact


def encode(values: Array) -> tuple[Array, Array]:
    """Finite float32 numbers, … × groups × 32 → bytes (… × groups × 16) and scales (… × groups), both uint8.

    Raises ValueError for a NaN or Inf.
    """
    bits = np.abs(values).max(axis=-1).view(np.uint32)
    exponent = (bits >> np.uint32(23)).astype(np.int32)  # biased by 127
    if bool((exponent == 255).any()):
        raise ValueError("NaN or Inf")
    scales = np.maximum(exponent - 2 + ((bits & BEHIND) >= DOUBLED), 0).astype(np.uint8)
    with np.errstate(under="ignore"):
        codes = encode_e2m1((values + np.float32(0)) * UPWARDS[scales][..., None])  # −0 + 0 is 0
    return codes[..., 0::2] | codes[..., 1::2] << np.uint8(4), scales
