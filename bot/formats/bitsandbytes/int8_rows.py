"""Rows of an int8 weight with a scale for each output, and such rows made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bot.formats.base import ReadRange, Rows
from bot.formats.scale_grid import read_numbers
from bot.records import Stored

Array = NDArray[Any]
SHARE = np.float32(7.874015718698502e-3)  # 1/127, as bitsandbytes spells it


@dataclass(frozen=True, kw_only=True, eq=False)
class Int8Rows:
    """`scale`: float32, of every output."""

    take: Callable[[int, int], Array]
    scale: Array
    columns: int

    def rows(self, first: int, count: int) -> Array:
        """float32, count × columns."""
        raw = self.take(first * self.columns, count * self.columns).view(np.int8).reshape(count, self.columns)
        return dequantise(raw, self.scale[first : first + count, None])


@dataclass(frozen=True, kw_only=True, eq=False)
class TransposedInt8Rows:
    """A Conv1D: stored as out × in, seen as in × out. It keeps the codes, since a row needs one of each output."""

    codes: Array
    scale: Array

    def rows(self, first: int, count: int) -> Array:
        """float32, count × out."""
        return dequantise(self.codes[:, first : first + count].T, self.scale)


def dequantise(codes: Array, scale: Array) -> Array:
    """(code · scale) · 1/127, rounded after each."""
    values = codes.astype(np.float32, order="C")
    values *= scale
    values *= SHARE
    return values


def quantise(rows: Array) -> tuple[Array, Array]:
    """(int8 codes, float32 scale of each row) of float32 rows, as bitsandbytes' int8_vectorwise_quant on a CPU.

    bitsandbytes rounds to float16 first; what does not fit there gives an infinite scale.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        wide = rows.astype(np.float16).astype(np.float32)
        scale: Array = np.abs(wide).max(axis=1)
        wide *= (np.float32(1) / scale * np.float32(127))[:, None]  # torch divides 127 by a tensor so
        np.rint(wide, out=wide)
    wide[~((scale > 0) & (scale < np.inf))] = 0
    return wide.astype(np.int8), scale


def open_stored(tensor: Stored, read: ReadRange) -> Rows:
    """A logical tensor of bnb8."""
    assert tensor.packed is not None
    parts = dict(tensor.packed.parts)
    main, scale = parts["weight"], read_numbers(parts["scale"], read)
    if dict(tensor.packed.settings)["transposed"]:
        codes = read(main, 0, main.stop - main.start).view(np.int8).reshape(main.shape)
        return TransposedInt8Rows(codes=codes, scale=scale)
    return Int8Rows(take=lambda start, count: read(main, start, count), scale=scale, columns=tensor.shape[1])
