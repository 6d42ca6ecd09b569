"""A number for each layer and module, in steps from light to dark."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from bot.records import Json
from bot.report_document import Document
from bot.report_page.numbers import number, percentage, short, whole

STEPS = 8
MOST_LAYERS, MOST_MODULES = 512, 60  # of a picture that somebody looks at
WIDE_RANGE = 40.0  # largest ÷ smallest, from which on equal steps would show the largest only
LOST = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # |1 − retention|, where its steps begin


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How a number becomes a step and a text. `bounds`: where each step but the first begins, of what `measure` makes of a
    value; `ends`: the same as text."""

    bounds: tuple[float, ...]
    ends: tuple[str, ...]
    unit: str
    text: Callable[[float], str]
    measure: Callable[[float], float] = float

    def step(self, value: float) -> int:
        """0 (lightest) to STEPS − 1 (darkest)."""
        return bisect_right(self.bounds, self.measure(value))

    def words(self, value: float) -> str:
        """The value with its unit."""
        return f"{self.text(value)} {self.unit}".rstrip()


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """`values`: by (layer, module); `outside`: of modules that are in no layer. `left_out`: modules and layers beyond those that
    a picture can show."""

    title: str
    scale: Scale
    layers: list[int]
    modules: list[str]
    values: dict[tuple[int, str], float]
    outside: dict[str, float] = field(default_factory=dict)
    left_out: int = 0

    def of_module(self, module: str) -> float:
        """The median over the layers."""
        return median(value for (_, own), value in self.values.items() if own == module)


def relative_map(document: Document) -> HeatMap | None:
    """‖D‖ ÷ ‖W‖; None where the report has none."""
    values = _values(document.delta, "relative")
    if not values:
        return None
    bounds = _bounds([*values.values()])
    scale = Scale(
        bounds=bounds,
        ends=tuple(percentage(bound, 2) for bound in bounds),
        unit="%",
        text=lambda value: percentage(value, 2),
    )
    return _map("Size of the delta, as a share of the weight", values, scale)


def retention_map(document: Document) -> HeatMap | None:
    """<W'−W, D> ÷ <D, D>: darker the further it is from 1. None where the report has none."""
    values = _values(document.delta, "retention")
    if not values:
        return None
    scale = Scale(
        bounds=LOST,
        ends=tuple(f"±{bound:g}" for bound in LOST),
        unit="×",
        text=lambda value: f"{value:.3f}" if abs(value) < 10 else short(value),
        measure=lambda value: abs(1 - value),
    )
    return _map("How much of the delta the stored weights kept", values, scale)


def _values(rows: list[Json], name: str) -> dict[tuple[int | None, str], float]:
    values = {}
    for row in rows:
        layer, module, value = row.get("layer"), row.get("module"), number(row.get(name))
        if value is not None and isinstance(module, str) and (layer is None or whole(layer) is not None):
            values[layer, module] = value
    return values


def _map(title: str, values: dict[tuple[int | None, str], float], scale: Scale) -> HeatMap:
    """With the first layers and modules, as many as a picture can show; layers between them that have no value are empty."""
    inside = {(layer, module): value for (layer, module), value in values.items() if layer is not None}
    outside = {module: value for (layer, module), value in values.items() if layer is None}
    layers = sorted({layer for layer, _ in inside})
    modules = list(dict.fromkeys(module for _, module in inside))
    if layers and layers[-1] - layers[0] < 2 * len(layers):
        layers = list(range(layers[0], layers[-1] + 1))
    left_out = sum(max(0, len(names) - most) for names, most in (
        (layers, MOST_LAYERS), (modules, MOST_MODULES), (outside, MOST_MODULES)))  # fmt: skip
    layers, modules = layers[:MOST_LAYERS], modules[:MOST_MODULES]
    shown = {
        (layer, module): inside[layer, module] for layer in layers for module in modules if (layer, module) in inside
    }
    few = dict(list(outside.items())[:MOST_MODULES])
    return HeatMap(
        title=title, scale=scale, layers=layers, modules=[m for m in modules if any((layer, m) in shown for layer in layers)],
        values=shown, outside=few, left_out=left_out,
    )  # fmt: skip


def _bounds(values: list[float]) -> tuple[float, ...]:
    """Where the steps begin: equally far apart from zero to the largest, or, where most values would be in the first then, each
    as many times larger than the one before."""
    largest = max(map(abs, values))
    smallest = min((abs(value) for value in values if value), default=largest)
    if smallest > 0 and largest / smallest > WIDE_RANGE:
        factor = (largest / smallest) ** (1 / STEPS)
        return tuple(smallest * factor**step for step in range(1, STEPS))
    return tuple(largest * step / STEPS for step in range(1, STEPS))
