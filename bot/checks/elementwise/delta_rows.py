"""How large the delta is beside the weights, and how much of it the merge kept: a row for each layer and module."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from bot.records import Json

if TYPE_CHECKING:
    from bot.checks.elementwise.tally import Tally

EXPERT = re.compile(r"(experts)\.\d+(?=\.)")  # each of many, that one row stands for
PARAMETER = re.compile(r"\.weight$")
IN_A_LAYER = re.compile(r"(?P<stack>.*?)\.(?P<layer>\d+)\.(?P<module>.+)")


@dataclass(kw_only=True)
class _Row:
    tensors: int = 0
    kept: float = 0.0
    power: float = 0.0
    size: float = 0.0

    def add(self, tally: Tally) -> None:
        self.tensors += 1
        self.kept += tally.kept
        self.power += tally.power
        self.size += tally.size


def delta_rows(tallies: Iterable[Tally]) -> list[Json]:
    """{layer, module, tensors, relative: ‖D‖ ÷ ‖W‖, retention: <W'−W, D> ÷ <D, D>} of the touched tensors, by layer and module.

    Experts of one layer are one row. `layer`: None outside of the layers; `relative`: None where the base is zero, `retention`
    where the delta is. Tensors of which the base has nothing to compare with, or in another shape, are left out.
    """
    measured = [tally for tally in tallies if tally.wanted.touched and (tally.size > 0 or tally.power > 0)]
    names = _names([tally.key for tally in measured])
    rows: defaultdict[tuple[int | None, str], _Row] = defaultdict(_Row)
    for tally in sorted(measured, key=lambda tally: tally.key):  # sums in one order: the same to the last digit
        rows[names[tally.key]].add(tally)
    order = sorted(rows, key=lambda at: (at[0] is None, at[0] or 0, at[1]))
    return [{"layer": at[0], "module": at[1], **_ratios(rows[at])} for at in order]


def _ratios(row: _Row) -> Json:
    relative = (row.power / row.size) ** 0.5 if row.size > 0 else None
    retention = row.kept / row.power if row.power > 0 else None
    return {"tensors": row.tensors, "relative": _finite(relative), "retention": _finite(retention)}


def _finite(number: float | None) -> float | None:
    return number if number is not None and isfinite(number) else None


def _names(keys: list[str]) -> dict[str, tuple[int | None, str]]:
    """(layer, module) of each key. A module is called by its name in the layer; where there are several stacks of layers
    (an encoder and a decoder), by what tells its stack from the others as well."""
    split = {key: IN_A_LAYER.fullmatch(_module(key)) for key in keys}
    stacks = _short({match["stack"] for match in split.values() if match})
    return {
        key: (None, _module(key)) if match is None else (int(match["layer"]), stacks[match["stack"]] + match["module"])
        for key, match in split.items()
    }


def _module(key: str) -> str:
    return EXPERT.sub(r"\1", PARAMETER.sub("", key))


def _short(stacks: set[str]) -> dict[str, str]:
    """What goes before a module's name, for each stack; "" where there is one stack only."""
    if len(stacks) < 2:
        return dict.fromkeys(stacks, "")
    paths = {stack: stack.split(".") for stack in stacks}
    while len({path[-1] for path in paths.values()}) == 1 and all(len(path) > 1 for path in paths.values()):
        paths = {stack: path[:-1] for stack, path in paths.items()}
    while len({path[0] for path in paths.values()}) == 1 and all(len(path) > 1 for path in paths.values()):
        paths = {stack: path[1:] for stack, path in paths.items()}
    return {stack: ".".join(path) + "." for stack, path in paths.items()}
