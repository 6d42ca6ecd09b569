"""Which weights bitsandbytes would quantise: those of the modules that transformers' quantizer converts, from names alone.

transformers converts every Linear and Conv1D but the output head, what is tied to the embedding, and the last module; or,
where modules to skip are named, all but those; and never what the model keeps in float32 (quantizers/base.py,
integrations/bitsandbytes.py). linears.json (made by tools/make_linears.py) lists, for each class of the pinned transformers,
the matrices that are no Linear. An architecture that is not in it is refused; nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from bot.checkpoint.conversions import Route
from bot.checkpoint.families import ModelFamily, SubModel, family_of, parts_of
from bot.records import Json
from bot.untrusted.patterns import first

NUMBERS = re.compile(r"\d+")
BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"  # as in transformers' should_convert_module


@dataclass(frozen=True, kw_only=True)
class Linears:
    """`keys`: checkpoint key → whether it is a Conv1D's weight, stored in × out. `modules`: whose weights those are, in
    transformers' names. `kept`: modules that could be converted and are not. `mixed`: keys that are several Linear layers
    after loading, or a part of one, and those; bitsandbytes quantises them apart. `known`: whether the architecture is."""

    keys: dict[str, bool]
    modules: dict[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    mixed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    known: bool = True

    def left(self, quantised: Iterable[str]) -> tuple[str, ...]:
        """The modules that a reader must not look for quantised weights in, where only these keys are."""
        done = set(quantised)
        others = [module for key, module in self.modules.items() if key not in done]
        mixed = [module for modules in self.mixed.values() for module in modules]
        return tuple(sorted({*self.kept, *others, *mixed}))


@cache
def table() -> Json:
    """linears.json: rows, and by class, which of them."""
    content: Json = json.loads(files("bot.formats.bitsandbytes").joinpath("linears.json").read_text())
    return content


def find(shapes: Mapping[str, tuple[int, ...]], config: Json, skip: Iterable[str] | None = None) -> Linears:
    """What would be converted of a checkpoint. `skip`: llm_int8_skip_modules; None: transformers' own choice."""
    parts = parts_of(config)
    rows = [(part.path, _row(part.name)) for part in parts]
    if not rows or rows[0][1] is None:
        return Linears(keys={}, known=False)
    root = rows[0][1]
    other = {f"{path}.{suffix}" if path else suffix for path, row in rows for suffix in (row or {}).get("other", ())}
    family = family_of(config)
    routes = {key: family.conversions.route(key) for key in sorted(shapes)}  # some conversions depend on the order
    bare = _is_bare(family, parts, routes)
    patterns = [*root.get("fp32", ()), *(skip or ())]
    chosen: dict[str, str] = {}  # key → its module
    mixed: dict[str, tuple[str, ...]] = {}
    for key, shape in shapes.items():
        module = routes[key].targets[0].removesuffix(".weight")
        if len(shape) != 2 or not routes[key].targets[0].endswith(".weight") or _is_other(module, other, family):
            continue
        if routes[key].converter is None:
            chosen[key] = f"{family.prefix}.{module}" if bare and f"{module}.weight" != family.head else module
        else:
            mixed[key] = tuple(suffix.removesuffix(".weight") for suffix in routes[key].targets)
    kept = {name for name in chosen.values() if not _is_converted(name, patterns)}
    if skip is None:
        kept |= _by_default(chosen.values(), root, family)
    modules = {key: name for key, name in chosen.items() if name not in kept}
    keys = {key: family.is_conv1d(f"{name}.weight") for key, name in modules.items()}
    return Linears(keys=keys, modules=modules, kept=tuple(sorted(kept)), mixed=mixed)


def _by_default(modules: Iterable[str], root: Json, family: ModelFamily) -> set[str]:
    """What transformers chooses to leave alone: the head, what is tied, and the last module."""
    state = root.get("tied" if family.tied else "untied", {})
    whole, some = {*root.get("kept", ()), *state.get("kept", ())}, state.get("last", ())
    skipped = {family.head.removesuffix(".weight")} if family.head else set()
    last: dict[str, str] = {}
    for module in modules:
        spelled = family.spellings(module)
        if any(spelling in whole for spelling in spelled):
            skipped.add(module)
        for path in (spelling for spelling in spelled if spelling in some):
            last[path] = max(last.get(path, module), module, key=lambda name: [int(n) for n in NUMBERS.findall(name)])
    return skipped | set(last.values())


def _row(name: str) -> Json | None:
    at = table()["classes"].get(name)
    row: Json | None = None if at is None else table()["rows"][at]
    return row


def _is_bare(family: ModelFamily, parts: Iterable[SubModel], routes: Mapping[str, Route]) -> bool:
    """Whether the checkpoint leaves the base model's prefix out, which transformers puts on as it loads."""
    named = any(route.targets[0].startswith(f"{family.prefix}.") for route in routes.values())
    return not named and any(part.path and part.path == family.prefix for part in parts)


def _is_other(module: str, other: set[str], family: ModelFamily) -> bool:
    """Whether a matrix is no Linear's: an embedding, a router, a part of stacked experts."""
    parent = module.rpartition(".")[0]
    stacked = family.stack(module) is not None or family.stack(parent) is not None
    return stacked or any(spelling in other for spelling in family.spellings(module))


def _is_converted(module: str, patterns: Sequence[str]) -> bool:
    return not (any(map(module.endswith, patterns)) or first(patterns, module, f"(?:{{}}){BOUNDARY}"))
