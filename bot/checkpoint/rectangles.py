"""Rectangles of checkpoint tensors that are rectangles of a parameter's logical out × in matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from bot.checkpoint.conversions import Route
from bot.checkpoint.layouts import Span, Tile, TileLayout, Unmergeable
from bot.records import Stored

PASSED_ON = {"Transpose"}  # operations that leave the logical matrices what they are


@dataclass(frozen=True, kw_only=True)
class Rectangle:
    """A rectangle of a checkpoint tensor that is a rectangle of a parameter.

    The checkpoint tensor is viewed as a matrix: 2-D as it is; 1-D n as n×1; n-D as shape[0]×rest, but 3-D expert stacks
    (E×R×C) as (E·R)×C. The parameter, as the adapter sees it, is a stack of logical out×in matrices (expert 0 only for
    an ordinary layer).
    """

    key: str  # checkpoint key
    view: tuple[int, int]  # rows × columns under which the tensor is seen
    at_rows: Span
    at_columns: Span  # rectangle in that view
    expert: int  # which logical matrix
    out: Span
    into: Span  # rectangle of the logical out×in matrix
    transposed: bool  # the checkpoint stores that rectangle as in×out (Conv1D, some expert stacks)
    step: int = 1  # of that rectangle, only every step-th row belongs to it (rows that transformers deals out on load)
    transposed_on_load: bool = False  # transformers transposes the checkpoint tensor when it loads it


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a parameter lies."""

    parameter: str  # as asked
    rectangles: tuple[Rectangle, ...]  # cover the parameter exactly once
    experts: int  # number of logical matrices (1 for an ordinary layer)
    transposed: bool  # 3-D parameter of the v5 module laid out E×in×out (module.is_transposed): PEFT's A/B split

    @property
    def key(self) -> str | None:
        """The checkpoint tensor that the parameter is, whole and as it is; else None."""
        if len(self.rectangles) != 1 or self.experts != 1:
            return None
        (rectangle,) = self.rectangles
        all_of_it = (rectangle.at_rows, rectangle.at_columns) == ((0, rectangle.view[0]), (0, rectangle.view[1]))
        return rectangle.key if all_of_it and rectangle.step == 1 and not rectangle.transposed_on_load else None


@dataclass(frozen=True, kw_only=True)
class MatrixForm:
    """`stacked`: the parameter is a stack of matrices (where it has 3 axes), else one. `transposed`: laid out in × out."""

    stacked: bool
    transposed: bool


def placement_of(name: str, layout: TileLayout, form: MatrixForm, stored: Mapping[str, Stored]) -> Placement:
    """The placement of a parameter of this layout. Raises Unmergeable."""
    stacked = form.stacked and len(layout.shape) == 3
    if stacked:
        rectangles = [
            rectangle for tile in layout.tiles for rectangle in _stacked(tile, form.transposed, stored[tile.key].shape)
        ]
    else:
        transposed = form.transposed and not form.stacked and len(layout.shape) == 2
        rectangles = [_plain(name, tile, layout, transposed, stored[tile.key].shape) for tile in layout.tiles]
    experts, transposed = (layout.shape[0], form.transposed) if stacked else (1, False)
    return Placement(parameter=name, rectangles=tuple(rectangles), experts=experts, transposed=transposed)


def whole_placement(name: str, stored: Stored, *, transposed: bool) -> Placement:
    """The placement of a parameter that is one tensor, and one logical matrix (a Conv1D's is `transposed`)."""
    shape = stored.shape
    rows, columns = (shape[0], prod(shape[1:])) if shape else (1, 1)
    transposed = transposed and len(shape) == 2
    high, wide = (0, rows), (0, columns)
    rectangle = Rectangle(
        key=stored.key,
        view=(rows, columns),
        at_rows=high,
        at_columns=wide,
        expert=0,
        out=wide if transposed else high,
        into=high if transposed else wide,
        transposed=transposed,
    )
    return Placement(parameter=name, rectangles=(rectangle,), experts=1, transposed=False)


