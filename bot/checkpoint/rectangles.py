"""Rectangles of checkpoint tensors that are rectangles of a parameter's logical out × in matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from bot.checkpoint.conversions import Route
from bot.checkpoint.layouts import Layout, Span, Tile, Unmergeable
from bot.records import Stored

PASSED_ON = {"Transpose"}  # operations that leave the logical matrices what they are


@dataclass(frozen=True, kw_only=True)
class Piece:
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
    flipped: bool  # the checkpoint stores that rectangle as in×out (Conv1D, some expert stacks)
    step: int = 1  # of that rectangle, only every step-th row belongs to it (rows that transformers deals out on load)
    turned: bool = False  # the checkpoint stores it transposed, as the model itself sees it


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a parameter lies."""

    parameter: str  # as asked
    pieces: tuple[Piece, ...]  # cover the parameter exactly once
    experts: int  # number of logical matrices (1 for an ordinary layer)
    is_transposed: bool  # 3-D parameter of the v5 module laid out E×in×out (module.is_transposed): PEFT's A/B split

    @property
    def key(self) -> str | None:
        """The checkpoint tensor that the parameter is, whole and as it is; else None."""
        if len(self.pieces) != 1 or self.experts != 1:
            return None
        (piece,) = self.pieces
        all_of_it = (piece.at_rows, piece.at_columns) == ((0, piece.view[0]), (0, piece.view[1]))
        return piece.key if all_of_it and piece.step == 1 and not piece.turned else None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """How a parameter is seen: `stacked` matrices (where it has 3 axes) or one; laid out in × out or out × in."""

    stacked: bool
    in_by_out: bool


def place(name: str, layout: Layout, seen: Seen, stored: Mapping[str, Stored]) -> Placement:
    """The placement of a parameter of this layout. Raises Unmergeable."""
    stacked = seen.stacked and len(layout.shape) == 3
    if stacked:
        pieces = [piece for tile in layout.tiles for piece in _stacked(tile, seen.in_by_out, stored[tile.key].shape)]
        transposed = seen.in_by_out
    else:
        in_by_out = seen.in_by_out and not seen.stacked and len(layout.shape) == 2
        pieces = [_plain(name, tile, layout, in_by_out, stored[tile.key].shape) for tile in layout.tiles]
        transposed = False
    return Placement(
        parameter=name,
        pieces=tuple(pieces),
        experts=layout.shape[0] if stacked else 1,
        is_transposed=transposed,
    )


def place_whole(name: str, stored: Stored, *, in_by_out: bool) -> Placement:
    """The placement of a parameter that is one tensor, and one logical matrix (a Conv1D's is stored `in_by_out`)."""
    shape = stored.shape
    rows, columns = (shape[0], prod(shape[1:])) if shape else (1, 1)
    flipped = in_by_out and len(shape) == 2
    high, wide = (0, rows), (0, columns)
    piece = Piece(
        key=stored.key,
        view=(rows, columns),
        at_rows=high,
        at_columns=wide,
        expert=0,
        out=wide if flipped else high,
        into=high if flipped else wide,
        flipped=flipped,
    )
    return Placement(parameter=name, pieces=(piece,), experts=1, is_transposed=False)


def part_of(route: Route, targets: Sequence[Placement]) -> Placement:
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
    joined = names in (["MergeModulelist", "Concatenate"], ["Concatenate"])
    if len(targets) > 1 or not (joined or names == ["MergeModulelist"]):
        raise Unmergeable(f"transformers rearranges {targets[0].parameter} on load ({', '.join(names)}).")
    found = targets[0]
    if names[0] == "MergeModulelist":
        found = _expert(found, route.expert)
    if joined:
        axis = operations[-1][1] - (1 if found.experts > 1 or names[0] == "MergeModulelist" else 0)
        found = _share(found, route.source, len(converter.sources), by_out=(axis == 0) != found.is_transposed)
    return found


def turn_own(key: str, placement: Placement) -> Placement:
    """The part of a parameter's placement that lies in one stacked tensor, as a parameter of its own."""
    pieces = [piece for piece in placement.pieces if piece.key == key]
    first = min(piece.expert for piece in pieces)
    out, into = min(piece.out[0] for piece in pieces), min(piece.into[0] for piece in pieces)
    moved = [
        replace(piece, expert=piece.expert - first, out=_back(piece.out, out), into=_back(piece.into, into))
        for piece in pieces
    ]
    return replace(placement, pieces=tuple(moved), experts=len({piece.expert for piece in moved}))


