"""Blocks that stand at several depths of a model: stored once, under the name of the first, and tied to it at the others.

The rules are those of transformers' Zamba and Zamba2 (the `_tied_weights_keys` that their constructors set): Zamba has one
block, which every hybrid layer calls; Zamba2 has `num_mem_blocks` of them, which its hybrid layers call in turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from bot.checkpoint.families import ties_weights
from bot.records import Json, Stored

KEY = re.compile(r"(?P<front>(?:.*\.)?layers\.)(?P<depth>\d{1,6})\.(?P<rest>shared_transf(?:ormer)?\..+)")
HYBRID, PLAIN = "hybrid", "linear_attention"
# Which layers are hybrid where config.json is silent.
ZAMBA2 = [PLAIN, *([PLAIN] * 5 + [HYBRID]) * 7, *[PLAIN] * 4, HYBRID, *[PLAIN] * 3, HYBRID, *[PLAIN] * 2]


def depths_of(config: Json) -> list[list[int]]:
    """The layers that each block stands at, the first of them first; [] for a model without such blocks."""
    model_type = config.get("model_type")
    if model_type not in ("zamba", "zamba2"):
        return []
    blocks = config.get("num_mem_blocks", 1) if model_type == "zamba2" else 1
    layers = [layer for layer, kind in enumerate(_kinds(config)) if kind == HYBRID]
    if type(blocks) is not int or blocks < 1:
        return []
    return [layers[first::blocks] for first in range(min(blocks, len(layers)))]


def unstored_names(stored: Mapping[str, Stored], config: Json) -> dict[str, tuple[str, ...]]:
    """{a key of such a block: the names of that weight at the depths for which the base has no tensor}; {} where config.json
    ties nothing, so that each depth has a tensor of its own."""
    depths = depths_of(config)
    block_of = {layer: block for block, layers in enumerate(depths) for layer in layers}
    if not block_of or not ties_weights(config):
        return {}
    at: dict[tuple[str, str, int], dict[int, str]] = {}
    for key in stored:
        match = KEY.fullmatch(key)
        if match and (block := block_of.get(int(match["depth"]))) is not None:
            at.setdefault((match["front"], match["rest"], block), {})[int(match["depth"])] = key
    return dict(_unstored(at, depths))


def _unstored(
    at: Mapping[tuple[str, str, int], Mapping[int, str]], depths: Sequence[Sequence[int]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """`at`: (what stands before the layer, what behind, the block) → {layer: key}."""
    for (front, rest, block), keys in at.items():
        lacking = tuple(f"{front}{layer}.{rest}" for layer in depths[block] if layer not in keys)
        if lacking:
            yield keys[min(keys)], lacking


def _kinds(config: Json) -> list[str]:
    """The kind of each layer."""
    kinds = config.get("layers_block_type") or config.get("layer_types")
    if isinstance(kinds, list):
        return kinds
    if config.get("model_type") == "zamba2":
        return ZAMBA2
    count, period, offset = (
        config.get(name, usual)
        for name, usual in (("num_hidden_layers", 76), ("attn_layer_period", 6), ("attn_layer_offset", 4))
    )
    if not all(type(number) is int and 0 <= number <= 10_000 for number in (count, period, offset)) or not period:
        return []
    return [PLAIN, PLAIN, HYBRID, *(HYBRID if i % period == offset else PLAIN for i in range(count - 3))]
