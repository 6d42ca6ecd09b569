"""The combined adapter before it exists: its modules, ranks, header and config, all from the adapters' headers and configs.

It is a plain LoRA in float64 whose scaling is 1 everywhere, so that it means the same to everybody who reads it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bot.adapters.combine.adapter_input import AdapterInput, Kind
from bot.adapters.combine.notation import words
from bot.checkpoint.header import byte_size, parse_header, write_header
from bot.records import Combination, Header, Json, Refusal, Stored

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
HALVES: dict[Kind, tuple[str, str]] = {
    "weight": ("lora_A.weight", "lora_B.weight"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
}
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One module of the combined adapter. `a` and `b` are the shapes of its matrices."""

    module: str
    kind: Kind
    rank: int
    a: tuple[int, ...]
    b: tuple[int, ...]

    @property
    def keys(self) -> tuple[str, str]:
        first, second = HALVES[self.kind]
        return f"base_model.model.{self.module}.{first}", f"base_model.model.{self.module}.{second}"


@dataclass(frozen=True, kw_only=True)
class SavedCopy:
    """A weight of the base that PEFT saved with adapters. `owners`: which of them (their bytes must be the same)."""

    key: str
    module: str
    owners: tuple[int, ...]
    stored: Stored  # the first owner's


@dataclass(frozen=True, kw_only=True)
class Outline:
    """Everything but the numbers."""

    slots: tuple[Slot, ...]
    saved_copies: tuple[SavedCopy, ...]
    header: Header
    config: Json


def outline(inputs: Sequence[AdapterInput], how: Combination) -> tuple[Outline, list[Refusal]]:
    """The combined adapter's outline, and what the adapters contradict each other in."""
    refusals: list[Refusal] = []
    modules = sorted({module for adapter in inputs for module in adapter.pairs})
    unlike = [module for module in modules if len({(adapter.pairs[module].kind, *adapter.pairs[module].outer)
                                                   for adapter in inputs if module in adapter.pairs}) > 1]  # fmt: skip
    if unlike:
        refusals.append(_unlike(unlike))
    slots = tuple(_slot(module, inputs, how) for module in modules if module not in unlike)
    saved_copies, clashes = _saved_copies(inputs, {slot.module for slot in slots})
    if clashes:
        refusals.append(_clashing(clashes))
    if len({adapter.ties for adapter in inputs} - {None}) > 1:
        refusals.append(_mixed_tying())
    entries = [(copy.key, copy.stored.dtype, copy.stored.shape) for copy in saved_copies]
    entries += [(key, "F64", shape) for slot in slots for key, shape in zip(slot.keys, (slot.a, slot.b), strict=True)]
    raw = write_header(entries, {"format": "pt"})
    size = len(raw) + sum(byte_size(dtype, shape) for _, dtype, shape in entries)
    header = parse_header(raw, file=WEIGHTS, file_size=size, role="adapter")
    return Outline(slots=slots, saved_copies=saved_copies, header=header, config=_config(inputs, slots)), refusals


def _slot(module: str, inputs: Sequence[AdapterInput], how: Combination) -> Slot:
    pairs = [adapter.pairs[module] for adapter in inputs if module in adapter.pairs]
    (into, out), kind = pairs[0].outer, pairs[0].kind
    match how.kind:
        case "cat":
            rank = sum(pair.rank for pair in pairs)
        case "svd":
            # No module has more than the sum of its ranks, or than its smaller side, to give.
            most = how.rank or max(pair.rank for adapter in inputs for pair in adapter.pairs.values())
            rank = min(most, sum(pair.rank for pair in pairs), math.prod(into), out[0])
        case _:
            rank = max(pair.rank for pair in pairs)
    return Slot(module=module, kind=kind, rank=rank, a=(rank, *into), b=(out[0], rank, *out[1:]))


def _saved_copies(inputs: Sequence[AdapterInput], changed: set[str]) -> tuple[tuple[SavedCopy, ...], list[str]]:
    """The base's weights that adapters hold, and the modules for which these cannot be the same weight."""
    saved_copies, clashes = [], []
    for module in sorted({module for adapter in inputs for module in adapter.copies}):
        owners = [owner for owner in inputs if module in owner.copies]
        copies = [owner.copies[module] for owner in owners]
        if len({(copy.dtype, copy.shape) for copy in copies}) > 1:
            clashes.append(module)
            continue
        middle = ".base_layer" if module in changed else ""  # where PEFT looks for it
        key = f"base_model.model.{module}{middle}.weight"
        indices = tuple(owner.index for owner in owners)
        saved_copies.append(SavedCopy(key=key, module=module, owners=indices, stored=copies[0]))
    return tuple(saved_copies), clashes