def _stacked(tile: Tile, in_by_out: bool, shape: tuple[int, ...]) -> list[Piece]:
    """One piece an expert. The tensor is a single expert's matrix (2-D) or a stack of them (3-D)."""
    expert_axis, first, second = tile.axes
    if len(shape) == 3 and expert_axis != 0:
        raise Unmergeable(f"{tile.key} does not hold its experts one after the other.")
    rows_axis = len(shape) - 2
    turned = first != rows_axis  # the parameter's matrix is the tensor's, transposed
    out, into = (tile.at[2], tile.at[1]) if in_by_out else (tile.at[1], tile.at[2])
    rows, columns = tile.of[rows_axis], _side_by_side(tile, rows_axis + 1)
    height = shape[rows_axis]
    pieces = []
    for number, expert in enumerate(range(*tile.at[0])):
        base = tile.of[0][number] * height if len(shape) == 3 else 0
        pieces.append(
            Piece(
                key=tile.key,
                view=(prod(shape[:-1]), shape[-1]),
                at_rows=(base + rows.start, base + rows[-1] + 1),
                at_columns=columns,
                expert=expert,
                out=out,
                into=into,
                flipped=in_by_out != turned,
                step=rows.step,
            )
        )
    assert {first, second} == {rows_axis, rows_axis + 1}
    return pieces


def _plain(name: str, tile: Tile, layout: Layout, in_by_out: bool, shape: tuple[int, ...]) -> Piece:
    turned = tile.axes == (1, 0)
    if not turned and tile.axes != tuple(range(len(shape))):
        raise Unmergeable(f"{tile.key} holds {name} in another order.")
    if len(shape) > 2 and (
        tile.of[1:] != tuple(map(range, shape[1:])) or tile.at[1:] != tuple((0, size) for size in shape[1:])
    ):
        raise Unmergeable(f"{tile.key} holds {name} in parts that are no rows.")
    rows = tile.of[0] if shape else range(1)
    box = ((rows.start, rows[-1] + 1), *(_side_by_side(tile, axis) for axis in range(1, len(shape)))) if shape else ()
    view, of = _as_matrix(shape, box)
    _, at = _as_matrix(layout.shape, tile.at)
    out, into = (at[1], at[0]) if in_by_out else at
    return Piece(
        key=tile.key,
        view=view,
        at_rows=of[0],
        at_columns=of[1],
        expert=0,
        out=out,
        into=into,
        flipped=in_by_out != turned,
        step=rows.step,
        turned=turned,
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
    pieces = [replace(piece, expert=0) for piece in placement.pieces if piece.expert == number]
    if not pieces:
        raise Unmergeable(f"{placement.parameter} has {placement.experts} experts and none numbered {number}.")
    return replace(placement, pieces=tuple(pieces), experts=1)


def _share(placement: Placement, index: int, count: int, *, by_out: bool) -> Placement:
    """The index-th of `count` equal parts of each logical matrix, along out or in."""
    size = max(piece.out[1] if by_out else piece.into[1] for piece in placement.pieces)
    if size % count:
        raise Unmergeable(f"{placement.parameter} cannot be split into {count} equal parts.")
    low, high = index * size // count, (index + 1) * size // count
    pieces = [cut for piece in placement.pieces if (cut := _clipped(piece, low, high, by_out=by_out))]
    return replace(placement, pieces=tuple(pieces))


def _clipped(piece: Piece, low: int, high: int, *, by_out: bool) -> Piece | None:
    span = piece.out if by_out else piece.into
    start, stop = max(low, span[0]), min(high, span[1])
    if start >= stop:
        return None
    on_rows = by_out != piece.flipped
    kept = (start - low, stop - low)
    if on_rows:
        rows = range(*piece.at_rows, piece.step)[start - span[0] : stop - span[0]]
        taken = (rows.start, rows[-1] + 1)
    else:
        begin = piece.at_columns[0] - span[0]
        taken = (begin + start, begin + stop)
    return replace(
        piece,
        at_rows=taken if on_rows else piece.at_rows,
        at_columns=piece.at_columns if on_rows else taken,
        out=kept if by_out else piece.out,
        into=piece.into if by_out else kept,
    )


def _one_above_the_other(targets: Sequence[Placement]) -> Placement:
    pieces: list[Piece] = []
    height = 0
    for one in targets:
        pieces += [replace(piece, out=_back(piece.out, -height)) for piece in one.pieces]
        height += max(piece.out[1] for piece in one.pieces)
    return replace(targets[0], pieces=tuple(pieces))


def _back(span: Span, by: int) -> Span:
    return (span[0] - by, span[1] - by)
