"""Double quantisation: the absmax of every block, less their mean, as bitsandbytes' dynamic numbers of eight bits.

Source: bitsandbytes 0.50 (functional.py; csrc/cpu_ops.cpp, as it runs on x86; ARM and CUDA decide a few in a thousand codes
otherwise, which are near the middle between two). One thing differs on purpose: its mean is torch's float32 sum, which
depends on the threads and the processor. Here it is the exact sum, rounded to float64, divided, and rounded to float32: the
same everywhere, in any order, and within torch's own variation.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SIZE = 256  # absmax in a block
FINE = 65535  # bitsandbytes looks its codes up in a table of this many steps
MANY = 1 << 14  # numbers that are Python objects at a time
F32 = np.float32


def _dynamic_map() -> Array:
    """Code → number: in each of 7 decades, twice as many steps as in the one below; create_dynamic_map, with torch's linspace."""
    levels = [0.0, 1.0]
    for decade in range(7):
        count = 2**decade + 1
        at = np.arange(count)
        step = np.float64((F32(1) - F32(0.1)) / F32(count - 1))
        up, down = np.float64(F32(0.1)) + step * at, 1.0 - step * (count - 1 - at)
        edges = np.where(at < count // 2, up, down).astype(F32)  # rounded once: torch multiplies and adds in one step
        middles = (edges[:-1] + edges[1:]) / F32(2) * F32(10.0 ** (decade - 6))
        levels += [*middles.tolist(), *(-middles).tolist()]
    return np.sort(np.array(levels)).astype(F32)


def _table() -> Array:
    bounds = F32(0.5) * (DYNAMIC[:-1] + DYNAMIC[1:])
    steps = F32(-1) + F32(2) * np.arange(FINE + 1, dtype=F32) / F32(FINE)
    return np.searchsorted(bounds, steps, side="left").astype(np.uint8)


DYNAMIC = _dynamic_map()
NEAREST = _table()


def mean(absmax: Array) -> np.float32:
    """The mean of float32 numbers, from their exact sum (math.fsum)."""
    runs = (absmax[start : start + MANY].tolist() for start in range(0, len(absmax), MANY))
    return F32(math.fsum(chain.from_iterable(runs)) / len(absmax))


def compress(absmax: Array, offset: np.float32) -> tuple[Array, Array]:
    """(codes: uint8, the absmax of each 256 of them: float32) of float32 numbers, less the offset."""
    rest = np.zeros(-(-len(absmax) // SIZE) * SIZE, F32)
    np.subtract(absmax, offset, out=rest[: len(absmax)])
    blocks = rest.reshape(-1, SIZE)
    outer = np.abs(blocks).max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.clip(blocks * (F32(1) / outer)[:, None], -1, 1)
    step = ((scaled + F32(1)) * F32(0.5)).astype(np.float64) * FINE + 0.5
    # float32 again: multiplied and added in one.
    at = np.where(outer[:, None] == 0, 0, step).astype(F32).astype(np.int64)
    codes = np.where(outer[:, None] == 0, 0, NEAREST[at]).astype(np.uint8)
    return codes.reshape(-1)[: len(absmax)], outer


def restore(codes: Array, outer: Array, levels: Array, offset: np.float32, size: int = SIZE) -> Array:
    """The absmax that codes stand for, float32. `levels`: code → number; `outer`: one for each `size` codes."""
    absmax: Array = np.take(levels, codes)
    absmax *= np.repeat(outer, size)[: len(absmax)]
    absmax += offset
    return absmax
