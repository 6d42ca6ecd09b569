"""Whether a merge changes anything at all: asked before the first byte is written, and answered by the first number that does.

Of an adapter that was trained, a few rows of its smallest tensor are read. Of one that was not, all of it is, and of the base
only what a delta that is not zero would change. Whether two adapter tensors say the same is asked here too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from bot import formats
from bot.checkpoint.header import STORED_NAMES, TORCH_NAMES
from bot.engines.files import OpenInputs
from bot.engines.row_maker import RowMaker
from bot.engines.schedule import blocks, view_of, whole
from bot.errors import Refused
from bot.numerics.rounder import Arithmetic
from bot.numerics.rounding import RAW, Array, clamp, narrow, widen
from bot.records import (
    AddDelta,
    Cast,
    Local,
    Op,
    PeftMerge,
    PlainOp,
    Plan,
    Quantize,
    Replace,
    SetRows,
    Stored,
    plain_op,
)

if TYPE_CHECKING:
    from bot.engines.peft_layers import PeftLayers

WIDEST = "F32"  # of what --dtype offers: it holds every number that the others hold
NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class NoEffect:
    """A merge whose every number is the base's. `zero`: every delta is exactly zero; else `kept_by`: the options that would
    keep some of it, "" where there are none."""

    zero: bool
    kept_by: str = ""


def no_effect(plan: Plan, inputs: Local, layers: Callable[[], PeftLayers], arithmetic: Arithmetic) -> NoEffect | None:
    """None where the merge changes something: a number, or which tensors there are. `layers`: PEFT's, for what they merge.

    Raises Refused for a NaN or Inf on the way, as the merge itself would.
    """
    if plan.drops or any(_is_another(op) for op in plan.ops):
        return None
    changes = sorted((op for op in plan.ops if isinstance(plain_op(op), _CHANGES)), key=_size)
    base = {tensor.key: tensor for tensor in plan.base_tensors}
    with OpenInputs(inputs) as files:
        comparison = _Comparison(RowMaker(files, arithmetic), layers, base)
        if any(comparison.alters(op) for op in changes):
            return None
        if not any(comparison.is_not_zero(op) for op in changes):
            return NoEffect(zero=True)
        return NoEffect(zero=False, kept_by=_kept_by(comparison, changes, plan))


def _kept_by(comparison: _Comparison, changes: list[Op], plan: Plan) -> str:
    """The options that would keep something: without quantisation first, then in the widest dtype."""
    plain = "--quantize none" if any(isinstance(op, Quantize) for op in changes) else ""
    if plain and any(comparison.alters_in(plain_op(op), STORED_NAMES.get(plan.dtype, WIDEST)) for op in changes):
        return plain
    if not any(comparison.alters_in(plain_op(op), WIDEST) for op in changes) or plan.dtype == TORCH_NAMES[WIDEST]:
        return ""
    return f"{plain} and --dtype float32" if plain else "--dtype float32"


def refusal(effect: NoEffect, plan: Plan) -> Refused:
    """What happened, and what to do."""
    code = "changes-nothing"
    trained = "Merge the trained checkpoint"
    if effect.zero:
        what = "The adapter changes nothing: every delta is exactly zero."
        return Refused(what, remedy=f"{trained}; before training, PEFT's B is zero.", code=code)
    form = plan.dtype if plan.options.quantize == "none" else plan.options.quantize
    what = f"The adapter changes nothing: none of its deltas survives {form}."
    other = (
        f", or choose {effect.kept_by}, which would keep them" if effect.kept_by else "; no other dtype would keep them"
    )
    return Refused(what, remedy=f"{trained}{other}.", code=code)


_CHANGES = (AddDelta, Replace, SetRows, PeftMerge)


def _size(op: Op) -> int:
    return math.prod(op.target.shape)


def _is_another(op: Op) -> bool:
    """A tensor that the base does not have, of another shape, or of another layer: that alone is another model."""
    made = plain_op(op)
    if made.source is None or made.source.shape != made.target.shape:
        return True
    key, target = made.source.key, made.target.key
    return made.source.role == "base" and key != target and NUMBER.sub("#", key) == NUMBER.sub("#", target)


class _Comparison:
    """Compares what ops make with what is made of the base alone."""

    def __init__(self, rows: RowMaker, layers: Callable[[], PeftLayers], base: dict[str, Stored]) -> None:
        self.rows, self.layers, self.base = rows, layers, base

    def alters(self, op: Op) -> bool:
        """Whether any byte of what is stored is another one."""
        if isinstance(op, Quantize):
            return self._alters_quantised(op)
        return self._alters(op, op.target.dtype)

    def alters_in(self, op: PlainOp, dtype: str) -> bool:
        """The same, were it stored in `dtype`; False where that cannot hold the result."""
        with suppress(Refused):
            return self._alters(op, dtype)
        return False

    def is_not_zero(self, op: Op) -> bool:
        """Whether the change is anything but exactly zero, as far as float64 can see."""
        made = plain_op(op)
        if isinstance(made, AddDelta):
            return any(patch.magnitude or self._is_product(made, at) for at, patch in enumerate(made.patches))
        if isinstance(made, PeftMerge):
            value = self.layers().merge(made.module)[made.parameter]
            return bool((value != self.layers().read(made.source).double()).any())
        return self.alters_in(made, "F32")

    def _alters(self, op: PlainOp, dtype: str) -> bool:
        if isinstance(op, AddDelta) and self._is_idle(op):
            return False
        before = self._before(op)
        if before is None:
            return True
        if isinstance(op, PeftMerge):
            value = self.layers().merge(op.module)[op.parameter]
            sides = (value.numpy(), self.layers().read(before).double().numpy())
            return not _same(*(self._stored(side, dtype) for side in sides))
        target = replace(op.target, dtype=dtype)
        after, unchanged = replace(op, target=target), Cast(source=before, target=target)
        pairs = zip(self._rows(after), self._rows(unchanged), strict=True)
        return any(not _same(changed, kept) for changed, kept in pairs)

    def _alters_quantised(self, op: Quantize) -> bool:
        if isinstance(op.make, AddDelta) and self._is_idle(op.make):
            return False
        before = self._before(op.make)
        if before is None:
            return True
        columns = view_of(op.make)[1]
        writer, key, shape = formats.writer_of(op, self.rows.reader.range), op.target.key, op.target.shape
        makes = op.make, Cast(source=before, target=op.target)
        # Side by side, up to the first that differs; in copies, since rows lie in one buffer for both.
        mine, theirs = (writer.quantise(key, partial(self._float32, make, columns), shape) for make in makes)
        return any(_copied(part) != _copied(other) for part, other in zip_longest(mine, theirs))

    def _float32(self, op: PlainOp, columns: int, first: int, count: int) -> Array:
        return self.rows.float32(op, columns, first, count).copy()

    def _before(self, op: PlainOp) -> Stored | None:
        """The base's own tensor, also where the adapter brings a copy to add to; None where the base has none such."""
        if op.source is not None and op.source.role == "base":
            return op.source
        tensor = self.base.get(op.target.key)
        return tensor if tensor is not None and tensor.shape == op.target.shape else None

    def _rows(self, op: PlainOp) -> Iterator[Array]:
        columns = view_of(op)[1]
        for first, count in blocks(whole(op)):
            block = np.empty((count, columns), RAW[op.target.dtype])
            self.rows.fill(op, first, block)
            yield block

    def _is_idle(self, op: AddDelta) -> bool:
        """Whether each of its products has a factor that is zero, and W is not the adapter's own copy, which may itself
        be another one: then the base need not be read."""
        return op.source.role == "base" and not any(
            patch.magnitude or self._factors(op, at) for at, patch in enumerate(op.patches)
        )

    def _factors(self, op: AddDelta, at: int) -> bool:
        delta = self.rows.deltas.prepared(op, op.patches[at], self.rows.reader.rows)
        return bool(delta.left.any() and delta.right.any() and delta.scale.any())

    def _is_product(self, op: AddDelta, at: int) -> bool:
        if not self._factors(op, at):
            return False
        delta = self.rows.deltas.prepared(op, op.patches[at], self.rows.reader.rows)
        right = (delta.right * delta.scale).T.astype(np.float64)
        step = max(1, (1 << 19) // max(1, right.shape[1]))
        lefts = (delta.left[low : low + step] for low in range(0, len(delta.left), step))
        return any(bool((left.astype(np.float64) @ right).any()) for left in lefts)

    def _stored(self, value: Array, dtype: str) -> Array:
        stored = narrow(np.ascontiguousarray(value), dtype)
        if self.rows.clamps:
            clamp(stored, dtype)
        return stored


def _same(first: Array, second: Array) -> bool:
    """The same numbers by their bits, a NaN that stays among them; but −0, to which adding 0 gives 0, is 0."""
    mine, theirs = (side.view(f"u{side.itemsize}") for side in (first, second))
    differs = mine != theirs
    return not bool((differs & ((mine | theirs) << mine.dtype.type(1) != 0)).any())


def _copied(part: tuple[str, int, Array] | None) -> tuple[str, int, bytes] | None:
    if part is None:
        return None
    key, offset, content = part
    return key, offset, np.ascontiguousarray(content).tobytes()


def differ(first: Stored, second: Stored, transposed: bool, inputs: Local) -> bool:
    """Whether the numbers differ; `transposed`: the second tensor is stored transposed."""
    with OpenInputs(inputs) as files:
        numbers, others = _numbers(first, files), _numbers(second, files)
    return not np.array_equal(numbers, others.T if transposed else others)


def is_nonzero(stored: Stored, inputs: Local) -> bool:
    """Whether any number is not zero."""
    with OpenInputs(inputs) as files:
        return bool(np.any(_numbers(stored, files) != 0))


def _numbers(stored: Stored, files: OpenInputs) -> Array:
    raw = np.empty(stored.shape, RAW[stored.dtype])
    files.read(stored, 0, raw.data.cast("B"))
    return widen(raw, stored.dtype)
