"""Rows of a weight as it is after it was quantised and dequantised, from the stored numbers, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bot.formats.base import ReadRange, Rows
from bot.formats.bitsandbytes import double_quant
from bot.formats.bitsandbytes.blockwise import CHUNK, KINDS, Kind, largest, nearest_level_indices, pack, round_trip
from bot.formats.bitsandbytes.four_bit_rows import TransposedFourBitRows
from bot.numerics.rounding import RAW, widen
from bot.records import Stored

Array = NDArray[Any]
SWEEP = 1 << 20  # numbers read at a time when all of a tensor's blocks are measured


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedRows:
    """`take`: (first number, numbers) → float32 of the flat tensor, which has `count`."""

    take: Callable[[int, int], Array]
    count: int
    columns: int
    size: int
    kind: Kind
    double: bool
    lock: Lock = field(default_factory=Lock)

    def rows(self, first: int, count: int) -> Array:
        """float32, count × columns."""
        start, stop = first * self.columns, (first + count) * self.columns
        low = start // self.size * self.size
        high = min(self.count, -(-stop // self.size) * self.size)
        restored = self._restored_once() if self.double else None
        values = np.empty(high - low, np.float32)
        for at in range(low, high, CHUNK):
            numbers = self.take(at, min(CHUNK, high - at))
            absmax = largest(numbers, self.size)
            block = at // self.size
            used = absmax if restored is None else restored[block : block + len(absmax)]
            values[at - low : at - low + len(numbers)] = round_trip(numbers, absmax, used, self.size, self.kind)
        return values[start - low : stop - low].reshape(count, self.columns)

    def _restored_once(self) -> Array:
        with self.lock:  # several threads read one tensor, and its mean takes a look at all of it
            return self._restored

    @cached_property
    def _restored(self) -> Array:
        starts = range(0, self.count, SWEEP)
        return doubled(
            np.concatenate([largest(self.take(at, min(SWEEP, self.count - at)), self.size) for at in starts])
        )


def doubled(absmax: Array) -> Array:
    """What double quantisation leaves of absmax."""
    offset = double_quant.mean(absmax)
    codes, outer = double_quant.compress(absmax, offset)
    return double_quant.restore(codes, outer, double_quant.DYNAMIC, offset)


def open_simulated(tensor: Stored, read: ReadRange) -> Rows:
    """A logical tensor whose one part is the plain one."""
    assert tensor.packed is not None
    main, settings = dict(tensor.packed.parts)["weight"], dict(tensor.packed.settings)
    kind, size, double = KINDS[str(settings["quant_type"])], int(settings["blocksize"]), bool(settings["double"])
    if settings["transposed"]:
        return _open_transposed(main, read, kind, size, double)
    raw = np.dtype(RAW[main.dtype])

    def take(first: int, count: int) -> Array:
        return widen(read(main, first * raw.itemsize, count * raw.itemsize).view(raw), main.dtype)

    return SimulatedRows(
        take=take, count=math.prod(tensor.shape), columns=tensor.shape[1], size=size, kind=kind, double=double
    )


def _open_transposed(main: Stored, read: ReadRange, kind: Kind, size: int, double: bool) -> TransposedFourBitRows:
    """A Conv1D, stored in × out and quantised as out × in: its blocks run down the columns, so that it is quantised whole."""
    into, out = main.shape
    stored = read(main, 0, main.stop - main.start).view(RAW[main.dtype]).reshape(into, out)
    unit = size // math.gcd(into, size)  # outputs that are whole blocks together
    step = max(1, CHUNK // into // unit) * unit
    absmax: list[Array] = []
    packed: list[Array] = []
    for first in range(0, out, step):
        numbers = widen(np.ascontiguousarray(stored[:, first : first + step].T).reshape(-1), main.dtype)
        absmax.append(largest(numbers, size))
        packed.append(pack(nearest_level_indices(numbers, absmax[-1], size, kind), kind))
    every = np.concatenate(absmax)
    return TransposedFourBitRows(
        raw=np.concatenate(packed), absmax=doubled(every) if double else every, size=size, kind=kind, out=out, into=into
    )
