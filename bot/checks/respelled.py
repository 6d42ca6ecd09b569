"""An adapter in the spelling that this PEFT loads, for the reference: the same tensors, under today's names.

PEFT leaves out, with a warning or without one, what it does not find under its own names: keys with a wrapper's prefix or
an adapter's name in them, biases as older versions saved them, modules as transformers 4 called them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

from safetensors.torch import load_file, save_file

from bot.checks.case import read_json
from bot.checks.keys import Named, names_in, read_key

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FRONT = "base_model.model."
PARTS = {
    "A": "lora_A.weight", "B": "lora_B.weight", "A-bias": "lora_A.bias", "B-bias": "lora_B.bias",
    "embedding-A": "lora_embedding_A", "embedding-B": "lora_embedding_B", "magnitude": "lora_magnitude_vector",
}  # fmt: skip
Rename = Callable[[str], str]  # a module as the adapter names it → as the model does


def respelled(adapter: Path, work: Path, modules: Collection[str], rename: Rename) -> Path:
    """The adapter itself where its spelling is PEFT's own, else a copy of it in `work`. `modules`: the model's."""
    config = read_json(adapter / CONFIG) or {}
    if config.get("peft_type") not in ("LORA", "TRAINABLE_TOKENS"):
        return adapter
    tensors = load_file(adapter / WEIGHTS)
    names = names_in(list(tensors))
    read = {key: named for key in tensors if (named := read_key(key, names)) is not None}
    pairs = {named.module for named in read.values() if named.part in ("A", "B")}
    moved = {module: rename(module) for module in {named.module for named in read.values()} if module not in modules}
    keys = {key: _spelled(named, pairs, moved, config["peft_type"]) for key, named in read.items()}
    if all(key in (spelled, None) for key, spelled in keys.items()):
        return adapter
    copy = work / "adapter"
    copy.mkdir(exist_ok=True)
    renamed = {keys.get(key) or key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(renamed, copy / WEIGHTS, metadata={"format": "pt"})
    if any(old != new for old, new in moved.items()) and not config.get("target_parameters") and pairs:
        config["target_modules"] = sorted(moved.get(module, module) for module in pairs)
    (copy / CONFIG).write_text(json.dumps(config))
    return copy


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