def placement_of_part(route: Route, targets: Sequence[Placement]) -> Placement:
    """What an older name stands for, when the v5 parameters that it leads to lie at `targets`. Raises Unmergeable."""
    converter = route.converter
    if converter is None:
        return targets[0]
    operations = [(name, int(settings.get("dim", 0))) for name, settings in converter.operations]
    names = [name for name, _ in operations]
    if set(names) <= PASSED_ON:
        return targets[0]
    if names in (["Chunk"], ["Split"]) and operations[0][1] == 0:
        return _one_above_the_other(targets)
    concatenated = names in (["MergeModulelist", "Concatenate"], ["Concatenate"])
    if len(targets) > 1 or not (concatenated or names == ["MergeModulelist"]):
        raise Unmergeable(f"transformers rearranges {targets[0].parameter} on load ({', '.join(names)}).")
    placement = targets[0]
    if names[0] == "MergeModulelist":
        placement = _expert(placement, route.expert)
    if concatenated:
        axis = operations[-1][1] - (1 if placement.experts > 1 or names[0] == "MergeModulelist" else 0)
        placement = _share(placement, route.source, len(converter.sources), by_out=(axis == 0) != placement.transposed)
    return placement


def placement_within(key: str, placement: Placement) -> Placement:
    """The part of a parameter's placement that lies in one stacked tensor, as a parameter of its own."""
    rectangles = [rectangle for rectangle in placement.rectangles if rectangle.key == key]
    first = min(rectangle.expert for rectangle in rectangles)
    out, into = min(rectangle.out[0] for rectangle in rectangles), min(rectangle.into[0] for rectangle in rectangles)
    moved = [
        replace(
            rectangle, expert=rectangle.expert - first, out=_back(rectangle.out, out), into=_back(rectangle.into, into)
        )
        for rectangle in rectangles
    ]
    return replace(placement, rectangles=tuple(moved), experts=len({rectangle.expert for rectangle in moved}))


def _stacked(tile: Tile, transposed: bool, shape: tuple[int, ...]) -> list[Rectangle]:
    """One rectangle for each expert. The tensor is a single expert's matrix (2-D) or a stack of them (3-D)."""
    expert_axis, first, second = tile.axes
    if len(shape) == 3 and expert_axis != 0:
        raise Unmergeable(f"{tile.key} does not hold its experts one after the other.")
    rows_axis = len(shape) - 2
    on_load = first != rows_axis  # transformers transposes the tensor's matrices when it loads them
    out, into = (tile.at[2], tile.at[1]) if transposed else (tile.at[1], tile.at[2])
    rows, columns = tile.of[rows_axis], _side_by_side(tile, rows_axis + 1)
    height = shape[rows_axis]
    rectangles = []
    for number, expert in enumerate(range(*tile.at[0])):
        base = tile.of[0][number] * height if len(shape) == 3 else 0
        rectangles.append(
            Rectangle(
                key=tile.key,
                view=(prod(shape[:-1]), shape[-1]),
                at_rows=(base + rows.start, base + rows[-1] + 1),
                at_columns=columns,
                expert=expert,
                out=out,
                into=into,
                transposed=transposed != on_load,
                step=rows.step,
            )
        )
    assert {first, second} == {rows_axis, rows_axis + 1}
    return rectangles


