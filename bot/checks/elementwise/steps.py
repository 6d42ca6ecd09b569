"""The arithmetic of each kind of step, in float64, by ranges of rows; nothing here is as large as the tensor.

To add a kind: a dataclass in `expected/changes.py` that is a TensorStep, a class here that is a Ready, and one line in KINDS.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from bot.checks.elementwise.arithmetic import Magnitudes
from bot.checks.elementwise.rederive import product
from bot.checks.expected.changes import AddProduct, ProbedParameter, SetRectangle, SetRows, TensorStep
from bot.checks.reading.checkpoint import Matrix, TensorRef, View
from bot.checks.reading.rows import CHUNK, Opened, chunks
from bot.checks.reading.stored_numbers import Array, as_float64

WIDE = 1 << 22  # elements of a factor that is kept in float64 (32 MB); a larger one stays in its stored dtype


@dataclass(frozen=True, kw_only=True)
class SourceMatrix:
    """The tensor that a step works on, before any step, seen as a matrix."""

    ref: TensorRef
    view: View

    def block(self, opened: Opened, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
        """A rectangle in float64."""
        return opened.wide_rows(self.ref, *rows, self.view)[:, columns[0] : columns[1]]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the result of a step is made of, for the bounds on its error; float64, all of the rectangle's shape.

    `weight` + `delta` = value; `product` ≥ |delta| is what a product's error is a multiple of; `rank` its length.
    DoRA: the value is multiplied by `factor`, m/‖value‖; `shares` are ‖weight‖, ‖delta‖, ‖product‖ and ‖value‖ over
    ‖value‖ along the `length` elements of each norm, and broadcast.
    """

    weight: Array
    delta: Array
    product: Array
    rank: int
    factor: Array | None = None
    shares: Magnitudes | None = None
    length: int = 0


class Ready(Protocol):
    """A step with what it needs at hand. Shared by threads: what it computes once, it computes under a lock.

    `low` and `high` are rows of the tensor's view, within the step's rectangle, `low` one that it changes; `weight` is
    that part of the rectangle, less the rows that the step passes over.
    """

    def exact(self, weight: Array, low: int, high: int, opened: Opened) -> Array:
        """The result in float64."""

    def parts(self, weight: Array, low: int, high: int, opened: Opened) -> Parts:
        """What it is made of."""


