"""From what an adapter says about a parameter to steps on the tensors that the parameter is stored as."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from bot.checks.expected.changes import (
    AddProduct,
    LowRank,
    ProbedParameter,
    SetRectangle,
    SetRows,
    Shift,
    Span,
    TensorStep,
    TokenRows,
    WholeTensor,
)
from bot.checks.expected.expert_sides import Undated, trades_sides
from bot.checks.reading.checkpoint import Matrix, TensorRef, View
from bot.checks.reading.symbolic import Block, SymbolicTensor


class Misplaced(Exception):
    """A change that does not fit the parameter that it names; the sentence says how."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """A parameter as the adapter names it: the stored boxes it is, the model's own name for it, and its module.

    `parameter` and `module` are None where only an older layout has such a parameter, or where no model could be built.
    """

    name: str
    symbolic: SymbolicTensor
    parameter: str | None
    module: Any


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Which dimensions of a parameter are its experts, its outputs and its inputs."""

    experts: int | None
    out: int
    into: tuple[int, ...]


Stored = dict[str, tuple[int, ...]]  # {key: shape}


def view_of(shape: tuple[int, ...], stacked: bool = False) -> View:
    """A tensor as a matrix: shape[0] × the rest, or (experts · rows) × columns where it is a stack of matrices."""
    if stacked and len(shape) == 3:
        return shape[0] * shape[1], shape[2]
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def axes_of(change: LowRank, where: Located, transposed: bool) -> Axes:
    """`transposed`: what shapes or family say where there is no module to ask. Raises Misplaced."""
    kind, module, dims = change.kind, where.module, len(where.symbolic.shape)
    if kind == "embedding":
        return Axes(experts=None, out=1, into=(0,))
    if kind == "parameter" and dims == 3:
        transposed = bool(getattr(module, "is_transposed", False))
        return Axes(experts=0, out=2 if transposed else 1, into=(1 if transposed else 2,))
    if kind == "parameter" or dims < 2:
        return Axes(experts=None, out=0, into=(1,))
    if dims > 2:
        _plain_convolution(where.name, module)
        return Axes(experts=None, out=0, into=tuple(range(1, dims)))
    if type(module).__name__ == "Conv1D" or transposed:  # transformers' own, not torch's
        return Axes(experts=None, out=1, into=(0,))
    return Axes(experts=None, out=0, into=(1,))


def _plain_convolution(name: str, module: Any) -> None:
    """PEFT's A is a convolution without groups, dilation and padding mode: then no weight of the base's shape is its sum."""
    kernel = tuple(getattr(module, "kernel_size", ()))
    if getattr(module, "groups", 1) > 1:
        raise Misplaced(
            f"{name} is a convolution with {module.groups} groups; a LoRA on it mixes them and has no weight."
        )
    if any(extent > 1 for extent in getattr(module, "dilation", ())) and any(extent > 1 for extent in kernel):
        raise Misplaced(f"{name} is a dilated convolution; a LoRA on it has no weight.")
    if getattr(module, "padding_mode", "zeros") != "zeros" and any(extent > 1 for extent in kernel):
        raise Misplaced(f"{name} pads with {module.padding_mode}; a LoRA on it pads with zeros and has no weight.")


def flat(ref: TensorRef) -> View:
    """An adapter tensor as a matrix: shape[0] × the rest."""
    return view_of(ref.stored.shape)


def place_low_rank(
    change: LowRank, where: Located, stored: Stored, transposed: bool = False
) -> Iterator[tuple[str, TensorStep, View]]:
    """(key, step, the view of that key's tensor) for every box of every expert. Raises Misplaced."""
    axes, shape = axes_of(change, where, transposed), where.symbolic.shape
    experts = shape[axes.experts] if axes.experts is not None else 1
    out, into = shape[axes.out], math.prod(shape[at] for at in axes.into)
    (rank_a, wide), (tall, rank_b) = flat(change.a), flat(change.b)
    if not rank_a == rank_b == change.rank * experts:
        shapes = f"A is {change.a.stored.shape} and B is {change.b.stored.shape}"
        raise Misplaced(f"{change.module}: the config says rank {change.rank}; {shapes}.")
    traded = experts > 1 and _is_traded(change, (out, into), where)
    if ((wide, tall) if traded else (tall, wide)) != (out, into):
        raise Misplaced(f"{change.module} changes a weight of {(tall, wide)}; {where.name} is {tuple(shape)}.")
    if change.magnitude and math.prod(change.magnitude.stored.shape) != out:
        raise Misplaced(f"{change.module}: {out} outputs, and a magnitude of {change.magnitude.stored.shape}.")
    for block in where.symbolic.blocks:
        for at in _experts(block, axes):
            yield _product(change, block, axes, at, stored, (out, into), traded)


