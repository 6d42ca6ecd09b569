"""The heat map as letters: for a summary on GitHub, which shows no picture of ours."""

from __future__ import annotations

from bot.report_document import Document
from bot.report_page.heat_map import HeatMap, relative_map
from bot.report_page.layout import cut
from bot.untrusted.markdown import one_line

BLOCKS = "▁▂▃▄▅▆▇█"  # one for each step
NONE = "·"


def heat_map_text(document: Document) -> str | None:
    """Size of the delta: a line for each module, a letter for each layer, the higher the larger; None where the report has no
    such rows."""
    heat_map = relative_map(document)
    if heat_map is None:
        return None
    names = [*heat_map.modules, *heat_map.outside]
    width = max(len(_name(name)) for name in names)
    lines = [f"{_name(name):<{width}}  {_blocks(heat_map, name)}" for name in names]
    low, high = heat_map.scale.ends[0], heat_map.scale.ends[-1]
    layers = f", layers {heat_map.layers[0]} to {heat_map.layers[-1]}" if heat_map.layers else ""
    unit = heat_map.scale.unit
    return "\n".join(
        [f"{heat_map.title}{layers}: {BLOCKS[0]} below {low} {unit}, {BLOCKS[-1]} from {high} {unit} on", *lines]
    )


def _blocks(heat_map: HeatMap, module: str) -> str:
    scale = heat_map.scale
    if module in heat_map.outside and module not in heat_map.modules:
        value = heat_map.outside[module]
        return f"{BLOCKS[scale.step(value)]}  {scale.words(value)}"
    values = [heat_map.values.get((layer, module)) for layer in heat_map.layers]
    blocks = "".join(NONE if value is None else BLOCKS[scale.step(value)] for value in values)
    return f"{blocks}  median {scale.words(heat_map.of_module(module))}"


def _name(module: str) -> str:
    return cut(one_line(module))