# --- the config ---------------------------------------------------------------------------------------------------


def _config(inputs: Sequence[AdapterInput], slots: Sequence[Slot]) -> Json:
    """adapter_config.json. alpha = r for every module, by one pattern for each rank that is not the commonest."""
    by_rank: dict[int, list[str]] = {}
    for slot in slots:
        by_rank.setdefault(slot.rank, []).append(slot.module)
    common = Counter(slot.rank for slot in slots).most_common(1)[0][0] if slots else 1
    # Anchored and escaped, so that it matches these modules only; one alternation, since each pattern is compiled.
    patterns = {f"^(?:{'|'.join(map(re.escape, names))})": rank for rank, names in by_rank.items() if rank != common}
    first = inputs[0].config
    return {
        "auto_mapping": next((mapping for adapter in inputs if (mapping := adapter.config.get("auto_mapping"))), None),
        "base_model_name_or_path": first.get("base_model_name_or_path"),
        "bias": "none",
        "ensure_weight_tying": any(adapter.ties for adapter in inputs),
        "fan_in_fan_out": any(adapter.config.get("fan_in_fan_out") for adapter in inputs),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": common,
        "alpha_pattern": patterns,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": common,
        "rank_pattern": patterns,
        "revision": first.get("revision"),
        "target_modules": _targets(inputs, slots),
        "task_type": next((task for adapter in inputs if (task := adapter.config.get("task_type"))), None),
        "use_rslora": False,
    }


def _targets(inputs: Sequence[AdapterInput], slots: Sequence[Slot]) -> list[str]:
    """The adapters' lists together, where they mean exactly these modules; else every module by its whole name.

    Short names are kept where they can be, because they also fit where a newer transformers has moved the modules.
    """
    lists = [adapter.config.get("target_modules") for adapter in inputs]
    limits = ("layers_to_transform", "exclude_modules")
    narrowed = any(adapter.config.get(name) for adapter in inputs for name in limits)
    if all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        union = sorted({name for names in lists for name in names or ()})
        ends = tuple(f".{name}" for name in union)
        if not narrowed and all(f".{slot.module}".endswith(ends) for slot in slots):
            return union
    return [slot.module for slot in slots]


def config_bytes(config: Json) -> bytes:
    """adapter_config.json as it is written."""
    return (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


# --- notes and refusals -------------------------------------------------------------------------------------------


def notes(inputs: Sequence[AdapterInput], how: Combination) -> list[str]:
    """What a reader of the plan should know of the combination."""
    rounded = "; the sum is rounded once, into the base" if how.kind == "cat" else ""
    lines = [f"combined: {words(how)}{rounded}."]
    bases = dict.fromkeys(str(adapter.config.get("base_model_name_or_path")) for adapter in inputs)
    if len(bases) > 1:
        lines.append(f"The adapters' configs name different bases: {', '.join(bases)}.")
    everywhere = set.intersection(*(set(adapter.pairs) for adapter in inputs))
    some = len({module for adapter in inputs for module in adapter.pairs}) - len(everywhere)
    if some:
        lines.append(f"{some} modules are changed by some of the adapters only.")
    return lines


def _unlike(modules: Sequence[str]) -> Refusal:
    reason = f"The adapters do not belong to one base: they give {len(modules)} modules other shapes, {_few(modules)}."
    return Refusal(code="unlike-shapes", reason=reason, remedy="Combine adapters of the same base only.")


def _clashing(modules: Sequence[str]) -> Refusal:
    reason = f"The adapters bring different weights of their own for {_few(modules)}."
    remedy = "Save them without their embeddings (PEFT: save_embedding_layers=False), or merge them apart."
    return Refusal(code="unlike-copies", reason=reason, remedy=remedy)


def _mixed_tying() -> Refusal:
    reason = "Some of the adapters change the embedding with its tied head (ensure_weight_tying), and some without."
    return Refusal(code="mixed-tying", reason=reason, remedy="Merge them one after the other.")


def _few(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"e.g. {', '.join(names[:SHOWN])}{more}"