def _is_traded(change: LowRank, size: View, where: Located) -> bool:
    try:
        return trades_sides(change, size, bool(getattr(where.module, "is_transposed", False)))
    except Undated as undated:
        raise Misplaced(str(undated)) from undated


def _experts(block: Block, axes: Axes) -> range:
    return range(*block.box[axes.experts]) if axes.experts is not None else range(1)


def _product(
    change: LowRank, block: Block, axes: Axes, expert: int, stored: Stored, size: View, traded: bool
) -> tuple[str, TensorStep, View]:
    out_span, into_span = block.box[axes.out], _input_span(block, axes, size[1])
    (rows, every), columns, view, transposed = rectangle(block, stored[block.key], axes, expert)
    if change.kind == "parameter" and axes.experts is not None:  # A: (experts · rank) × in; B: out × (rank · experts)
        count = flat(change.a)[0] // change.rank
        from_a = range(expert * change.rank, (expert + 1) * change.rank)
        from_b = range(expert, flat(change.b)[1], count)
    else:
        from_a = from_b = range(change.rank)
    if traded:  # Aᵀ takes B's part, and Bᵀ takes A's
        b = Matrix(ref=change.a, rows=from_a, columns=range(*out_span), transposed=True)
        a = Matrix(ref=change.b, rows=range(*into_span), columns=from_b, transposed=True)
    else:
        b = Matrix(ref=change.b, rows=range(*out_span), columns=from_b)
        a = Matrix(ref=change.a, rows=from_a, columns=range(*into_span))
    if transposed:
        left, right = _transposed(a), _transposed(b)
    else:
        left, right = b, a
    if change.magnitude and into_span != (0, size[1]):
        raise Misplaced(f"{change.module}: DoRA's norms run over more than the stored tensor {block.key}.")
    along: Literal["rows", "columns"] = "columns" if transposed else "rows"
    step = AddProduct(
        module=change.module, uses=change.uses, rows=rows, columns=columns, left=left, right=right, scaling=change.scaling,
        magnitude=_magnitude(change.magnitude, out_span) if change.magnitude else None, along=along, every=every,
    )  # fmt: skip
    return block.key, step, view


def _transposed(matrix: Matrix) -> Matrix:
    return replace(matrix, transposed=not matrix.transposed)


def _magnitude(ref: TensorRef, span: Span) -> Matrix:
    """A vector, or 1 × out × 1 × 1 as convolutions have it: its numbers as one column, cut to the outputs wanted."""
    if flat(ref)[0] == 1 and flat(ref)[1] > 1:
        return Matrix(ref=ref, rows=range(1), columns=range(*span), transposed=True)
    return Matrix(ref=ref, rows=range(*span), columns=range(1))


def _input_span(block: Block, axes: Axes, into: int) -> Span:
    """The inputs that a box spans; those of a convolution (channels × kernel) only all at once."""
    if len(axes.into) == 1:
        return block.box[axes.into[0]]
    return 0, into


Rectangle = tuple[tuple[Span, int], Span, View, bool]


def rectangle(block: Block, shape: tuple[int, ...], axes: Axes, expert: int) -> Rectangle:
    """((rows, every), columns, view, transposed) of one expert's box in a stored tensor. Raises Misplaced where it is no
    rectangle, nor each `every`-th row of one.

    `transposed`: the stored tensor has the outputs along its columns.
    """
    if len(axes.into) > 1:
        if any(step != 1 for *_, step in block.source):
            raise Misplaced(f"{block.key} holds a convolution's channels in another order.")
        return ((0, shape[0]), 1), (0, math.prod(shape[1:])), view_of(shape), False
    spans = [(low, high) for _, low, high, _ in block.source]
    dims = [at for at, *_ in block.source]
    if block.source and block.source[-1][-1] != 1:
        raise Misplaced(f"{block.key} holds columns in another order.")
    every = block.source[-2][-1] if len(shape) > 1 else 1
    if len(shape) == 3 and dims[0] in (None, axes.experts):
        index = spans[0][0] + (
            expert - block.box[axes.experts][0] if dims[0] is not None and axes.experts is not None else 0
        )
        rows = (index * shape[1] + spans[1][0], index * shape[1] + spans[1][1])
        return (rows, every), spans[2], view_of(shape, stacked=True), dims[2] == axes.out
    if len(shape) == 2:
        return (spans[0], every), spans[1], view_of(shape), dims[1] == axes.out
    raise Misplaced(f"{block.key} of {shape} is no stack of matrices.")


