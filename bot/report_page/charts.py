"""Distances on a logarithmic axis: of each prompt, and of each module as the models run through it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10
from typing import Literal

from bot.records import Json
from bot.report_page.layout import LETTER, cut
from bot.report_page.numbers import number, short, whole

MOST_PROMPTS, MOST_MODULES = 64, 1024
LINE, TICKS = 24.0, 8
HEIGHT = 220.0
FEW = 80  # modules, up to which each has a mark
NUMBERED = re.compile(r"(.*\.)?(\d+)")
Shape = Literal["control", "merged", "adapter"]
SHAPES: tuple[Shape, ...] = ("control", "merged")  # of the probe; what is drawn last lies on top


@dataclass(frozen=True, kw_only=True)
class LogAxis:
    """A logarithmic axis over whole powers of ten, from `begin` to `end` in pixels. Zero, which is nowhere on such an axis, stands at
    `begin`, a tenth of it before the smallest power (`zero`: there is one)."""

    low: int
    high: int
    begin: float
    end: float
    zero: bool = False

    @classmethod
    def of(cls, values: Iterable[float], begin: float, end: float) -> LogAxis:
        """One that has room for all of the values."""
        values = list(values)
        positive = [value for value in values if value > 0]
        low = floor(log10(min(positive))) if positive else -1
        high = ceil(log10(max(positive))) if positive else 0
        return cls(low=low, high=max(high, low + 1), begin=begin, end=end, zero=len(positive) < len(values))

    def at(self, value: float) -> float:
        """Where a value lies, in pixels."""
        first = self.begin + (0.1 if self.zero else 0.0) * (self.end - self.begin)
        if value <= 0:
            return self.begin
        return first + (log10(value) - self.low) / (self.high - self.low) * (self.end - first)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(pixels, text) of some powers of ten, and of zero."""
        every = ceil((self.high - self.low) / TICKS)
        powers = [(self.at(10.0**power), f"1e{power}") for power in range(self.low, self.high + 1, every)]
        return [*([(self.begin, "0")] if self.zero else []), *powers]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A value: a hollow circle for a control, a full square for the merge, a triangle for the adapter."""

    x: float
    y: float
    shape: Shape
    title: str


@dataclass(kw_only=True)
class Chart:
    """`lines`: (x1, y1, x2, y2) of the grid; `curves`: points as SVG has them, by shape; `texts`: (x, y, text, anchor)."""

    title: str
    width: float
    height: float = 0.0
    lines: list[tuple[float, float, float, float]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    curves: dict[Shape, str] = field(default_factory=dict)
    texts: list[tuple[float, float, str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Distances of one prompt from the unmerged model. `adapter`: the base's; None where that was not given this prompt."""

    tokens: int
    adapter: float | None
    control: float
    merged: float

    @property
    def distances(self) -> list[float]:
        """Those that were measured."""
        return [value for value in (self.adapter, self.control, self.merged) if value is not None]

    @property
    def k(self) -> float | None:
        """The merge's distance in those of a control; None where a control has none."""
        return self.merged / self.control if self.control > 0 else None


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Distances of one module's output from the unmerged model's; None where they are not finite."""

    module: str
    control: float | None
    merged: float | None

    @property
    def times(self) -> float | None:
        """The merge's distance in those of a control; None where there is none."""
        return self.merged / self.control if self.control and self.merged is not None else None


def prompts_of(rows: Sequence[Json]) -> list[Prompt]:
    """Those of the report's rows that are what they should be."""
    prompts = []
    for row in rows:
        tokens = whole(row.get("tokens"))
        adapter, control, merged = (_distance(row.get(name)) for name in ("adapter", "control", "merged"))
        if tokens is not None and control is not None and merged is not None:
            prompts.append(Prompt(tokens=tokens, adapter=adapter, control=control, merged=merged))
    return prompts


def probed_of(rows: Sequence[Json]) -> list[Probed]:
    """Those of the report's rows that are what they should be."""
    probed = []
    for row in rows:
        if isinstance(module := row.get("module"), str):
            control, merged = _distance(row.get("control")), _distance(row.get("merged"))
            probed.append(Probed(module=module, control=control, merged=merged))
    return probed


def prompt_chart(prompts: Sequence[Prompt], width: float) -> Chart:
    """A line for each prompt, with its three distances."""
    shown = prompts[:MOST_PROMPTS]
    chart = Chart(title="Distance from the unmerged model, by prompt", width=width)
    axis = LogAxis.of((value for each in shown for value in each.distances), 92, width - 70)
    bottom = 8 + LINE * len(shown)
    _rules(chart, [(x, 4, x, bottom) for x, _ in axis.ticks])
    for at, each in enumerate(shown):
        y = 8 + (at + 0.5) * LINE
        ends = sorted(axis.at(value) for value in each.distances)
        chart.lines.append((ends[0], y, ends[-1], y))
        for shape in ("adapter", *SHAPES):
            value = getattr(each, shape)
            if value is None:
                continue
            chart.marks.append(
                Mark(x=axis.at(value), y=y, shape=shape, title=f"prompt {at + 1}, {shape}: {short(value)}")
            )
        chart.texts.append((84, y + 4, f"{at + 1} · {each.tokens} tokens", "end"))
        chart.texts.append((width - 58, y + 4, "–" if each.k is None else f"K {short(each.k)}", "start"))
    chart.texts += [(x, bottom + 14, text, "middle") for x, text in axis.ticks]
    chart.height = bottom + 20
    return chart


def probe_chart(probed: Sequence[Probed], width: float) -> Chart:
    """Two curves over the modules in their order."""
    shown = probed[:MOST_MODULES]
    chart = Chart(title="Distance from the unmerged model, module by module", width=width)
    left, bottom = 44.0, 10 + HEIGHT
    values = [value for each in shown for value in (each.control, each.merged) if value is not None]
    axis = LogAxis.of(values, bottom, 10)
    step = (width - left - 14) / max(1, len(shown))
    _rules(chart, [(left, y, width - 8, y) for y, _ in axis.ticks])
    chart.texts += [(left - 6, y + 4, text, "end") for y, text in axis.ticks]
    for shape in SHAPES:
        points = [(left + 8 + (at + 0.5) * step, value, each) for at, each in enumerate(shown)
                  if (value := getattr(each, shape)) is not None]  # fmt: skip
        chart.curves[shape] = " ".join(f"{x:.1f},{axis.at(value):.1f}" for x, value, _ in points)
        chart.marks += [
            Mark(x=x, y=axis.at(value), shape=shape, title=f"{each.module}, {shape}: {short(value)}")
            for x, value, each in (points if len(points) <= FEW or shape == "merged" else ())
        ]
    free = 0.0
    for at, each in enumerate(shown):
        name, x = _label(each.module), left + 8 + (at + 0.5) * step
        half = LETTER * len(name) / 2
        if x - half >= free and x + half <= width:
            chart.texts.append((x, bottom + 16, name, "middle"))
            free = x + half + 6
    chart.height = bottom + 24
    return chart


def _rules(chart: Chart, lines: Iterable[tuple[float, float, float, float]]) -> None:
    chart.lines += lines


def _label(module: str) -> str:
    """A layer by its number, any other module by the end of its name."""
    numbered = NUMBERED.fullmatch(module)
    return numbered[2] if numbered else cut(module.rpartition(".")[2])


def _distance(value: object) -> float | None:
    """A number that is not negative."""
    distance = number(value)
    return distance if distance is not None and distance >= 0 else None
