"""The deltas of a plan's patches: read out of the adapter, checked, prepared once and kept while they are in use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from threading import Lock

import numpy as np

from bot.engines.files import OpenInputs
from bot.errors import Refused
from bot.numerics.delta import Delta, make_delta
from bot.numerics.rounder import Rounder
from bot.numerics.rounding import RAW, Array, widen
from bot.records import AddDelta, Factor, Patch, Stored

KEPT = 4  # prepared deltas: one for each worker
WHOLE = 2  # adapter tensors held whole
BLOCK = 1 << 18  # elements of a block when norms along columns are summed
Read = Callable[[Stored, int, int, int], Array]


class Deltas:
    """Shared by the workers of one shard."""

    def __init__(self, files: OpenInputs) -> None:
        self._files = files
        self._kept: OrderedDict[int, Delta] = OrderedDict()
        self._whole: OrderedDict[Stored, Array] = OrderedDict()
        self._lock = Lock()

    @staticmethod
    def between(op: AddDelta, first: int, stop: int) -> list[tuple[Patch, int, int]]:
        """The patches that meet rows `first` to `stop`, each with the rows it shares with them: from its own first of them
        on, every step-th."""
        met = ((patch, _met(patch, first), min(stop, patch.rows[1])) for patch in op.patches)
        return [(patch, low, high) for patch, low, high in met if low < high]

    def prepared(self, op: AddDelta, patch: Patch, read: Read) -> Delta:
        """The patch's delta. Raises Refused for a NaN or Inf in the adapter."""
        with self._lock:
            delta = self._kept.get(id(patch))
            if delta is None:
                delta = self._kept[id(patch)] = self._prepare(op, patch, read)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(id(patch))
            return delta

    def _prepare(self, op: AddDelta, patch: Patch, read: Read) -> Delta:
        lefts = [self._factor(term.left) for term in patch.terms]
        rights = [self._factor(term.right) if term.right else np.ones((1, 1), np.float32) for term in patch.terms]
        magnitude = self._factor(patch.magnitude).astype(np.float64).reshape(-1) if patch.magnitude else None
        scalings = [term.scaling for term in patch.terms]
        delta = make_delta(lefts, rights, scalings, out=op.target.dtype, magnitude=magnitude, along=patch.along)
        if magnitude is not None and patch.along == "columns":
            return self._with_squares(op, patch, delta, read)
        return delta

    def _with_squares(self, op: AddDelta, patch: Patch, delta: Delta, read: Read) -> Delta:
        """A first pass over the tensor: Σ V² of each column."""
        rounder, columns = Rounder(), op.view[1]
        total = np.zeros(patch.columns[1] - patch.columns[0])
        step = max(1, BLOCK // columns)
        for first in range(patch.rows[0], patch.rows[1], step):
            count = min(step, patch.rows[1] - first)
            low = _met(patch, first)
            weight = read(op.source, first, count, columns)[low - first :: patch.step, slice(*patch.columns)].copy()
            rounder.squares(weight, op.source.dtype, delta, (low - patch.rows[0]) // patch.step, total)
        return replace(delta, squares=total)

    def _factor(self, factor: Factor) -> Array:
        """rows × columns, float32 or float64, exactly."""
        wide = widen(np.ascontiguousarray(self._cut_out(factor)), factor.stored.dtype)
        if not bool(np.isfinite(wide).all()):
            raise Refused(
                f"The adapter's {factor.stored.key} holds a NaN or Inf.", remedy="Train or save the adapter again."
            )
        return wide.T if factor.transposed else wide

    def _cut_out(self, factor: Factor) -> Array:
        """The numbers as stored. Of whole rows only those are read; a tensor that is cut by columns (the B of stacked
        experts, once for every expert) is kept for the next cut."""
        stored = factor.stored
        count = stored.shape[0] if stored.shape else 1
        size = (stored.stop - stored.start) // max(1, count)
        low, high, step = factor.rows
        if step == 1 and factor.columns == (0, size // np.dtype(RAW[stored.dtype]).itemsize, 1):
            return self._rows(stored, low, high, size)
        if stored not in self._whole:
            self._whole[stored] = self._rows(stored, 0, count, size)
            while len(self._whole) > WHOLE:
                self._whole.popitem(last=False)
        return self._whole[stored][slice(*factor.rows), slice(*factor.columns)]

    def _rows(self, stored: Stored, low: int, high: int, size: int) -> Array:
        raw = np.empty((high - low) * size // np.dtype(RAW[stored.dtype]).itemsize, RAW[stored.dtype])
        self._files.read(stored, low * size, raw.data.cast("B"))
        return raw.reshape(high - low, -1)


def _met(patch: Patch, first: int) -> int:
    """The patch's first row from `first` on."""
    return patch.rows[0] + max(0, -(-(first - patch.rows[0]) // patch.step)) * patch.step
