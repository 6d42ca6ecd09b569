"""Which base key a module's weight has. First by the names alone; where they do not decide, by asking transformers.

A checkpoint may carry a prefix that the model has not (`language_model.model.…`) or lack one that it has (gpt2's
`h.0.…` for `transformer.h.0.…`). One prefix, added or dropped, must then explain every module of the adapter at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

WEIGHT = ".weight"
Shift = tuple[str, str]  # (what the checkpoint has in front, what the module has in front)


def by_names(modules: Collection[str], keys: Iterable[str]) -> dict[str, str] | None:
    """{module: key} when exactly one shift explains all modules, else None. No shift at all is preferred."""
    stems = {key.removesuffix(WEIGHT) for key in keys if key.endswith(WEIGHT)}
    if all(module in stems for module in modules):
        return {module: module + WEIGHT for module in modules}
    tails = _tails(stems, {module.rsplit(".", 1)[-1] for module in modules})
    common: set[Shift] | None = None
    for module in modules:
        shifts = _shifts(module, stems, tails)
        common = shifts if common is None else common & shifts
        if not common:
            return None
    if common is None or len(common) != 1:
        return None
    (shift,) = common
    return {module: _shifted(module, shift) + WEIGHT for module in modules}


def _tails(stems: Iterable[str], last_parts: set[str]) -> dict[str, list[str]]:
    """Every dotted tail of every stem that could be one of the modules → what stands before it."""
    tails: dict[str, list[str]] = {}
    for stem in stems:
        parts = stem.split(".")
        if parts[-1] not in last_parts:
            continue
        for cut in range(1, len(parts)):
            tails.setdefault(".".join(parts[cut:]), []).append(".".join(parts[:cut]) + ".")
    return tails


def _shifts(module: str, stems: set[str], tails: dict[str, list[str]]) -> set[Shift]:
    shifts: set[Shift] = {(front, "") for front in tails.get(module, ())}
    parts = module.split(".")
    for cut in range(len(parts)):
        if ".".join(parts[cut:]) in stems:
            shifts.add(("", ".".join(parts[:cut]) + "." if cut else ""))
    return shifts


def _shifted(module: str, shift: Shift) -> str:
    added, dropped = shift
    return added + module.removeprefix(dropped)
