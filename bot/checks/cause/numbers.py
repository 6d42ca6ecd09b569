"""Numbers out of safetensors files as float64 arrays of numpy, by rows, and roundings of them: this package's own reading.

Nothing here is as large as a tensor, but for the factors of a product.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bot.checks.reading.checkpoint import Matrix, TensorRef, View

Floats = NDArray[np.float64]
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Unit roundoff of what weights are stored as.
UNITS = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}


def view_of(ref: TensorRef) -> View:
    """A tensor as a matrix: shape[0] × the rest; a scalar is one row."""
    height = ref.stored.shape[0] if ref.stored.shape else 1
    return height, ref.elements // max(1, height)


def rows_of(ref: TensorRef, rows: Sequence[int], view: View | None = None) -> Floats:
    """The rows with these numbers, in this order: len(rows) × width."""
    _, width = view or view_of(ref)
    if not rows or not width:
        return np.empty((len(rows), width))
    parts = [_elements(ref, low * width, high * width).reshape(high - low, width) for low, high in _runs(rows)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def matrix(wanted: Matrix) -> Floats:
    """A matrix out of an adapter tensor."""
    if not wanted.rows or not wanted.columns:
        return np.empty(wanted.shape)
    values = rows_of(wanted.ref, wanted.rows, wanted.view or view_of(wanted.ref))
    values = values[:, wanted.columns.start : wanted.columns.stop : wanted.columns.step]
    return np.ascontiguousarray(values.T if wanted.transposed else values)


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or rows[at] != rows[at - 1] + 1:
            yield rows[first], rows[at - 1] + 1
            first = at


def _elements(ref: TensorRef, low: int, high: int) -> Floats:
    if ref.packed is not None:
        return _dequantised(ref, low, high)
    size = SIZES[ref.stored.dtype]
    with ref.path.open("rb", buffering=0) as opened:
        content = os.pread(opened.fileno(), (high - low) * size, ref.stored.start + low * size)
    return decode(content, ref.stored.dtype)


def decode(content: bytes, dtype: str) -> Floats:
    """Stored bytes as float64; `dtype` by safetensors' name for it."""
    if dtype == "BF16":
        wide = np.frombuffer(content, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).astype(np.float64)
    return np.frombuffer(content, f"<f{SIZES[dtype]}").astype(np.float64)


def _dequantised(ref: TensorRef, low: int, high: int) -> Floats:
    assert ref.packed is not None
    size = max(1, ref.elements // ref.packed.slabs)
    parts: list[Any] = []
    for number in range(low // size, -(-high // size)):
        slab = ref.packed.numbers(number)
        parts.append(slab[max(0, low - number * size) : high - number * size].astype(np.float64))
    return np.concatenate(parts)


# --- roundings ----------------------------------------------------------------------------------------------------------


def round_to(values: Floats, dtype: str) -> Floats:
    """float64 → `dtype` → float64, rounded once: to nearest, ties to even."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if dtype == "BF16":
            return _to_bfloat16(values)
        return values if dtype == "F64" else values.astype(f"<f{SIZES[dtype]}").astype(np.float64)


def _to_bfloat16(values: Floats) -> Floats:
    """By the bits: 45 of the 52 behind the point are dropped. Numbers below 2⁻¹²⁶ keep more of theirs than bfloat16 has."""
    bits = np.ascontiguousarray(values).view(np.uint64)
    odd = (bits >> np.uint64(45)) & np.uint64(1)
    rounded = (bits + odd + np.uint64((1 << 44) - 1)) & ~np.uint64((1 << 45) - 1)
    return np.where(np.isfinite(values), rounded.view(np.float64), values)


def toward_zero(values: Floats, dtype: str) -> Floats:
    """The neighbour in `dtype` that is not larger than the value."""
    near = round_to(values, dtype)
    beyond = np.abs(near) > np.abs(values)
    power = 2.0 ** np.floor(np.log2(np.maximum(np.abs(near), 2.0**-126)))
    # Below a power of two the spacing is half of that above it.
    step = 2 * UNITS[dtype] * np.where(np.abs(near) == power, power / 2, power)
    return np.where(beyond, near - np.sign(near) * step, near)


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of the numbers below `count`, evenly spaced, all of them where there are no more."""
    if count <= wanted:
        return list(range(count))
    return [math.floor(at * count / wanted) for at in range(wanted)]
