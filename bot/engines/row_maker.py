"""Rows of what ops make, as a merge stores them: read in a worker's own buffers, added to, and rounded once."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from threading import Lock, local

import numpy as np

from bot import formats
from bot.checkpoint.header import TORCH_NAMES
from bot.engines.deltas import Deltas
from bot.engines.files import OpenInputs
from bot.errors import Refused
from bot.formats.base import Rows
from bot.numerics.delta import Delta
from bot.numerics.rounder import Arithmetic, Rounder
from bot.numerics.rounding import RAW, Array, clamp, narrow, widen
from bot.records import AddDelta, Cast, Copy, PlainOp, Replace, SetRows, Stored

OPEN = 6  # packed tensors whose small parts are kept: a few more than there are workers


class Worker(local):
    """One thread's rounder, and what it needs to make rows for a writer of another form."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.rounder = Rounder(arithmetic)


class RowMaker:
    """Rows of what ops make, as a merge stores them. Shared by workers; a shard has one, and who asks for no shard."""

    def __init__(self, files: OpenInputs, arithmetic: Arithmetic) -> None:
        self.clamps = arithmetic.clamps
        self.worker, self.buffers = Worker(arithmetic), Buffers()
        self.reader = TensorReader(files, self.buffers)
        self.deltas = Deltas(files)

    def float32(self, op: PlainOp, columns: int, first: int, count: int) -> Array:
        block = self.buffers.array("out", op.target.dtype, count * columns).reshape(count, columns)
        self.fill(op, first, block)
        return block

    def fill(self, op: PlainOp, first: int, block: Array) -> None:
        """block ← the rows from `first` on of what the op makes, rounded once. Raises Refused."""
        match op:
            case AddDelta():
                self._add_delta(op, first, block)
            case SetRows():
                self._set_rows(op, first, block)
            case Replace():
                self._cast(op.values, op.target, first, block)
            case Cast() | Copy():
                self._cast(op.source, op.target, first, block)

    def _add_delta(self, op: AddDelta, first: int, block: Array) -> None:
        count, columns = block.shape
        weight = self.reader.rows(op.source, first, count, columns)
        patches = self.deltas.between(op, first, first + count)
        if sum(len(range(low, high, p.step)) * (p.columns[1] - p.columns[0]) for p, low, high in patches) < weight.size:
            self._convert(weight, op.source, block, op.target)  # no patch covers all of it
        for patch, low, high in patches:
            inside = slice(low - first, high - first, patch.step), slice(*patch.columns)
            # A pass before this one must not read into the buffer that `weight` lies in.
            delta = self.deltas.prepared(op, patch, partial(self.reader.rows, name="squares"))
            row = (low - patch.rows[0]) // patch.step
            self._round(weight[inside], op.source.dtype, delta, row, block[inside], op)

    def _round(self, weight: Array, dtype: str, delta: Delta, first: int, block: Array, op: AddDelta) -> None:
        result = block if block.flags.c_contiguous else np.empty(block.shape, block.dtype)
        try:
            self.worker.rounder.add(weight, dtype, delta, first, result, op.target.dtype)
        except ValueError as error:
            raise _unusable(op.source, error) from error
        except OverflowError as error:
            raise _too_large(op.target) from error
        if result is not block:
            block[...] = result

    def _set_rows(self, op: SetRows, first: int, block: Array) -> None:
        count, columns = block.shape
        indices = {row: at for at, row in enumerate(op.rows)}
        self._convert(self.reader.rows(op.source, first, count, columns), op.source, block, op.target)
        for row in sorted(indices.keys() & set(range(first, first + count))):
            values = self.reader.rows(op.values, indices[row], 1, columns, name="values")
            self._convert(values, op.values, block[row - first : row - first + 1], op.target, finite=True)

    def _cast(self, source: Stored, target: Stored, first: int, block: Array) -> None:
        values = self.reader.rows(source, first, *block.shape)
        self._convert(values, source, block, target, finite=source.role == "adapter")

    def _convert(self, values: Array, source: Stored, out: Array, target: Stored, *, finite: bool = False) -> None:
        """out ← values, rounded once. `finite`: the source may hold no NaN or Inf. Raises Refused."""
        wide = widen(np.ascontiguousarray(values), source.dtype)
        if finite and not bool(np.isfinite(wide).all()):
            raise _unusable(source, ValueError("NaN or Inf"))
        out[...] = values if source.dtype == target.dtype else rounded(wide, target, self.clamps)


def rounded(values: Array, target: Stored, clamps: bool) -> Array:
    """The values rounded once to the target's dtype. One that is too large for it becomes its largest number with `clamps`, and
    raises Refused without."""
    result, is_finite = narrow(values, target.dtype), np.isfinite(values)
    if clamps:
        clamp(result, target.dtype, where=is_finite)
    elif bool((is_finite & ~np.isfinite(widen(result, target.dtype))).any()):
        raise _too_large(target)
    return result


def _unusable(stored: Stored, error: ValueError) -> Refused:
    if "norm of zero" in str(error):
        return Refused(
            f"{stored.key} has a row or column of zeros, which DoRA would divide by.",
            remedy="Keep the adapter separate.",
        )
    if stored.role == "adapter":
        return Refused(f"The adapter's {stored.key} holds a NaN or Inf.", remedy="Train or save the adapter again.")
    return Refused(f"The base's {stored.key} holds a NaN or Inf.", remedy="Take another base.")


def _too_large(target: Stored) -> Refused:
    dtype = TORCH_NAMES.get(target.dtype, target.dtype)
    return Refused(
        f"{target.key} holds values that are too large for {dtype}.",
        remedy="Choose --dtype bfloat16 or float32, or --overflow clamp.",
    )


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
                self._opened[stored] = formats.open_packed(stored, self.range)
                while len(self._opened) > OPEN:
                    self._opened.popitem(last=False)
            self._opened.move_to_end(stored)
            return self._opened[stored]

    def range(self, stored: Stored, start: int, count: int) -> Array:
        """Bytes of a tensor, as the file holds them."""
        raw = np.empty(count, np.uint8)
        self._files.read(stored, start, raw.data)
        return raw
