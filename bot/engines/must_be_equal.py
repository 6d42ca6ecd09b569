"""Whether two adapter tensors say the same, and whether one says nothing."""

from __future__ import annotations

import numpy as np

from bot.engines.files import OpenInputs
from bot.numerics.rounding import RAW, Array, widen
from bot.records import Local, Stored


def differ(first: Stored, second: Stored, transposed: bool, inputs: Local) -> bool:
    """Whether the numbers differ; `transposed`: the second tensor is stored transposed."""
    with OpenInputs(inputs) as files:
        numbers, others = _numbers(first, files), _numbers(second, files)
    return not np.array_equal(numbers, others.T if transposed else others)


def is_nonzero(stored: Stored, inputs: Local) -> bool:
    """Whether any number is not zero."""
    with OpenInputs(inputs) as files:
        return bool(np.any(_numbers(stored, files) != 0))


def _numbers(stored: Stored, files: OpenInputs) -> Array:
    raw = np.empty(stored.shape, RAW[stored.dtype])
    files.read(stored, 0, raw.data.cast("B"))
    return widen(raw, stored.dtype)
