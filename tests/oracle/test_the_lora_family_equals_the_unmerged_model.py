"""Every member of the LoRA family on the architectures that have what it changes, against PEFT's unmerged model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.factory import save_adapter, save_base
from tests.oracle.unmerged import assert_same_answers
from tests.steps import merge_folders

LINEAR = ["q_proj", "v_proj", "c_attn", "query", "dense", "fc1"]
# What is trained, and on which architectures.
WAYS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "DoRA": ({"use_dora": True}, ["llama", "gpt2", "bert", "vit", "whisper"]),
    "DoRA with rsLoRA": ({"use_dora": True, "use_rslora": True, "r": 8}, ["qwen2", "gpt2"]),
    "DoRA on an embedding": ({"use_dora": True, "target_modules": ["embed_tokens", "wte"]}, ["llama", "gpt2"]),
    "LoRA on an embedding": ({"target_modules": ["embed_tokens", "wte", "q_proj"]}, ["llama", "qwen2", "gpt2", "opt"]),
    "LoRA on the head": ({"target_modules": ["lm_head", "q_proj", "c_attn"]}, ["llama", "qwen2", "gpt2"]),
    "LoRA on both, tied by PEFT": ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, ["qwen2", "gemma"]),
    "LoRA on both": ({"target_modules": ["embed_tokens", "lm_head"]}, ["llama", "qwen2"]),
    "LoRA on Conv1d": ({"target_modules": r".*conv_layers\.\d\.conv"}, ["wav2vec2"]),
    "DoRA on Conv1d": ({"target_modules": r".*conv_layers\.\d\.conv", "use_dora": True}, ["wav2vec2"]),
    "LoRA on Conv2d": ({"target_modules": ["projection"]}, ["vit", "dinov2"]),
    "DoRA on Conv2d": ({"target_modules": ["projection"], "use_dora": True}, ["vit"]),
    "all biases": ({"bias": "all", "target_modules": LINEAR}, ["gpt2", "bert", "opt", "qwen2"]),
    "biases of LoRA layers": ({"bias": "lora_only", "target_modules": LINEAR}, ["gpt2", "bert", "qwen2"]),
    "LoRA biases": ({"lora_bias": True, "target_modules": ["c_attn", "dense", "q_proj", "k_proj"]}, ["gpt2", "bert", "opt"]),
    "LoRA biases and all biases": ({"lora_bias": True, "bias": "all", "target_modules": ["c_attn", "query"]}, ["gpt2"]),
    "whole modules": ({"modules_to_save": ["norm", "ln_f", "down_proj"], "target_modules": LINEAR}, ["llama", "gpt2"]),
    "whole head": ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, ["llama", "qwen2"]),
    "whole embedding": ({"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]}, ["llama", "qwen2"]),
    "whole embedding and head": (
        {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ["q_proj"]},
        ["llama", "qwen2"],
    ),
    "trained tokens": ({"trainable_token_indices": [5, 9, 3], "target_modules": LINEAR}, ["llama", "qwen2", "gpt2"]),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 2], [0, 1]], "target_modules": ["q_proj"]}, ["llama", "mistral"]),
    "bare parameters of experts": (
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "olmoe"],
    ),
    "one bare parameter of experts": (
        {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]},
        ["mixtral", "qwen2_moe"],
    ),
    "routers": ({"target_modules": ["q_proj"], "target_parameters": ["gate.weight"]}, ["mixtral", "qwen3_moe"]),
}  # fmt: skip
CASES = [(way, name) for way, (_, names) in WAYS.items() for name in names]


def trained(base: Path, name: str, folder: Path, **settings: Any) -> Path:
    """An adapter all of whose own tensors have moved, as training would have moved them."""
    save_adapter(base, name, folder, **settings)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    torch.manual_seed(3)
    said = json.loads((folder / "adapter_config.json").read_text())
    for key, tensor in tensors.items():
        if "magnitude" in key:
            tensors[key] = tensor * (1 + 0.1 * torch.randn_like(tensor))
        elif "lora_embedding_A" in key or key.endswith("lora_B.bias"):
            tensors[key] = torch.randn_like(tensor) * 0.05
        elif "tokens_delta" in key or (key.endswith(".bias") and said["bias"] != "none"):
            tensors[key] = torch.randn_like(tensor) * 0.3
        elif "lora_" not in key and ".base_layer." not in key:
            tensors[key] = tensor + 0.1 * torch.randn_like(tensor)  # modules_to_save
    for key in tensors:
        if key.endswith(".decoder.bias"):  # one parameter under two names
            tensors[key] = tensors[key.replace(".decoder.bias", ".bias")].clone()
    if said.get("ensure_weight_tying"):
        for key in [key for key in tensors if "lora_embedding_A" in key]:
            head = next(other for other in tensors if other.endswith("lm_head.lora_A.weight"))
            tensors[head.replace("lora_A", "lora_B")] = tensors[key].T.contiguous()
            tensors[head] = tensors[key.replace("embedding_A", "embedding_B")].T.contiguous()
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("way", "name"), CASES, ids=[f"{way} on {name}" for way, name in CASES])
def test_the_merged_model_answers_like_the_unmerged_one(way: str, name: str, tmp_path: Path) -> None:
    base = save_base(name, tmp_path / "base", dtype=torch.float32, shard_size="60KB")
    adapter = trained(base, name, tmp_path / "adapter", **WAYS[way][0])
    folder = merge_folders(base, adapter, tmp_path / "merged")
    assert_same_answers(name, base, adapter, folder)
