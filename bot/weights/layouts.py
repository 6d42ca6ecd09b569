"""Arrays that are put together from checkpoint tensors, as boxes: no number is touched.

A `Layout` says of every box of a parameter which box of which tensor it is. The operations are those of transformers'
`core_model_loading.py`; what they do to values follows from what they do to boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bot.records import Json, Stored
from bot.weights.conversions import Converter

Span = tuple[int, int]


class Unmergeable(Exception):
    """The numbers of a parameter are not where rectangles of the checkpoint are; `args[0]` says why, as a sentence."""


class Tile(NamedTuple):
    """The box `at` of the parameter is the box `of` of tensor `key`; `axes`: parameter axis → tensor axis, -1: none."""

    at: tuple[Span, ...]
    key: str
    of: tuple[Span, ...]
    axes: tuple[int, ...]


class Layout(NamedTuple):
    """A parameter of this shape; the tiles cover it exactly once."""

    shape: tuple[int, ...]
    tiles: tuple[Tile, ...]


def whole(stored: Stored) -> Layout:
    """A checkpoint tensor as it is."""
    box = tuple((0, size) for size in stored.shape)
    return Layout(stored.shape, (Tile(box, stored.key, box, tuple(range(len(box)))),))


def convert(
    converter: Converter, sources: Mapping[int, Sequence[Layout]], chosen: int, target: str, expected: tuple[int, int]
) -> Layout:
    """What the converter's operations make of `sources` (source pattern → tensors in order), for its target `chosen`.

    `expected`: the last two sizes that the model gives the parameter, which `check_dims` asks for. Raises Unmergeable.
    """
    lists = {index: list(layouts) for index, layouts in sorted(sources.items())}
    if len(lists) < len(converter.sources):
        raise Unmergeable(f"The base has only some of the tensors that make up {target}.")
    last = len(converter.targets)
    for name, settings in converter.operations:
        if name == "MergeModulelist":
            lists = {index: [_stack(layouts)] for index, layouts in lists.items()}
        elif name == "Concatenate":
            lists = {
                0: [_concatenate([one for layouts in lists.values() for one in layouts], int(settings.get("dim", 0)))]
            }
        elif name == "Chunk" and "num_shards_attribute" not in settings:
            lists = {0: [_chunk(_only(lists, target), int(settings.get("dim", 0)), chosen, last)]}
        elif name == "Transpose":
            lists = {0: [_transpose(_only(lists, target), settings, expected)]}
        elif not (name == "PermuteForRope" and _left_alone(settings, converter.targets[chosen])):
            raise Unmergeable(f"transformers rearranges {target} on load ({name}).")
    return _only(lists, target)


def _only(lists: Mapping[int, Sequence[Layout]], target: str) -> Layout:
    found = [one for layouts in lists.values() for one in layouts]
    if len(found) != 1:
        raise Unmergeable(f"The base has {len(found)} tensors for {target}.")
    return found[0]


def _stack(layouts: Sequence[Layout]) -> Layout:
    _same_shape([one.shape for one in layouts])
    tiles = [
        Tile(((place, place + 1), *tile.at), tile.key, tile.of, (-1, *tile.axes))
        for place, one in enumerate(layouts)
        for tile in one.tiles
    ]
    return Layout((len(layouts), *layouts[0].shape), tuple(tiles))


def _concatenate(layouts: Sequence[Layout], axis: int) -> Layout:
    _same_shape([one.shape[:axis] + one.shape[axis + 1 :] for one in layouts])
    tiles: list[Tile] = []
    offset = 0
    for one in layouts:
        tiles += [Tile(_moved(tile.at, axis, offset), tile.key, tile.of, tile.axes) for tile in one.tiles]
        offset += one.shape[axis]
    shape = layouts[0].shape
    return Layout((*shape[:axis], offset, *shape[axis + 1 :]), tuple(tiles))


def _chunk(layout: Layout, axis: int, chosen: int, count: int) -> Layout:
    size = -(-layout.shape[axis] // count)  # as torch.chunk
    start, stop = chosen * size, min((chosen + 1) * size, layout.shape[axis])
    return cut(layout, axis, (start, stop))


def cut(layout: Layout, axis: int, span: Span) -> Layout:
    """The slice [start, stop) of a layout along an axis."""
    tiles = []
    for tile in layout.tiles:
        low, high = max(tile.at[axis][0], span[0]), min(tile.at[axis][1], span[1])
        if low >= high:
            continue
        of = list(tile.of)
        if tile.axes[axis] >= 0:
            begin = of[tile.axes[axis]][0] - tile.at[axis][0]
            of[tile.axes[axis]] = (begin + low, begin + high)
        at = (*tile.at[:axis], (low - span[0], high - span[0]), *tile.at[axis + 1 :])
        tiles.append(Tile(at, tile.key, tuple(of), tile.axes))
    return Layout((*layout.shape[:axis], span[1] - span[0], *layout.shape[axis + 1 :]), tuple(tiles))


def _transpose(layout: Layout, settings: Json, expected: tuple[int, int]) -> Layout:
    if settings.get("check_dims") and layout.shape[-2:] == expected:
        return layout
    one, other = int(settings.get("dim0", 0)), int(settings.get("dim1", 1))
    order = list(range(len(layout.shape)))
    order[one], order[other] = other, one
    tiles = [
        Tile(tuple(tile.at[axis] for axis in order), tile.key, tile.of, tuple(tile.axes[axis] for axis in order))
        for tile in layout.tiles
    ]
    return Layout(tuple(layout.shape[axis] for axis in order), tuple(tiles))


def _left_alone(settings: Json, target: str) -> bool:
    """Whether PermuteForRope passes this target by."""
    return "permute_layer_names" in settings and not any(name in target for name in settings["permute_layer_names"])


def _moved(box: tuple[Span, ...], axis: int, offset: int) -> tuple[Span, ...]:
    start, stop = box[axis]
    return (*box[:axis], (start + offset, stop + offset), *box[axis + 1 :])


def _same_shape(shapes: Sequence[tuple[int, ...]]) -> None:
    if len(set(shapes)) != 1:
        raise Unmergeable(f"The base's tensors for one parameter differ in shape: {sorted(set(shapes))[:2]}.")
