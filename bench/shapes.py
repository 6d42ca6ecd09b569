"""Checkpoints to measure on: real models' shapes, random weights, an r=16 all-linear LoRA with a delta of a few percent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's config, and how many shards it is saved in."""

    model_type: str
    config: dict[str, Any]
    shard_size: str


SHAPES = {
    "qwen2.5-0.5b": Shape(
        model_type="qwen2",
        shard_size="5GB",
        config={
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "rope_theta": 1e6,
        },
    ),
    "llama-3.2-3b": Shape(
        model_type="llama",
        shard_size="5GB",
        config={
            "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True,
        },
    ),
}  # fmt: skip


def make(name: str, folder: Path) -> tuple[Path, Path]:
    """(base, adapter) folders of a shape, made once and kept."""
    base, adapter = folder / name, folder / f"{name}-lora"
    if not (adapter / "adapter_model.safetensors").exists():
        _build(SHAPES[name], base, adapter)
    return base, adapter


def _build(shape: Shape, base: Path, adapter: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.model_type, **shape.config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(base, max_shard_size=shape.shard_size)
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    adapted.save_pretrained(adapter)
