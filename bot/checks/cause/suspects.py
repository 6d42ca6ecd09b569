"""What is looked into: every part of a tensor that is not what it must be, and some of its numbers.

A part is what one step of the merge changes (a whole weight, one expert of a stack, one half of a fused weight), or a whole tensor
that no step changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bot.checks.cause.numbers import Floats, matrix, round_to, rows_of, spread, view_of
from bot.checks.expected.changes import AddProduct, Expected, ProbedParameter, SetRectangle, SetRows, TensorStep
from bot.checks.reading.checkpoint import FLOATS, TensorRef, View

LOOKED_AT = 1 << 18  # elements of one part: 2 MB for each array of float64
GRID = (64, 256)  # rows and columns at which parts of one shape are compared with each other


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorPart:
    """One step's part of a tensor, or all of a tensor. `wrong`: elements of the tensor that are not what they must be;
    `arithmetic`: the loosest that some of it needs, as the sweep counts them."""

    key: str
    wanted: Expected
    merged: TensorRef
    step: TensorStep | None = None
    wrong: int = 0
    arithmetic: int = 0

    @property
    def view(self) -> View:
        """The tensor as a matrix."""
        return self.wanted.view if self.wanted.steps else view_of(self.merged)

    @property
    def lines(self) -> Sequence[int]:
        """The rows of the view that belong to the part."""
        if isinstance(self.step, SetRows):
            return sorted(set(self.step.at))
        return self.step.lines if self.step else range(self.view[0])

    @property
    def columns(self) -> tuple[int, int]:
        """The columns that do."""
        return self.step.columns if self.step else (0, self.view[1])

    @property
    def shape(self) -> tuple[int, int]:
        """rows × columns."""
        return len(self.lines), self.columns[1] - self.columns[0]

    @property
    def name(self) -> str:
        """The module, as the adapter names it, or the key."""
        return self.step.module if self.step else self.key

    @property
    def is_square_product(self) -> bool:
        """Whether its delta could be transposed."""
        return isinstance(self.step, AddProduct) and self.step.right is not None and self.shape[0] == self.shape[1]

    @property
    def replaces(self) -> bool:
        """Whether the adapter brings these numbers whole: saved modules, tokens."""
        return isinstance(self.step, SetRows | SetRectangle) or (self.step is None and bool(self.wanted.uses))

    def looked_at(self, elements: int = LOOKED_AT) -> list[int]:
        """Rows of the view that stand for all of its own: evenly spaced."""
        return [self.lines[at] for at in spread(len(self.lines), max(1, elements // max(1, self.shape[1])))]

    def read(self, ref: TensorRef, rows: Sequence[int]) -> Floats:
        """Some rows of a tensor of this view, cut to the part's columns."""
        return rows_of(ref, rows, self.view)[:, slice(*self.columns)]

    def source(self, rows: Sequence[int]) -> Floats:
        """What the merge starts from there."""
        return self.read(self.wanted.source, rows)

    def before(self, rows: Sequence[int]) -> Floats | None:
        """What the base has there; None where it has no such tensor or another shape."""
        base = self.wanted.base
        if base is None or base.stored.shape != self.wanted.shape or base.stored.dtype not in FLOATS:
            return None
        return self.read(base, rows)

    def exact(self, rows: Sequence[int], start: Floats | None = None, **otherwise: Any) -> Floats:
        """What must be there, or what becomes of other numbers (`start`), or what a step done `otherwise` makes: see `apply`."""
        start = self.source(rows) if start is None else start
        return start if self.step is None else apply(self, rows, start, **otherwise)

    @cached_property
    def grid_lines(self) -> tuple[list[int], list[int]]:
        """(rows of the view, columns of the part) at which it is compared with others of its shape."""
        lines = [self.lines[at] for at in spread(self.shape[0], GRID[0])]
        return lines, spread(self.shape[1], GRID[1])


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some rows of a part: what is stored there, what the merge starts from, what the base has, and what must be there, all
    float64 and of one shape. `scale`: how many elements of the part stand behind one that was read."""

    rows: list[int]
    stored: Floats
    source: Floats
    before: Floats | None
    exact: Floats
    dtype: str
    scale: float

    @classmethod
    def of(cls, part: TensorPart) -> Sample:
        """Read it."""
        rows = part.looked_at()
        source = part.source(rows)
        return cls(
            rows=rows,
            stored=part.read(part.merged, rows),
            source=source,
            before=part.before(rows),
            exact=part.exact(rows, source),
            dtype=part.merged.stored.dtype,
            scale=len(part.lines) / max(1, len(rows)),
        )

    @cached_property
    def deviation(self) -> float:
        """Σ (what is stored − what must be)², over the part."""
        return self.distance(self.exact)

    @cached_property
    def delta(self) -> Floats:
        """What the adapter changes there."""
        return self.exact - (self.source if self.before is None else self.before)

    @cached_property
    def moved(self) -> Floats:
        """What was changed there."""
        return self.stored - (self.source if self.before is None else self.before)

    def distance(self, values: Floats) -> float:
        """Σ (what is stored − these, as they would be stored)²; what is no number counts as the largest that there is."""
        return squares(self.stored - round_to(values, self.dtype)) * self.scale

    def matched(self, values: Floats) -> float:
        """The share of the elements that are these, as they would be stored."""
        return float(np.mean(self.stored == round_to(values, self.dtype))) if self.stored.size else 1.0


def squares(values: Floats) -> float:
    """Σ x², of the finite ones."""
    finite = values if np.isfinite(values).all() else values[np.isfinite(values)]
    return float(np.dot(finite.ravel(), finite.ravel()))


def dot(first: Floats, second: Floats) -> float:
    """Σ x·y, where both are finite."""
    product = first.ravel() * second.ravel()
    return float(product[np.isfinite(product)].sum())


def parts_of(key: str, wanted: Expected, merged: TensorRef, wrong: int, arithmetic: int) -> list[TensorPart]:
    """A tensor's parts; one for all of it where no step changes it, or the adapter brings all of it."""
    steps: Sequence[TensorStep | None] = wanted.steps or (None,)
    return [
        TensorPart(key=key, wanted=wanted, merged=merged, step=step, wrong=wrong, arithmetic=arithmetic)
        for step in steps
    ]