def _plain(name: str, tile: Tile, layout: TileLayout, transposed: bool, shape: tuple[int, ...]) -> Rectangle:
    on_load = tile.axes == (1, 0)
    if not on_load and tile.axes != tuple(range(len(shape))):
        raise Unmergeable(f"{tile.key} holds {name} in another order.")
    if len(shape) > 2 and (
        tile.of[1:] != tuple(map(range, shape[1:])) or tile.at[1:] != tuple((0, size) for size in shape[1:])
    ):
        raise Unmergeable(f"{tile.key} holds {name} in parts that are no rows.")
    rows = tile.of[0] if shape else range(1)
    box = ((rows.start, rows[-1] + 1), *(_side_by_side(tile, axis) for axis in range(1, len(shape)))) if shape else ()
    view, of = _as_matrix(shape, box)
    _, at = _as_matrix(layout.shape, tile.at)
    out, into = (at[1], at[0]) if transposed else at
    return Rectangle(
        key=tile.key,
        view=view,
        at_rows=of[0],
        at_columns=of[1],
        expert=0,
        out=out,
        into=into,
        transposed=transposed != on_load,
        step=rows.step,
        transposed_on_load=on_load,
    )


def _side_by_side(tile: Tile, axis: int) -> Span:
    """What a tile takes of an axis of its tensor, which it must take in one."""
    taken = tile.of[axis]
    if taken.step != 1:
        raise Unmergeable(f"transformers rearranges the columns of {tile.key} on load.")
    return taken.start, taken.stop


def _as_matrix(shape: tuple[int, ...], box: tuple[Span, ...]) -> tuple[tuple[int, int], tuple[Span, Span]]:
    """A shape and a box in it, as rows × columns: n-D as shape[0] × the rest."""
    if len(shape) == 2:
        return (shape[0], shape[1]), (box[0], box[1])
    rest = prod(shape[1:])
    rows, span = (shape[0], box[0]) if shape else (1, (0, 1))
    return (rows, rest), (span, (0, rest))


def _expert(placement: Placement, number: int | None) -> Placement:
    rectangles = [replace(rectangle, expert=0) for rectangle in placement.rectangles if rectangle.expert == number]
    if not rectangles:
        raise Unmergeable(f"{placement.parameter} has {placement.experts} experts and none numbered {number}.")
    return replace(placement, rectangles=tuple(rectangles), experts=1)


def _share(placement: Placement, index: int, count: int, *, by_out: bool) -> Placement:
    """The index-th of `count` equal parts of each logical matrix, along out or in."""
    size = max(rectangle.out[1] if by_out else rectangle.into[1] for rectangle in placement.rectangles)
    if size % count:
        raise Unmergeable(f"{placement.parameter} cannot be split into {count} equal parts.")
    low, high = index * size // count, (index + 1) * size // count
    rectangles = [cut for rectangle in placement.rectangles if (cut := _clipped(rectangle, low, high, by_out=by_out))]
    return replace(placement, rectangles=tuple(rectangles))


def _clipped(rectangle: Rectangle, low: int, high: int, *, by_out: bool) -> Rectangle | None:
    span = rectangle.out if by_out else rectangle.into
    start, stop = max(low, span[0]), min(high, span[1])
    if start >= stop:
        return None
    on_rows = by_out != rectangle.transposed
    kept = (start - low, stop - low)
    if on_rows:
        rows = range(*rectangle.at_rows, rectangle.step)[start - span[0] : stop - span[0]]
        taken = (rows.start, rows[-1] + 1)
    else:
        begin = rectangle.at_columns[0] - span[0]
        taken = (begin + start, begin + stop)
    return replace(
        rectangle,
        at_rows=taken if on_rows else rectangle.at_rows,
        at_columns=rectangle.at_columns if on_rows else taken,
        out=kept if by_out else rectangle.out,
        into=rectangle.into if by_out else kept,
    )


def _one_above_the_other(targets: Sequence[Placement]) -> Placement:
    rectangles: list[Rectangle] = []
    height = 0
    for placement in targets:
        rectangles += [replace(rectangle, out=_back(rectangle.out, -height)) for rectangle in placement.rectangles]
        height += max(rectangle.out[1] for rectangle in placement.rectangles)
    return replace(targets[0], rectangles=tuple(rectangles))


def _back(span: Span, by: int) -> Span:
    return (span[0] - by, span[1] - by)
