"""The arithmetic of each kind of step, in float64, by ranges of rows; nothing here is as large as the tensor.

To add a kind: a dataclass in `expected/changes.py` that is a TensorStep, a class here that is a Ready, and one line in KINDS.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from bot.checks.elementwise.arithmetic import Magnitudes
from bot.checks.expected.changes import AddProduct, ProbedParameter, SetRectangle, SetRows, TensorStep
from bot.checks.expected.probing import NoWeight
from bot.checks.reading.checkpoint import Matrix, TensorRef, View
from bot.checks.reading.rows import CHUNK, Opened, chunks

WIDE = 1 << 22  # elements of a factor that is kept in float64 (32 MB); a larger one stays in its stored dtype


@dataclass(frozen=True, kw_only=True)
class SourceMatrix:
    """The tensor that a step works on, before any step, seen as a matrix."""

    ref: TensorRef
    view: View

    def block(self, opened: Opened, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """A rectangle in float64."""
        return opened.rows(self.ref, *rows, self.view)[:, columns[0] : columns[1]].to(torch.float64)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the result of a step is made of, for the bounds on its error; float64, all of the rectangle's shape.

    `weight` + `delta` = value; `product` ≥ |delta| is what a product's error is a multiple of; `rank` its length.
    DoRA: the value is multiplied by `factor`, m/‖value‖; `shares` are ‖weight‖, ‖delta‖, ‖product‖ and ‖value‖ over
    ‖value‖ along the `length` elements of each norm, and broadcast.
    """

    weight: Tensor
    delta: Tensor
    product: Tensor
    rank: int
    factor: Tensor | None = None
    shares: Magnitudes | None = None
    length: int = 0


class Ready(Protocol):
    """A step with what it needs at hand. Shared by threads: what it computes once, it computes under a lock.

    `low` and `high` are rows of the tensor's view, within the step's rectangle, `low` one that it changes; `weight` is
    that part of the rectangle, less the rows that the step passes over.
    """

    def exact(self, weight: Tensor, low: int, high: int, opened: Opened) -> Tensor:
        """The result in float64."""

    def parts(self, weight: Tensor, low: int, high: int, opened: Opened) -> Parts:
        """What it is made of."""