# --- what a step makes of numbers ---------------------------------------------------------------------------------------


def apply(
    part: TensorPart,
    rows: Sequence[int],
    start: Floats,
    *,
    factor: float = 1.0,
    transposed: bool = False,
    delta: Floats | None = None,
    norm_of: str = "sum",
) -> Floats:
    """The rows of a part after its step, float64. Otherwise than it should be: with `factor` times the delta, with the delta
    `transposed`, with another `delta`; of DoRA, with no magnitude (`norm_of` "none") or the norms of the base ("base")."""
    step = part.step
    match step:
        case AddProduct():
            delta = product(step, rows, transposed=transposed) if delta is None else delta
            value = start + factor * delta
            if step.magnitude is None or norm_of == "none":
                return value
            return value * _dora_factor(part, step, rows, start if norm_of == "base" else value, factor, norm_of)
        case SetRows():
            numbers = {row: number for number, row in enumerate(step.at)}
            return rows_of(step.values, [numbers[row] for row in rows])
        case SetRectangle():
            return matrix(step.values)[[step.lines.index(row) for row in rows]]
        case ProbedParameter():
            return _probed(part, step, rows)
    return start


def _probed(part: TensorPart, step: ProbedParameter, rows: Sequence[int]) -> Floats:
    """NaN, which is left out of every sum, where no weight can stand for the layer."""
    from bot.checks.expected.probing import NoWeight

    try:
        whole = np.asarray(step.probed.exact(step.parameter)).reshape(part.view)
    except NoWeight:
        return np.full((len(rows), part.shape[1]), np.nan)
    return np.array(whole[list(rows), slice(*part.columns)], dtype=np.float64)


def product(step: AddProduct, rows: Sequence[int], *, transposed: bool = False) -> Floats:
    """scaling · left · right at some rows of the view; of the product's transpose, where that is asked for."""
    left = matrix(step.left) * step.scaling
    own = [step.lines.index(row) for row in rows]
    if step.right is None:
        return left[own]
    right = matrix(step.right)
    result: Floats = right[:, own].T @ left.T if transposed else left[own] @ right
    return result


def _dora_factor(
    part: TensorPart, step: AddProduct, rows: Sequence[int], value: Floats, factor: float, norm_of: str
) -> Floats:
    assert step.magnitude is not None
    magnitude = matrix(step.magnitude)
    if step.along == "rows":
        norms = np.sqrt(np.square(value).sum(axis=1, keepdims=True))
        return magnitude[[step.lines.index(row) for row in rows]] / norms  # type: ignore[no-any-return]
    sums = _sums_of_columns(part, step, 0.0 if norm_of == "base" else factor)
    return magnitude.reshape(1, -1) / np.sqrt(sums)


def _sums_of_columns(part: TensorPart, step: AddProduct, factor: float) -> Floats:
    """Σ over all rows of (W + factor·D)², column by column, in one pass."""
    sums = np.zeros((1, part.shape[1]))
    tall = max(1, LOOKED_AT // max(1, part.shape[1]))
    for low in range(0, len(step.lines), tall):
        rows = step.lines[low : low + tall]
        sums += np.square(part.source(rows) + factor * product(step, rows)).sum(axis=0)
    return sums
