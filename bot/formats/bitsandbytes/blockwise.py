"""bitsandbytes' blocks of four-bit numbers, quantised and dequantised in float32, bit for bit as it does on a CPU.

A tensor is taken flat, row after row, in blocks of `size` numbers; each has one absmax, and each number becomes the nearest
of 16 levels of number / absmax. Two numbers make a byte, the first in the high four bits.

Source: bitsandbytes 0.50 (backends/default/ops.py; for nf4 the CUDA kernel's thresholds are the same). Its CPU kernel with
AVX512 takes wrong blocks where a row is no multiple of `size`; there, its other kernels and CUDA's are followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CHUNK = 1 << 17  # numbers worked on at a time: they stay in the processor's cache
SMALLEST = np.float32(1e-38)  # instead of an absmax of zero, which could not be divided by

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3)  # twelfths


@dataclass(frozen=True, kw_only=True, eq=False)
class Kind:
    """`levels`: code → number; `order`: the codes of the levels from the lowest up; `bounds`: what separates those."""

    levels: Array
    order: Array
    bounds: Array
    pairs: Array  # byte → its two numbers, as one complex64 (two float32 side by side)


def _kind(levels: Array, order: Array) -> Kind:
    ascending = levels[order]
    byte = np.arange(256)
    return Kind(
        levels=levels,
        order=order.astype(np.uint8),
        bounds=(ascending[:-1] + ascending[1:]) / np.float32(2),
        pairs=np.stack([levels[byte >> 4], levels[byte & 15]], axis=1).view(np.complex64)[:, 0].copy(),
    )


KINDS = {
    "nf4": _kind(np.array(NF4, np.float32), np.arange(16)),
    # Of the two zeros, negative numbers become the code 0 and positive ones the code 8 (torch.argsort's order).
    "fp4": _kind(
        np.array(FP4, np.float32) / np.float32(12), np.array([11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3])
    ),
}


# --- codes → numbers ----------------------------------------------------------------------------------------------


def dequantise(raw: Array, kind: Kind, absmax: Array, size: int, first: int, count: int) -> Array:
    """The numbers `first` to `first + count` of a flat tensor, float32. `raw`: the bytes that hold them."""
    decoded = np.empty(2 * len(raw), np.float32)
    np.take(kind.pairs, raw, out=decoded.view(np.complex64), mode="wrap")  # wrap: not checked, and no byte is outside
    numbers: Array = decoded[first % 2 : first % 2 + count]
    scale(numbers, absmax, size, first)
    return numbers


def scale(numbers: Array, each: Array, size: int, first: int) -> None:
    """Multiply flat numbers, of which the first is the tensor's number `first`, by what belongs to their blocks."""
    for start, stop, block in _runs(first, len(numbers), size):
        many = (stop - start) // size
        if many:
            whole = numbers[start : start + many * size].reshape(many, size)
            np.multiply(whole, each[block : block + many, None], out=whole)
        else:
            numbers[start:stop] *= each[block]


def _runs(first: int, count: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, number of the first block): a part of a block, whole blocks, a part of a block."""
    start = 0
    for stop in (min(count, -first % size), count - (first + count) % size, count):
        if stop > start:
            yield start, stop, (first + start) // size
            start = stop


# --- numbers → codes ----------------------------------------------------------------------------------------------


def largest(numbers: Array, size: int) -> Array:
    """The absmax of each block. The numbers begin with a block; a part of one can only be the tensor's last."""
    starts = np.arange(0, len(numbers), size)
    absmax: Array = np.maximum.reduceat(np.abs(numbers), starts)
    if len(numbers) % size:
        absmax[-1:] = np.maximum(absmax[-1:], SMALLEST)
    return absmax


def nearest_level_indices(numbers: Array, absmax: Array, size: int, kind: Kind) -> Array:
    """Which level is nearest, counted from the lowest (uint8); of two equally near, the lower one."""
    scaled = np.empty(len(numbers), np.float32)
    whole = len(numbers) // size * size
    inverse = np.float32(1) / np.maximum(absmax[: whole // size], SMALLEST)
    with np.errstate(invalid="ignore"):  # an infinite number; its block's numbers all become NaN
        np.multiply(numbers[:whole].reshape(-1, size), inverse[:, None], out=scaled[:whole].reshape(-1, size))
        if whole < len(numbers):
            np.divide(numbers[whole:], absmax[-1], out=scaled[whole:])  # bitsandbytes divides in the last block only
    indices = np.zeros(len(numbers), np.uint8)
    above = np.empty(len(numbers), np.bool_)
    for bound in kind.bounds:
        np.greater(scaled, bound, out=above)
        indices += above.view(np.uint8)
    return indices


def pack(indices: Array, kind: Kind) -> Array:
    """Indices of levels as bytes, two in each; an odd last one is followed by a zero of the scaled numbers."""
    codes = np.take(kind.order, indices)
    if len(codes) % 2:
        zero = np.count_nonzero(kind.bounds < 0)
        codes = np.append(codes, kind.order[zero])
    packed: Array = codes[0::2] << np.uint8(4)
    packed |= codes[1::2]
    return packed


def round_trip(numbers: Array, absmax: Array, restored: Array, size: int, kind: Kind) -> Array:
    """What is left of numbers that are quantised by `absmax` and dequantised by `restored`."""
    values = np.take(kind.levels[kind.order], nearest_level_indices(numbers, absmax, size, kind))
    scale(values, restored, size, 0)
    return values
