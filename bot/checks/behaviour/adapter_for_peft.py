"""An adapter in the spelling that this PEFT loads, for the reference: the same changes, under today's names.

PEFT leaves out, with a warning or without one, what it does not find under its own names: keys with a wrapper's prefix or
an adapter's name in them, biases as older versions saved them, modules as transformers 4 called them. Pairs on stacked
experts in an older PEFT's order (`sides`) become the pairs of today's order that have the same product.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from bot.checks.expected import lora
from bot.checks.expected.adapter_files import CONFIG, WEIGHTS, Named, names_in, read_key, tensors_of
from bot.checks.expected.changes import LowRank
from bot.checks.expected.expert_sides import Undated, trades_sides
from bot.checks.reading.folders import read_json
from bot.records import Json

FRONT = "base_model.model."
PARTS = {
    "A": "lora_A.weight", "B": "lora_B.weight", "A-bias": "lora_A.bias", "B-bias": "lora_B.bias",
    "embedding-A": "lora_embedding_A", "embedding-B": "lora_embedding_B", "magnitude": "lora_magnitude_vector",
}  # fmt: skip
Rename = Callable[[str], str]  # a module as the adapter names it → as the model does


def adapter_for_peft(adapter: Path, work: Path, modules: Mapping[str, Any], rename: Rename) -> Path:
    """The adapter itself where its spelling is PEFT's own, else a copy of it in `work`. `modules`: the model's, by name."""
    config = read_json(adapter / CONFIG) or {}
    if config.get("peft_type") not in ("LORA", "TRAINABLE_TOKENS"):
        return adapter
    tensors = load_file(adapter / WEIGHTS)
    names = names_in(list(tensors))
    read = {key: named for key in tensors if (named := read_key(key, names)) is not None}
    pairs = {named.module for named in read.values() if named.part in ("A", "B")}
    moved = {module: rename(module) for module in {named.module for named in read.values()}}
    keys = {key: _spelled(named, pairs, moved, config["peft_type"]) for key, named in read.items()}
    idle = _idle(read, tensors, moved, modules)
    exchanged = _exchanged(adapter, config, tensors, modules, rename)
    if all(key in (spelled, None) for key, spelled in keys.items()) and not exchanged and not idle:
        return adapter
    tensors |= exchanged
    copy = work / "adapter"
    copy.mkdir(exist_ok=True)
    renamed = {keys.get(key) or key: tensor.contiguous() for key, tensor in tensors.items() if key not in idle}
    save_file(renamed, copy / WEIGHTS, metadata={"format": "pt"})
    if any(old != new for old, new in moved.items()) and not config.get("target_parameters") and pairs:
        config["target_modules"] = sorted(moved.get(module, module) for module in pairs)
    (copy / CONFIG).write_text(json.dumps(config))
    return copy


def _idle(
    read: Mapping[str, Named], tensors: Mapping[str, Tensor], moved: Mapping[str, str], modules: Mapping[str, Any]
) -> set[str]:
    """The keys of pairs that add nothing, on modules that the model does not have."""
    lost = {module for module, new in moved.items() if new not in modules}
    zero = {named.module for key, named in read.items() if named.part == "B" and not tensors[key].any()}
    return {key for key, named in read.items() if named.part in ("A", "B") and named.module in lost & zero}


def _exchanged(
    adapter: Path, config: Json, tensors: Mapping[str, Tensor], modules: Mapping[str, Any], rename: Rename
) -> dict[str, Tensor]:
    """Today's A and B, by key, for pairs that an older PEFT saved with their sides exchanged."""
    if not config.get("target_parameters"):
        return {}

    def owner(module: str) -> Any:
        return modules.get(rename(module))

    def parameters(module: str) -> dict[str, Any]:
        return dict(owner(module).named_parameters(recurse=False)) if owner(module) is not None else {}

    reading = lora.read(config, tensors_of(adapter), lambda module: tuple(parameters(module)))
    exchanged: dict[str, Tensor] = {}
    for name, several in reading.changes.items():
        for change in several:
            parameter = parameters(change.module).get(name.rpartition(".")[2])
            if isinstance(change, LowRank) and parameter is not None and parameter.dim() == 3 and len(parameter) > 1:
                exchanged |= _in_todays_order(change, parameter, owner(change.module), tensors)
    return exchanged


def _in_todays_order(change: LowRank, parameter: Any, module: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A (E·r × out) and B (in × r·E) with ΔW = Aᵀ·Bᵀ as A (E·r × in) and B (out × r·E) with ΔW = B·A; {} if they are."""
    experts, *size = parameter.shape
    transposed = bool(getattr(module, "is_transposed", False))
    tall, wide = reversed(size) if transposed else size
    try:
        if not trades_sides(change, (tall, wide), transposed):
            return {}
    except Undated:
        return {}
    a, b = tensors[change.a.stored.key], tensors[change.b.stored.key]
    return {
        change.a.stored.key: b.reshape(wide, change.rank, experts).permute(2, 1, 0).reshape(-1, wide),
        change.b.stored.key: a.reshape(experts, change.rank, tall).permute(2, 1, 0).reshape(tall, -1),
    }


def _spelled(named: Named, pairs: set[str], moved: dict[str, str], method: str) -> str | None:
    """The key as PEFT writes it today; None where it is kept as it is."""
    front = FRONT + moved.get(named.module, named.module)
    if named.part in PARTS:
        return f"{front}{'.base_layer' * named.depth}.{PARTS[named.part]}"
    if named.part == "tokens":
        return (
            f"{front}.token_adapter.trainable_tokens_delta" if method == "LORA" else f"{front}.trainable_tokens_delta"
        )
    if named.part == "plain" and named.tail == "bias" and named.module in pairs:
        return f"{front}.base_layer.bias"
    if named.part in ("plain", "saved"):
        return f"{front}.{named.tail}"
    return None