class _Factor:
    """The right-hand factor, all of it: in float64 where it is small, else in its stored dtype and widened by columns."""

    def __init__(self, matrix: Matrix, opened: Opened) -> None:
        self._stored = opened.matrix(matrix)
        if self._stored.numel() <= WIDE:
            self._stored = self._stored.to(torch.float64).contiguous()
        self._step = max(1, WIDE // max(1, self._stored.shape[0]))

    def times(self, left: Tensor, absolute: bool = False) -> Tensor:
        """left · factor, or |left| · |factor|."""
        if absolute:
            left = left.abs()
        products = [left @ (part.abs() if absolute else part) for part in self._parts()]
        return products[0] if len(products) == 1 else torch.cat(products, dim=1)

    def _parts(self) -> list[Tensor]:
        if self._stored.dtype == torch.float64:
            return [self._stored]
        return [part.to(torch.float64) for part in torch.split(self._stored, self._step, dim=1)]


class ReadyProduct:
    """V = W + s · left · right; with DoRA m ⊙ V / ‖V‖. Column norms run over all rows: they are summed in a pass of their own."""

    def __init__(self, step: AddProduct, source: SourceMatrix) -> None:
        self.step = step
        self.source = source
        self.rank = step.left.shape[1]
        self._lock = threading.RLock()

    def exact(self, weight: Tensor, low: int, high: int, opened: Opened) -> Tensor:
        value = weight + self._delta(low, high, opened)
        if self.step.magnitude is None:
            return value
        if self.step.along == "rows":
            norm: Tensor = value.norm(dim=1, keepdim=True)
            return value * (self._column(self.step.magnitude, low, high, opened) / norm)
        return value * (self._magnitude_row / self._norms.value)

    def parts(self, weight: Tensor, low: int, high: int, opened: Opened) -> Parts:
        delta = self._delta(low, high, opened)
        product = self._delta(low, high, opened, absolute=True)
        if self.step.magnitude is None:
            return Parts(weight=weight, delta=delta, product=product, rank=self.rank)
        sizes = Magnitudes(weight=weight, delta=delta, product=product, value=weight + delta)
        if self.step.along == "rows":
            magnitude = self._column(self.step.magnitude, low, high, opened)
            norms, length = sizes.map(lambda size: size.norm(dim=1, keepdim=True)), weight.shape[1]
        else:
            magnitude, norms, length = self._magnitude_row, self._norms, len(self.step.lines)
        shares = norms.map(lambda size: (size / norms.value).expand_as(weight))
        factor = (magnitude / norms.value).expand_as(weight)
        return Parts(
            weight=weight, delta=delta, product=product, rank=self.rank, factor=factor, shares=shares, length=length
        )

    def _delta(self, low: int, high: int, opened: Opened, absolute: bool = False) -> Tensor:
        left = self._column(self.step.left, low, high, opened) * self.step.scaling
        if self._right is None:
            return left.abs() if absolute else left
        return self._right.times(left, absolute)

    def _column(self, matrix: Matrix, low: int, high: int, opened: Opened) -> Tensor:
        """Rows of a factor that has as many as the step changes; `low` and `high` count from the top of the tensor."""
        return opened.matrix(matrix.between(*_counted(self.step, low, high))).to(torch.float64)

    @property
    def _right(self) -> _Factor | None:
        with self._lock:
            return self._read_right

    @cached_property
    def _read_right(self) -> _Factor | None:
        if self.step.right is None:
            return None
        with Opened() as opened:
            return _Factor(self.step.right, opened)

    @cached_property
    def _magnitude_row(self) -> Tensor:
        assert self.step.magnitude is not None
        with Opened() as opened:
            return opened.matrix(self.step.magnitude).to(torch.float64).reshape(1, -1)

    @property
    def _norms(self) -> Magnitudes:
        with self._lock:
            return self._summed

    @cached_property
    def _summed(self) -> Magnitudes:
        """One pass over the rectangle. Sums of squares, blockwise: each block is summed before it is added."""
        lines, columns = self.step.lines, self.step.columns
        width = columns[1] - columns[0]
        sums = torch.zeros(4, width, dtype=torch.float64)
        with Opened() as opened:
            for first, last in chunks((len(lines), width), 4 * CHUNK):
                low, high = lines[first], lines[last - 1] + 1
                weight = self.source.block(opened, (low, high), columns)[:: lines.step]
                delta = self._delta(low, high, opened)
                product = self._delta(low, high, opened, absolute=True)
                for number, values in enumerate((weight, delta, product, weight + delta)):
                    sums[number] += values.square().sum(dim=0)
        weight, delta, product, value = sums.sqrt().unsqueeze(1)
        return Magnitudes(weight=weight, delta=delta, product=product, value=value)


class ReadyValues:
    """The rectangle is what the adapter says, exactly: of a SetRectangle all of it, of SetRows some rows."""

    def __init__(self, step: SetRectangle | SetRows, source: SourceMatrix) -> None:
        self.step = step
        self._number = {} if isinstance(step, SetRectangle) else {row: number for number, row in enumerate(step.at)}

    def exact(self, weight: Tensor, low: int, high: int, opened: Opened) -> Tensor:
        step = self.step
        if isinstance(step, SetRectangle):
            return opened.matrix(step.values.between(*_counted(step, low, high))).to(torch.float64)
        result = weight.clone()
        for row, number in self._number.items():
            if low <= row < high:
                result[row - low] = opened.rows(step.values, number, number + 1)[0].to(torch.float64)
        return result

    def parts(self, weight: Tensor, low: int, high: int, opened: Opened) -> Parts:
        values = self.exact(weight, low, high, opened)
        nothing = torch.zeros_like(values)
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

    def exact(self, weight: Tensor, low: int, high: int, opened: Opened) -> Tensor:
        return self._whole().reshape(self.view)[low:high]

    def parts(self, weight: Tensor, low: int, high: int, opened: Opened) -> Parts:
        """`rank` products of numbers as large as the largest: their rounding errors come to the asking's slack."""
        whole = self._whole()
        value = whole.reshape(self.view)[low:high]
        largest = torch.full_like(value, float(whole.abs().max()))
        rank = round(self.step.probed.slack * 2.0**53)
        return Parts(weight=weight, delta=value - weight, product=largest, rank=rank)

    def _whole(self) -> Tensor:
        """NaN, which nothing equals, where no weight can stand for the layer."""
        try:
            value: Tensor = self.step.probed.exact(self.step.parameter)
        except NoWeight:
            return torch.full((), torch.nan, dtype=torch.float64).expand(self.view)
        return value


KINDS: dict[type, Callable[[Any, SourceMatrix], Ready]] = {
    AddProduct: ReadyProduct,
    SetRectangle: ReadyValues,
    SetRows: ReadyValues,
    ProbedParameter: ReadyProbed,
}


def ready(step: TensorStep, source: SourceMatrix) -> Ready:
    """A step, ready to run."""
    return KINDS[type(step)](step, source)
