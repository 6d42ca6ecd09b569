"""Where everything of a heat map lies, in pixels of a drawing that is scaled as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bot.report_page.heat_map import STEPS, HeatMap

LETTER = 6.2  # width of a letter of the labels, at their size of 11
DIGIT = 5.0  # of the numbers in the cells, at their size of 9
WIDE, NARROW = 1040.0, 348.0
LINE = 22.0  # height of a module's line
WIDEST = 64.0  # of a cell
STEP = 62.0  # of the legend
LONGEST_LABEL = 34


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A rectangle. `step` None: there is no such module in that layer. `text`: stands in it; `title`: shows on hover."""

    x: float
    y: float
    width: float
    height: float
    step: int | None
    text: str = ""
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A line of text that begins, has its middle or ends at x; `steep`: it is written upwards."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "start"
    steep: bool = False
    title: str = ""


@dataclass(kw_only=True)
class Picture:
    """A drawing of `width` × `height`."""

    title: str
    width: float
    height: float = 0.0
    cells: list[Cell] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)

    def write(self, x: float, y: float, text: str, anchor: Literal["start", "middle", "end"] = "start") -> None:
        """A label, cut where it is too long."""
        self.labels.append(Label(x=x, y=y, text=cut(text), anchor=anchor, title=text if text != cut(text) else ""))

    def fill(self, heat_map: HeatMap, at: tuple[float, float, float, float], value: float | None, name: str) -> None:
        """A cell at x, y of width and height, with its number where there is room. `name`: "" where nothing hovers."""
        x, y, width, height = at
        if value is None:
            self.cells.append(Cell(x=x, y=y, width=width, height=height, step=None, title=name and f"{name}: none"))
            return
        scale = heat_map.scale
        text = scale.text(value).removeprefix("0") if abs(value) < 1 else scale.text(value)
        room = width >= DIGIT * len(text) + 4 and height >= 11
        self.cells.append(
            Cell(x=x, y=y, width=width, height=height, step=scale.step(value), text=text if room else "",
                 title=name and f"{name}: {scale.words(value)}")
        )  # fmt: skip


def wide(heat_map: HeatMap) -> Picture:
    """Layers from left to right, a line for each module with its median at the end."""
    picture = Picture(title=heat_map.title, width=WIDE)
    left, top = 14 + LETTER * _longest(heat_map), 18.0
    width = min(WIDEST, (WIDE - left - 66) / max(1, len(heat_map.layers)))
    end = left + width * len(heat_map.layers) + 6
    if heat_map.layers:
        picture.write(left - 8, top - 6, "layer", "end")
        picture.write(end, top - 6, "median")
    every = max(1, round(26 / width + 0.5)) if width < 26 else 1
    for at, layer in enumerate(heat_map.layers):
        if at % every == 0 and (every == 1 or left + (at + 0.5) * width < end - 18):
            picture.write(left + (at + 0.5) * width, top - 6, str(layer), "middle")
    for line, module in enumerate(heat_map.modules):
        y = top + line * LINE
        picture.write(left - 8, y + 15, module, "end")
        picture.write(end, y + 15, heat_map.scale.words(heat_map.of_module(module)))
        for at, layer in enumerate(heat_map.layers):
            box = (left + at * width, y, width, LINE)
            picture.fill(heat_map, box, heat_map.values.get((layer, module)), f"layer {layer}, {module}")
    y = top + LINE * len(heat_map.modules)
    picture.width = max(end + 60, left + STEPS * STEP + 26)
    return _below(picture, heat_map, left, y, STEP)


def narrow(heat_map: HeatMap) -> Picture:
    """Modules from left to right, a line for each layer: for a telephone."""
    picture = Picture(title=heat_map.title, width=NARROW)
    left, top = 34.0, 16 + LETTER * max((len(cut(name)) for name in heat_map.modules), default=0)
    width = min(WIDEST, (NARROW - left) / max(1, len(heat_map.modules)))
    height = max(6.0, min(18.0, 1800 / max(1, len(heat_map.layers))))
    for at, module in enumerate(heat_map.modules):
        x = left + (at + 0.5) * width + 4
        picture.labels.append(Label(x=x, y=top - 6, text=cut(module), steep=True, title=module))
    for line, layer in enumerate(heat_map.layers):
        y = top + line * height
        if height >= 11 or line % 2 == 0:
            picture.write(left - 6, y + height / 2 + 4, str(layer), "end")
        for at, module in enumerate(heat_map.modules):
            box = (left + at * width, y, width, height)
            picture.fill(heat_map, box, heat_map.values.get((layer, module)), "")
    y = top + height * len(heat_map.layers) if heat_map.layers else 0.0
    return _below(picture, heat_map, left, y, (NARROW - left) / STEPS)


def cut(text: str) -> str:
    """A name as far as there is room: what tells it from others stands at its end."""
    return text if len(text) <= LONGEST_LABEL else f"…{text[1 - LONGEST_LABEL :]}"


def _longest(heat_map: HeatMap) -> int:
    return max((len(cut(name)) for name in [*heat_map.modules, *heat_map.outside, "layer"]), default=0)


def _below(picture: Picture, heat_map: HeatMap, left: float, y: float, width: float) -> Picture:
    """The modules that are in no layer, and what the steps mean; then the drawing has its height."""
    labels = width == STEP  # there is room for names beside the cells
    y += 8 if heat_map.outside and heat_map.layers else 0
    for module, value in heat_map.outside.items():
        if labels:
            picture.write(left - 8, y + 15, module, "end")
        else:
            picture.write(left + WIDEST + 6, y + 15, module)
        picture.fill(heat_map, (left, y, WIDEST, LINE), value, module)
        y += LINE
    y += 14
    for step in range(STEPS):
        picture.cells.append(Cell(x=left + step * width, y=y, width=width, height=12, step=step))
    for at, end in enumerate(heat_map.scale.ends, 1):
        picture.write(left + at * width, y + 24, end, "middle")
    if labels:
        picture.write(left + STEPS * width + 6, y + 11, heat_map.scale.unit)
    picture.height = y + 30
    return picture
