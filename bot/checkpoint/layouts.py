"""How a parameter is put together from boxes of checkpoint tensors; no number is read.

A `TileLayout` says of every box of a parameter which box of which tensor it is, perhaps every second row of it. The
operations are those of transformers' `core_model_loading.py`; what they do to values follows from what they do to boxes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bot.checkpoint.conversions import Converter, known
from bot.records import Json, Stored

PROJECTION = re.compile(r"\b(q|k|v)_proj\b")
Span = tuple[int, int]


class Unmergeable(Exception):
    """The numbers of a parameter are not where rectangles of the checkpoint are; `args[0]` says why, as a sentence."""


class Tile(NamedTuple):
    """The box `at` of the parameter is what the ranges `of` cut out of tensor `key`, in their order.

    `axes`: parameter axis → tensor axis, -1: none.
    """

    at: tuple[Span, ...]
    key: str
    of: tuple[range, ...]
    axes: tuple[int, ...]


class TileLayout(NamedTuple):
    """A parameter of this shape; the tiles cover it exactly once."""

    shape: tuple[int, ...]
    tiles: tuple[Tile, ...]


Lists = Mapping[int, Sequence[TileLayout]]  # by source pattern


def whole(stored: Stored) -> TileLayout:
    """A checkpoint tensor as it is."""
    box = tuple((0, size) for size in stored.shape)
    return TileLayout(stored.shape, (Tile(box, stored.key, tuple(map(range, stored.shape)), tuple(range(len(box)))),))


def convert(
    converter: Converter, sources: Mapping[int, Sequence[TileLayout]], chosen: int, target: str, sizes: ModelSizes
) -> TileLayout:
    """What the converter's operations make of `sources` (source pattern → tensors in order), for its target `chosen`.

    Raises Unmergeable.
    """
    lists: Lists = {index: list(layouts) for index, layouts in sorted(sources.items())}
    if len(lists) < len(converter.sources):
        raise Unmergeable(f"The base has only some of the tensors that make up {target}.")
    work = _Conversion(converter, chosen, target, sizes)
    for number, (name, settings) in enumerate(converter.operations):
        operation = OPERATIONS.get(name)
        if operation is None or ("num_shards_attribute" in settings and name == "Chunk"):
            raise Unmergeable(f"transformers rearranges {target} on load ({name}).")
        lists = operation(work, number, lists, settings)
    return _only(lists, target)


class _Conversion(NamedTuple):
    """One converter's target in the making: the `chosen` of its targets, which is parameter `target`."""

    converter: Converter
    chosen: int
    target: str
    sizes: ModelSizes

    def merge_modulelist(self, number: int, lists: Lists, settings: Json) -> Lists:
        return {index: [_stack(layouts)] for index, layouts in lists.items()}

    def concatenate(self, number: int, lists: Lists, settings: Json) -> Lists:
        every = [layout for layouts in lists.values() for layout in layouts]
        return {0: [_concatenate(every, int(settings.get("dim", 0)))]}

    def chunk(self, number: int, lists: Lists, settings: Json) -> Lists:
        count = len(self.converter.targets)
        return {0: [_chunk(_only(lists, self.target), int(settings.get("dim", 0)), self.chosen, count)]}

    def split(self, number: int, lists: Lists, settings: Json) -> Lists:
        layout, axis = _only(lists, self.target), int(settings.get("dim", 0))
        counts = self.sizes.rows(self.converter.targets, layout.shape[axis])
        start = sum(counts[: self.chosen])
        return {0: [cut(layout, axis, (start, start + counts[self.chosen]))]}

    def transpose(self, number: int, lists: Lists, settings: Json) -> Lists:
        return {0: [_transpose(_only(lists, self.target), settings, self.sizes)]}

    def interleave(self, number: int, lists: Lists, settings: Json) -> Lists:
        layout, axis = _only(lists, self.target), int(settings.get("dim", 0))
        half = layout.shape[axis] // 2
        return {0: [_deal(layout, axis, 1, *((2, half) if settings.get("inverse") else (half, 2)), self.target)]}

    def permute_for_rope(self, number: int, lists: Lists, settings: Json) -> Lists:
        """As transformers: the name that is looked at is that which the operation before has given the tensor."""
        layout = _only(lists, self.target)
        name = self.converter.targets[self.chosen] if number else self.converter.sources[0]
        wanted = settings.get("permute_layer_names")
        if len(layout.shape) > 2 or (wanted is not None and not any(layer in name for layer in wanted)):
            return lists
        heads = self.sizes.heads(settings.get("subconfig_key"))
        half = layout.shape[0] // heads // 2
        return {0: [_deal(layout, 0, heads, *((2, half) if settings.get("inverse") else (half, 2)), self.target)]}

    def ernie_experts(self, number: int, lists: Lists, settings: Json) -> Lists:
        """Half of the experts of every list are the first target's, and half the second's."""
        count = len(self.converter.targets)
        parts = []
        for layouts in lists.values():
            size = -(-len(layouts) // count)
            parts.append(_stack(layouts[self.chosen * size : (self.chosen + 1) * size]))
        return {0: [_concatenate(parts, int(settings.get("concat_dim", 1)))]}


OPERATIONS: dict[str, Callable[[_Conversion, int, Lists, Json], Lists]] = {
    "MergeModulelist": _Conversion.merge_modulelist,
    "Concatenate": _Conversion.concatenate,
    "Chunk": _Conversion.chunk,
    "Split": _Conversion.split,
    "Transpose": _Conversion.transpose,
    "Interleave": _Conversion.interleave,
    "PermuteForRope": _Conversion.permute_for_rope,
    "ErnieFuseAndSplitTextVisionExperts": _Conversion.ernie_experts,
}


def _only(lists: Lists, target: str) -> TileLayout:
    every = [layout for layouts in lists.values() for layout in layouts]
    if len(every) != 1:
        raise Unmergeable(f"The base has {len(every)} tensors for {target}.")
    return every[0]


def _stack(layouts: Sequence[TileLayout]) -> TileLayout:
    if not layouts:
        raise Unmergeable("The base has too few experts for their number of kinds.")
    _same_shape([layout.shape for layout in layouts])
    tiles = [
        Tile(((index, index + 1), *tile.at), tile.key, tile.of, (-1, *tile.axes))
        for index, layout in enumerate(layouts)
        for tile in layout.tiles
    ]
    return TileLayout((len(layouts), *layouts[0].shape), tuple(tiles))


def _concatenate(layouts: Sequence[TileLayout], axis: int) -> TileLayout:
    _same_shape([layout.shape[:axis] + layout.shape[axis + 1 :] for layout in layouts])
    tiles: list[Tile] = []
    offset = 0
    for layout in layouts:
        tiles += [Tile(_moved(tile.at, axis, offset), tile.key, tile.of, tile.axes) for tile in layout.tiles]
        offset += layout.shape[axis]
    shape = layouts[0].shape
    return TileLayout((*shape[:axis], offset, *shape[axis + 1 :]), tuple(tiles))


def _chunk(layout: TileLayout, axis: int, chosen: int, count: int) -> TileLayout:
    size = -(-layout.shape[axis] // count)  # as torch.chunk
    start, stop = chosen * size, min((chosen + 1) * size, layout.shape[axis])
    return cut(layout, axis, (start, stop))


def cut(layout: TileLayout, axis: int, span: Span) -> TileLayout:
    """The slice [start, stop) of a layout along an axis."""
    tiles = []
    for tile in layout.tiles:
        low, high = max(tile.at[axis][0], span[0]), min(tile.at[axis][1], span[1])
        if low < high:
            tiles.append(_picked(tile, axis, range(low, high), low - span[0]))
    return TileLayout((*layout.shape[:axis], span[1] - span[0], *layout.shape[axis + 1 :]), tuple(tiles))


def _picked(tile: Tile, axis: int, wanted: range, start: int) -> Tile:
    """The part of a tile at `wanted`, positions along an axis that lie all inside of it; they move to `start` and on."""
    of, low = list(tile.of), tile.at[axis][0]
    if tile.axes[axis] >= 0:
        of[tile.axes[axis]] = of[tile.axes[axis]][wanted[0] - low : wanted[-1] - low + 1 : wanted.step]
    at = (*tile.at[:axis], (start, start + len(wanted)), *tile.at[axis + 1 :])
    return Tile(at, tile.key, tuple(of), tile.axes)


def _deal(layout: TileLayout, axis: int, groups: int, high: int, wide: int, target: str) -> TileLayout:
    """The axis seen as groups × high × wide, and its last two exchanged: every `wide`-th position comes to lie together."""
    size = high * wide
    if groups * size != layout.shape[axis]:
        raise Unmergeable(f"{target} has {layout.shape[axis]} rows, which {groups} heads cannot share out in pairs.")
    tiles = []
    for group in range(groups):
        for first in range(wide):
            positions = range(group * size + first, (group + 1) * size, wide)
            for tile in layout.tiles:
                low, stop = (-(-(edge - positions.start) // wide) for edge in tile.at[axis])
                wanted = positions[max(0, low) : max(0, stop)]
                if wanted:
                    tiles.append(_picked(tile, axis, wanted, group * size + first * high + max(0, low)))
    return TileLayout(layout.shape, tuple(tiles))


def _transpose(layout: TileLayout, settings: Json, sizes: ModelSizes) -> TileLayout:
    if settings.get("check_dims") and layout.shape[-2:] == sizes.matrix:
        return layout
    first, second = int(settings.get("dim0", 0)), int(settings.get("dim1", 1))
    order = list(range(len(layout.shape)))
    order[first], order[second] = second, first
    tiles = [
        Tile(tuple(tile.at[axis] for axis in order), tile.key, tile.of, tuple(tile.axes[axis] for axis in order))
        for tile in layout.tiles
    ]
    return TileLayout(tuple(layout.shape[axis] for axis in order), tuple(tiles))


def _moved(box: tuple[Span, ...], axis: int, offset: int) -> tuple[Span, ...]:
    start, stop = box[axis]
    return (*box[:axis], (start + offset, stop + offset), *box[axis + 1 :])


def _same_shape(shapes: Sequence[tuple[int, ...]]) -> None:
    if len(set(shapes)) != 1:
        raise Unmergeable(f"The base's tensors for one parameter differ in shape: {sorted(set(shapes))[:2]}.")


class ModelSizes:
    """What some operations ask a built model for about one v5 parameter, `target`: read from config.json and the base's own tensors.

    `shape_of`: another parameter's shape, None where the base has none.
    """

    def __init__(self, config: Json, target: str, shape_of: Callable[[str], tuple[int, ...] | None]) -> None:
        self._config, self._target, self._shape_of = config, target, shape_of

    @property
    def matrix(self) -> tuple[int, int]:
        """The last two sizes that a model gives stacked experts, out × in (Transpose(check_dims))."""
        text = self._config.get("text_config")
        config = text if isinstance(text, dict) else self._config
        hidden, inner = (int(config.get(key) or 0) for key in ("hidden_size", "moe_intermediate_size"))
        return (2 * inner, hidden) if self._target.endswith("gate_up_proj") else (hidden, inner)

    def heads(self, part: str | None) -> int:
        """`num_attention_heads`, as PermuteForRope finds it: where config.json is silent, the class's default.

        Raises Unmergeable where no class with such heads is known.
        """
        parts = known()["heads"].get(self._config.get("model_type"), {})
        key = part if part in parts else ""
        if key not in parts:
            raise Unmergeable(
                f"transformers rearranges the heads of {self._target} on load, and their number is not known."
            )
        name, usual = parts[key]
        inner = self._config.get(key) if key else self._config
        config = inner if isinstance(inner, dict) else {}
        heads = config.get(name, config.get("num_attention_heads", usual))
        if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
            raise Unmergeable(f"The base's config.json gives {self._target} {heads!r} attention heads.")
        return heads

    def rows(self, targets: Sequence[str], total: int) -> tuple[int, ...]:
        """The rows of queries, keys and values (Split), which lie one above the other: those of the queries are what the output
        projection takes in. Raises Unmergeable for other targets."""
        names = [kinds[0] if (kinds := PROJECTION.findall(target)) else "" for target in targets]
        output = self._shape_of(PROJECTION.sub("o_proj", self._target).rpartition(".")[0] + ".weight")
        queries = output[1] if output and len(output) == 2 else 0
        if sorted(names) != ["k", "q", "v"] or not 0 < queries < total or (total - queries) % 2:
            raise Unmergeable(f"transformers splits the tensor of {self._target} on load, in parts of unknown sizes.")
        return tuple(queries if name == "q" else (total - queries) // 2 for name in names)
