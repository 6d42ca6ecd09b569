"""Rows of any base or adapter tensor, plain or packed, in a worker's own buffers."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock, local

import numpy as np

from bot import formats
from bot.engines.files import OpenInputs
from bot.formats.base import Rows
from bot.numerics.rounding import RAW, Array
from bot.records import Stored

OPEN = 6  # packed tensors whose small parts are kept: a few more than there are workers


class Buffers(local):
    """One thread's buffers."""

    def __init__(self) -> None:
        self._held: dict[str, bytearray] = {}

    def array(self, name: str, dtype: str, count: int) -> Array:
        """`count` numbers as they are stored, in the buffer of that name."""
        kind = np.dtype(RAW[dtype])
        if len(self._held.get(name, b"")) < count * kind.itemsize:
            self._held[name] = bytearray(count * kind.itemsize)
        return np.frombuffer(self._held[name], dtype=kind, count=count)


class TensorReader:
    """Shared by the workers of one shard."""

    def __init__(self, files: OpenInputs, buffers: Buffers) -> None:
        self._files, self._buffers = files, buffers
        self._opened: OrderedDict[Stored, Rows] = OrderedDict()
        self._lock = Lock()

    def rows(self, stored: Stored, first: int, count: int, columns: int, *, name: str = "in") -> Array:
        """Rows as they are stored (bfloat16 as bits); of a packed tensor, in float32."""
        if stored.packed is not None:
            return self._open(stored).rows(first, count).reshape(count, columns)
        numbers = self._buffers.array(name, stored.dtype, count * columns)
        self._files.read(stored, first * columns * numbers.itemsize, numbers.data.cast("B"))
        return numbers.reshape(count, columns)

    def _open(self, stored: Stored) -> Rows:
        with self._lock:
            if stored not in self._opened:
                self._opened[stored] = formats.open_packed(stored, self._range)
                while len(self._opened) > OPEN:
                    self._opened.popitem(last=False)
            self._opened.move_to_end(stored)
            return self._opened[stored]

    def _range(self, stored: Stored, start: int, count: int) -> Array:
        raw = np.empty(count, np.uint8)
        self._files.read(stored, start, raw.data)
        return raw