def place_shift(change: Shift, where: Located, stored: Stored) -> Iterator[tuple[str, TensorStep, View]]:
    """What is added to a bias. Raises Misplaced."""
    shape = tuple(where.symbolic.shape)
    if shape != change.values.stored.shape or len(shape) != 1:
        raise Misplaced(
            f"{change.module}: a bias of {change.values.stored.shape} does not fit {where.name} of {shape}."
        )
    for block in where.symbolic.blocks:
        (_, low, high, every), view = block.source[-1], view_of(stored[block.key])
        if view[1] != 1:
            raise Misplaced(f"{block.key} holds more than a bias.")
        left = Matrix(ref=change.values, rows=range(*block.box[0]), columns=range(1))
        yield block.key, AddProduct(
            module=change.module, uses=change.uses, rows=(low, high), columns=(0, 1), left=left, right=None,
            scaling=change.scaling, every=every,
        ), view  # fmt: skip


def place_tokens(change: TokenRows, where: Located, rows: int) -> tuple[TensorStep, View]:
    """The rows of an embedding that is stored as it is, `rows` high. Raises Misplaced."""
    (_, width), view = flat(change.values), (rows, math.prod(where.symbolic.shape[1:]))
    if where.symbolic.plain is None:
        raise Misplaced(f"{where.name} is not stored in one piece, and the adapter sets single rows of it.")
    if width != view[1] or max(change.at, default=0) >= rows:
        raise Misplaced(f"{change.module}: rows {max(change.at)} and width {width} do not fit {where.name} of {view}.")
    return SetRows(
        module=change.module, uses=change.uses, rows=(0, rows), columns=(0, width), at=change.at, values=change.values
    ), view


def place_probed(change: ProbedParameter, where: Located, stored: Stored) -> tuple[str, TensorStep, View]:
    """A parameter that a layer was asked for; it has to be stored in one piece. Raises Misplaced."""
    key, shape = where.symbolic.plain, tuple(where.symbolic.shape)
    if key is None or stored[key] != shape:
        raise Misplaced(f"{where.name} is not stored in one piece, and only PEFT's layers know what becomes of it.")
    if (change.rows[1], change.columns[1]) != view_of(shape):
        raise Misplaced(f"{change.module}'s layer makes {change.rows[1]}×{change.columns[1]}; {where.name} is {shape}.")
    return key, change, view_of(shape)


def place_whole(change: WholeTensor, where: Located, stored: Stored) -> Iterator[tuple[str, TensorStep, View]]:
    """A tensor that the adapter brings whole, cut to the boxes of a parameter that is not stored in one piece."""
    shape = tuple(where.symbolic.shape)
    if change.values.stored.shape != shape:
        raise Misplaced(f"{change.module}: {change.values.stored.shape} does not fit {where.name} of {shape}.")
    axes = Axes(experts=0, out=1, into=(2,)) if len(shape) == 3 else Axes(experts=None, out=0, into=(1,))
    for block in where.symbolic.blocks:
        for at in _experts(block, axes):
            (rows, every), columns, view, transposed = _box(block, stored[block.key], axes, at)
            low, high = block.box[axes.out]
            above = at * shape[1] if len(shape) == 3 else 0
            across = range(*block.box[axes.into[0]]) if len(shape) > 1 else range(1)
            values = Matrix(
                ref=change.values, rows=range(above + low, above + high), columns=across, transposed=transposed,
                view=view_of(shape, stacked=True),
            )  # fmt: skip
            step = SetRectangle(
                module=change.module, uses=change.uses, rows=rows, columns=columns, values=values, every=every
            )
            yield block.key, step, view


def _box(block: Block, shape: tuple[int, ...], axes: Axes, expert: int) -> Rectangle:
    """As `rectangle`, and for vectors too."""
    if len(shape) == 1:
        _, low, high, every = block.source[0]
        return ((low, high), every), (0, 1), view_of(shape), False
    return rectangle(block, shape, axes, expert)
