"""Checkpoints to measure on: real models' shapes, random weights, an r=16 all-linear LoRA with a delta of a few percent."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What `AutoConfig.for_model` is called with."""

    model_type: str
    config: dict[str, Any]


SHAPES = {
    "toy": Shape(
        model_type="llama",
        config={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 256, "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-0.5b": Shape(
        model_type="qwen2",
        config={
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "rope_theta": 1e6,
        },
    ),
    "llama-3.2-3b": Shape(
        model_type="llama",
        config={
            "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True,
        },
    ),
    "llama-70b-1-layer": Shape(
        model_type="llama",
        config={
            "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 1, "num_attention_heads": 64,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip


def make(name: str, folder: Path) -> tuple[Path, Path]:
    """(base, adapter) folders of a shape, made once and kept.

    Made in a process of its own: a child's peak memory (wait4) is never below what its parent held at the fork.
    """
    base, adapter = folder / name, folder / f"{name}-lora"
    if not (adapter / "adapter_config.json").exists():
        builder = Path(__file__).with_name("build_shape.py")
        subprocess.run([sys.executable, str(builder), name, str(base), str(adapter)], check=True)
    return base, adapter
