"""MXFP4 experts read row by row of what they are after a transposition."""

from __future__ import annotations

from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bot.formats.base import ReadRange
from bot.formats.float8 import HALF_POWERS, TWICE_E2M1_PAIRS
from bot.records import Stored

Array = NDArray[Any]
GROUP = 32


class _HeldExpert(local):
    """The packed bytes of one expert, for each thread: a row needs a few bytes of each of its outputs."""

    expert = -1
    blocks: Array  # out × (in / 2)
    scales: Array  # out × groups


class TransposedRows:
    """Rows of (experts · in) × out."""

    def __init__(self, blocks: Stored, scales: Stored, read: ReadRange) -> None:
        self._blocks, self._scales, self._read = blocks, scales, read
        _, self._out, self._groups, _ = blocks.shape
        self._held = _HeldExpert()

    def rows(self, first: int, count: int) -> Array:
        """float32, count × out."""
        deep = self._groups * GROUP
        values = np.empty((count, self._out), np.float32)
        done = 0
        while done < count:
            expert, start = divmod(first + done, deep)
            some = min(count - done, deep - start)
            self._expert(expert)
            values[done : done + some] = self._values(start, start + some).T
            done += some
        return values

    def _values(self, start: int, stop: int) -> Array:
        """Inputs `start` to `stop` of every output: out × (stop − start)."""
        low, high = start // GROUP, -(-stop // GROUP)
        raw = self._held.blocks[:, low * GROUP // 2 : high * GROUP // 2].reshape(self._out, high - low, GROUP // 2)
        values = decode(raw, self._held.scales[:, low:high])
        return values.reshape(self._out, -1)[:, start - low * GROUP : stop - low * GROUP]

    def _expert(self, expert: int) -> None:
        if self._held.expert == expert:
            return
        size = self._out * self._groups
        self._held.blocks = self._read(self._blocks, expert * size * 16, size * 16).reshape(self._out, -1)
        self._held.scales = self._read(self._scales, expert * size, size).reshape(self._out, self._groups)
        self._held.expert = expert


def decode(blocks: Array, scales: Array) -> Array:
    """Packed bytes (out × groups × 16) and exponent bytes (out × groups) as float32, out × groups × 32."""
    values = TWICE_E2M1_PAIRS[blocks].view(np.float32)
    with np.errstate(over="ignore"):
        values *= HALF_POWERS[scales[..., None]]
    return values
