"""Floating-point numbers as safetensors files hold them, in numpy: which type holds their bits, and what they are in float64.

numpy has no bfloat16: it is held as the uint16 of its bits. This is the verifier's own; the merger has another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HELD_AS: dict[str, type[np.generic]] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}


def itemsize(dtype: str) -> int:
    """Bytes of one number; of the dtypes in HELD_AS."""
    return np.dtype(HELD_AS[dtype]).itemsize


def as_float64(held: Array, dtype: str) -> Array:
    """The same numbers, exactly, as a C-contiguous float64 array of the same shape."""
    if dtype == "BF16":
        held = (held.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):  # NaN of the kind that signals
        return np.ascontiguousarray(held, dtype=np.float64)
