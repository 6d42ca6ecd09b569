"""Tensors as a person would list them: `q_proj and v_proj in layers 0–3`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NUMBERED = re.compile(r"(?:^|.*?\.)(?:[a-z_]+)\.(\d+)\.(.+)")
GROUPS_NAMED = 4
EXPERT = re.compile(r"experts\.\d+\.")


def split(key: str) -> tuple[int | None, str]:
    """(layer, module in it) of a key; no layer where it has none."""
    plain = key.removesuffix(".weight")
    match = NUMBERED.fullmatch(plain)
    return (int(match[1]), match[2]) if match else (None, plain)


def row_in_words(row: int, shape: Sequence[int], view: tuple[int, int]) -> str:
    """A row of the view; of a stack of experts, which row of which."""
    if len(shape) > 2 and view[0] == shape[0] * shape[1]:
        return f"row {row % shape[1]} of expert {row // shape[1]}"
    return f"row {row}" if len(shape) < 3 or view[0] != shape[0] else f"expert {row}"


def rows_in_words(rows: Sequence[int], shape: Sequence[int], view: tuple[int, int], most: int) -> str:
    """Several of them, as many as are worth reading."""
    if len(shape) > 2 or len(rows) == 1:
        words = [row_in_words(row, shape, view) for row in rows[:most]]
    else:
        words = [", ".join(map(str, rows[:most]))]
        words[0] = f"rows {words[0]}"
    return ", ".join([*words, "…"] if len(rows) > most else words)


def listed(keys: Iterable[str]) -> str:
    """The keys, those of one module in several layers together."""
    layers: dict[str, set[int]] = {}
    for key in keys:
        layer, module = split(key)
        layers.setdefault(EXPERT.sub("experts.*.", module), set()).update(() if layer is None else {layer})
    modules: dict[tuple[int, ...], list[str]] = {}
    for module, numbers in layers.items():
        modules.setdefault(tuple(sorted(numbers)), []).append(module)
    groups = [
        in_words(_shortened(names)) + (f" in {_layers(numbers)}" if numbers else "")
        for numbers, names in modules.items()
    ]
    if len(groups) > GROUPS_NAMED:
        groups = [*groups[:GROUPS_NAMED], f"{len(groups) - GROUPS_NAMED} more groups"]
    return "; ".join(groups)


def in_words(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _shortened(names: list[str]) -> list[str]:
    return names if len(names) <= TENSORS_LISTED else [*names[:TENSORS_LISTED], f"{len(names) - TENSORS_LISTED} more"]


TENSORS_LISTED = 8


def _layers(numbers: Sequence[int]) -> str:
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    words = [
        str(low) if low == high else f"{low}–{high}" if high > low + 1 else f"{low} and {high}" for low, high in spans
    ]
    return ("layer " if len(numbers) == 1 else "layers ") + ", ".join(words)
