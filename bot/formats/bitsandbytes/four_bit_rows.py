"""Rows of a weight of four bits: by range where it is stored as it is seen, from its packed bytes where it is transposed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bot.formats.base import ReadRange, Rows
from bot.formats.bitsandbytes import double_quant
from bot.formats.bitsandbytes.blockwise import CHUNK, KINDS, Kind, dequantise
from bot.formats.scale_grid import read_numbers
from bot.records import Stored

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class FourBitRows:
    """`take`: (first byte, bytes) → what is stored; `absmax`: float32, of every block of `size` numbers."""

    take: Callable[[int, int], Array]
    absmax: Array
    size: int
    kind: Kind
    columns: int

    def rows(self, first: int, count: int) -> Array:
        """float32, count × columns."""
        start, many = first * self.columns, count * self.columns
        low = start // 2
        raw = self.take(low, (start + many + 1) // 2 - low)
        return dequantise(raw, self.kind, self.absmax, self.size, start, many).reshape(count, self.columns)


@dataclass(frozen=True, kw_only=True, eq=False)
class TransposedFourBitRows:
    """A Conv1D: stored as out × in, seen as in × out. It keeps the packed bytes, since a row needs some of all of them."""

    raw: Array
    absmax: Array
    size: int
    kind: Kind
    out: int
    into: int

    def rows(self, first: int, count: int) -> Array:
        """float32, count × out."""
        values = np.empty((count, self.out), np.float32)
        step = max(1, CHUNK // self.out)
        starts = np.arange(self.out) * self.into
        for done in range(0, count, step):
            part = values[done : done + step]
            at = starts + np.arange(first + done, first + done + len(part))[:, None]
            byte = self.raw[at >> 1]
            np.multiply(
                self.kind.levels[np.where(at & 1, byte & 15, byte >> 4)], self.absmax[at // self.size], out=part
            )
        return values


def open_stored(tensor: Stored, read: ReadRange) -> Rows:
    """A logical tensor of bnb4; its absmax are read, and where they are quantised themselves, restored."""
    assert tensor.packed is not None
    parts, settings = dict(tensor.packed.parts), dict(tensor.packed.settings)
    main, kind, size = parts["weight"], KINDS[str(settings["quant_type"])], int(settings["blocksize"])
    if settings["nested_blocksize"]:
        codes = read(parts["absmax"], 0, parts["absmax"].stop - parts["absmax"].start)
        outer, levels = (read_numbers(parts[name], read).reshape(-1) for name in ("nested_absmax", "nested_quant_map"))
        offset = np.float32(settings["offset"])
        absmax = double_quant.restore(codes, outer, levels, offset, int(settings["nested_blocksize"]))
    else:
        absmax = read_numbers(parts["absmax"], read).reshape(-1)
    if settings["transposed"]:
        into, out = tensor.shape
        raw = read(main, 0, main.stop - main.start)
        return TransposedFourBitRows(raw=raw, absmax=absmax, size=size, kind=kind, out=out, into=into)
    return FourBitRows(
        take=lambda start, count: read(main, start, count),
        absmax=absmax,
        size=size,
        kind=kind,
        columns=tensor.shape[1],
    )