class Factor:
    """The right-hand factor, all of it: `wide`, in float64, where it is small; else as it is stored, and widened by columns."""

    def __init__(self, matrix: Matrix, opened: Opened) -> None:
        self._held, self._dtype = opened.matrix(matrix), matrix.ref.stored.dtype
        self.wide = as_float64(self._held, self._dtype) if self._held.size <= WIDE else None
        self._step = max(1, WIDE // max(1, self._held.shape[0]))

    def times(self, left: Array, absolute: bool = False) -> Array:
        """left · factor, or |left| · |factor|."""
        if absolute:
            left = np.abs(left)
        products = [product(left, np.abs(part) if absolute else part) for part in self._parts()]
        return products[0] if len(products) == 1 else np.concatenate(products, axis=1)

    def _parts(self) -> list[Array]:
        if self.wide is not None:
            return [self.wide]
        columns = range(0, self._held.shape[1], self._step)
        return [as_float64(self._held[:, at : at + self._step], self._dtype) for at in columns]


class ReadyProduct:
    """V = W + s · left · right; with DoRA m ⊙ V / ‖V‖. Column norms run over all rows: they are summed in a pass of their own."""

    def __init__(self, step: AddProduct, source: SourceMatrix) -> None:
        self.step = step
        self.source = source
        self.rank = step.left.shape[1]
        self._lock = threading.RLock()

    def exact(self, weight: Array, low: int, high: int, opened: Opened) -> Array:
        value = weight + self._delta(low, high, opened)
        if self.step.magnitude is None:
            return value
        if self.step.along == "rows":
            return value * (self._column(self.step.magnitude, low, high, opened) / _norms_of_rows(value))
        return value * (self._magnitude_row / self._norms.value)

    def parts(self, weight: Array, low: int, high: int, opened: Opened) -> Parts:
        delta = self._delta(low, high, opened)
        absolute = self._delta(low, high, opened, absolute=True)
        if self.step.magnitude is None:
            return Parts(weight=weight, delta=delta, product=absolute, rank=self.rank)
        sizes = Magnitudes(weight=weight, delta=delta, product=absolute, value=weight + delta)
        if self.step.along == "rows":
            magnitude = self._column(self.step.magnitude, low, high, opened)
            norms, length = sizes.map(_norms_of_rows), weight.shape[1]
        else:
            magnitude, norms, length = self._magnitude_row, self._norms, len(self.step.lines)
        shares = norms.map(lambda size: np.broadcast_to(size / norms.value, weight.shape))
        factor = np.broadcast_to(magnitude / norms.value, weight.shape)
        return Parts(
            weight=weight, delta=delta, product=absolute, rank=self.rank, factor=factor, shares=shares, length=length
        )

    @property
    def is_plain(self) -> bool:
        """Whether it is W + left · right, with a right-hand factor that is kept in float64."""
        return self.step.magnitude is None and self.right is not None and self.right.wide is not None

    def left(self, low: int, high: int, opened: Opened) -> Array:
        """The left-hand factor of these rows, scaled."""
        return self._column(self.step.left, low, high, opened) * self.step.scaling

    @property
    def right(self) -> Factor | None:
        """The right-hand factor; None: the left-hand one is added as it is."""
        with self._lock:
            return self._read_right

    def _delta(self, low: int, high: int, opened: Opened, absolute: bool = False) -> Array:
        left = self.left(low, high, opened)
        if self.right is None:
            return np.abs(left) if absolute else left
        return self.right.times(left, absolute)

    def _column(self, matrix: Matrix, low: int, high: int, opened: Opened) -> Array:
        """Rows of a factor that has as many as the step changes; `low` and `high` count from the top of the tensor."""
        return opened.wide_matrix(matrix.between(*_counted(self.step, low, high)))

    @cached_property
    def _read_right(self) -> Factor | None:
        if self.step.right is None:
            return None
        with Opened() as opened:
            return Factor(self.step.right, opened)

    @cached_property
    def _magnitude_row(self) -> Array:
        assert self.step.magnitude is not None
        with Opened() as opened:
            return opened.wide_matrix(self.step.magnitude).reshape(1, -1)

    @property
    def _norms(self) -> Magnitudes:
        with self._lock:
            return self._summed

    @cached_property
    def _summed(self) -> Magnitudes:
        """One pass over the rectangle. Sums of squares, blockwise: each block is summed before it is added."""
        lines, columns = self.step.lines, self.step.columns
        width = columns[1] - columns[0]
        sums = np.zeros((4, width))
        with Opened() as opened:
            for first, last in chunks((len(lines), width), 4 * CHUNK):
                low, high = lines[first], lines[last - 1] + 1
                weight = self.source.block(opened, (low, high), columns)[:: lines.step]
                delta = self._delta(low, high, opened)
                absolute = self._delta(low, high, opened, absolute=True)
                for number, values in enumerate((weight, delta, absolute, weight + delta)):
                    sums[number] += np.square(values).sum(axis=0)
        weight, delta, product_size, value = np.sqrt(sums)[:, None]
        return Magnitudes(weight=weight, delta=delta, product=product_size, value=value)


def _norms_of_rows(values: Array) -> Array:
    """As one column."""
    return np.sqrt(np.square(values).sum(axis=1, keepdims=True))  # type: ignore[no-any-return]


class ReadyValues:
    """The rectangle is what the adapter says, exactly: of a SetRectangle all of it, of SetRows some rows."""

    def __init__(self, step: SetRectangle | SetRows, source: SourceMatrix) -> None:
        self.step = step
        self._number = {} if isinstance(step, SetRectangle) else {row: number for number, row in enumerate(step.at)}

    def exact(self, weight: Array, low: int, high: int, opened: Opened) -> Array:
        step = self.step
        if isinstance(step, SetRectangle):
            return opened.wide_matrix(step.values.between(*_counted(step, low, high)))
        result = weight.copy()
        for row, number in self._number.items():
            if low <= row < high:
                result[row - low] = opened.wide_rows(step.values, number, number + 1)[0]
        return result

    def parts(self, weight: Array, low: int, high: int, opened: Opened) -> Parts:
        values = self.exact(weight, low, high, opened)
        nothing = np.zeros_like(values)
        return Parts(weight=values, delta=nothing, product=nothing, rank=0)


def _counted(step: TensorStep, low: int, high: int) -> tuple[int, int]:
    """Rows of the tensor from `low` to `high`, as numbers among those that the step changes."""
    lines = step.lines
    return (low - lines.start) // lines.step, -(-(high - lines.start) // lines.step)


class ReadyProbed:
    """Rows of a W' that is in memory whole while its rows are compared. Shared by threads, as ProbedLayers is."""

    def __init__(self, step: ProbedParameter, source: SourceMatrix) -> None:
        self.step = step
        self.view = source.view

    def exact(self, weight: Array, low: int, high: int, opened: Opened) -> Array:
        return self._whole().reshape(self.view)[low:high]

    def parts(self, weight: Array, low: int, high: int, opened: Opened) -> Parts:
        """`rank` products of numbers as large as the largest: their rounding errors come to the asking's slack."""
        whole = self._whole()
        value = whole.reshape(self.view)[low:high]
        largest = np.full_like(value, np.abs(whole).max())
        rank = round(self.step.probed.slack * 2.0**53)
        return Parts(weight=weight, delta=value - weight, product=largest, rank=rank)

    def _whole(self) -> Array:
        """NaN, which nothing equals, where no weight can stand for the layer."""
        from bot.checks.expected.probing import NoWeight  # the layers are torch's

        try:
            value: Array = self.step.probed.exact(self.step.parameter).numpy()
        except NoWeight:
            return np.broadcast_to(np.float64(np.nan), self.view)
        return value


KINDS: dict[type, Callable[[Any, SourceMatrix], Ready]] = {
    AddProduct: ReadyProduct,
    SetRectangle: ReadyValues,
    SetRows: ReadyValues,
    ProbedParameter: ReadyProbed,
}


Steps = tuple[tuple[TensorStep, Ready], ...]


def within(steps: Steps, low: int, high: int) -> Iterable[tuple[TensorStep, Ready, range]]:
    """The steps that change rows between `low` and `high`, and those rows."""
    for step, made in steps:
        lines = step.lines
        skipped = max(0, -(-(low - lines.start) // lines.step))
        there = range(lines.start + skipped * lines.step, min(high, lines.stop), lines.step)
        if there:
            yield step, made, there


def ready(step: TensorStep, source: SourceMatrix) -> Ready:
    """A step, ready to run."""
    return KINDS[type(step)](step, source)
