"""Adapters of transformers 4 and 5 on checkpoints of either layout: the experts, and the prefixes of vision-language models.

The reference adds every delta to transformers' own loaded parameter, in float64: PEFT cannot load all of these.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.factory import build, model_inputs, outputs, save_adapter, save_base
from tests.oracle.unmerged import assert_same_answers, distance, load, unmerged
from tests.steps import merge_folders, plan_folders

RANK, ALPHA = 4, 6
# name → (where its experts are in a v4 adapter, the three projections in the order gate, up, down)
FAMILIES = {
    "mixtral": ("block_sparse_moe.experts", ("w1", "w3", "w2")),
    "qwen2_moe": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
    "qwen3_moe": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
    "deepseek_v3": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
    "olmoe": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
}


def save_fused(name: str, folder: Path) -> Path:
    """The base under transformers 5's own names, experts stacked; same values as `save_base`."""
    save_base(name, folder, dtype=torch.float32)
    state = {key: value.clone().contiguous() for key, value in build(name).state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], targets: list[str]) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": targets, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {f"base_model.model.{key}": value for key, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def per_expert(name: str, only: tuple[str, ...]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(adapter tensors by v4 key, delta by v5 parameter) of LoRA on the projections `only` of every expert."""
    torch.manual_seed(5)
    where, projections = FAMILIES[name]
    tensors: dict[str, torch.Tensor] = {}
    deltas: dict[str, torch.Tensor] = {}
    for key, stack in build(name).state_dict().items():
        if not key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        layer = key.split(".mlp.")[0]
        delta = torch.zeros(stack.shape, dtype=torch.float64)
        half = stack.shape[1] // 2
        for at, projection in enumerate(projections):
            if projection not in only or key.endswith("down_proj") != (at == 2):
                continue
            rows = slice(None) if at == 2 else slice(at * half, (at + 1) * half)
            for expert in range(stack.shape[0]):
                a, b = torch.randn(RANK, stack.shape[2]), torch.randn(delta[expert, rows].shape[0], RANK) * 0.05
                module = f"{layer}.{where}.{expert}.{projection}"
                tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
                delta[expert, rows] += ALPHA / RANK * (b.double() @ a.double())
        deltas[key] = delta
    return tensors, deltas


@pytest.mark.parametrize("layout", ["per expert", "fused"])
@pytest.mark.parametrize("part", ["all", "first"])
@pytest.mark.parametrize("name", FAMILIES)
def test_per_expert_adapters_reach_experts_of_either_layout(name: str, part: str, layout: str, tmp_path: Path) -> None:
    only = FAMILIES[name][1] if part == "all" else FAMILIES[name][1][:1]
    tensors, deltas = per_expert(name, only)
    base = (
        save_base(name, tmp_path / "base", dtype=torch.float32)
        if layout != "fused"
        else save_fused(name, tmp_path / "b")
    )
    adapter = write_adapter(tmp_path / "adapter", tensors, list(only))
    merged = load(name, merge_folders(base, adapter, tmp_path / "merged"))
    reference = load(name, base)
    inputs = model_inputs(name)
    plain = outputs(reference, inputs)
    parameters = dict(reference.named_parameters())
    with torch.no_grad():
        for key, delta in deltas.items():
            parameters[key] += delta
    expected = outputs(reference, inputs)
    assert distance(plain, expected) > 1e-3
    assert distance(outputs(merged, inputs), expected) < 2e-6


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_stacked_adapters_reach_a_checkpoint_of_stacked_experts(name: str, tmp_path: Path) -> None:
    base = save_fused(name, tmp_path / "base")
    parameters = ["experts.gate_up_proj", "experts.down_proj"]
    adapter = save_adapter(base, name, tmp_path / "adapter", target_modules=["q_proj"], target_parameters=parameters)
    folder = merge_folders(base, adapter, tmp_path / "merged")
    assert load_file(folder / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
    assert_same_answers(name, base, adapter, folder)


# name → what transformers 4 called a module that transformers 5 calls otherwise
PREFIXES = {
    "qwen2_vl": (("model.language_model.", "model."), ("model.visual.", "visual.")),
    "llava": (("model.language_model.", "language_model.model."), ("model.vision_tower.", "vision_tower.")),
    "gemma3-vlm": (("model.language_model.", "language_model.model."), ("model.vision_tower.", "vision_tower.")),
}


@pytest.mark.parametrize("name", PREFIXES)
def test_vision_language_adapters_with_the_names_of_transformers_4(name: str, tmp_path: Path) -> None:
    """Which PEFT loads as a total no-op, or not at all."""
    base = save_base(name, tmp_path / "base", dtype=torch.float32)
    adapter = save_adapter(base, name, tmp_path / "adapter")
    expected = outputs(unmerged(name, base, adapter), model_inputs(name))
    path = adapter / "adapter_model.safetensors"
    renamed = {}
    for key, value in load_file(path).items():
        for new, old in PREFIXES[name]:
            key = key.replace(f"base_model.model.{new}", f"base_model.model.{old}")
        renamed[key] = value
    assert renamed.keys() != load_file(path).keys()
    save_file(renamed, path)
    merged = load(name, merge_folders(base, adapter, tmp_path / "merged"))
    assert distance(outputs(merged, model_inputs(name)), expected) < 2e-6


def test_an_expert_that_the_base_does_not_have_is_refused(tmp_path: Path) -> None:
    tensors, _ = per_expert("mixtral", ("w1",))
    moved = {key.replace("experts.0.", "experts.77."): value for key, value in tensors.items()}
    adapter = write_adapter(tmp_path / "adapter", moved, ["w1"])
    plan = plan_folders(save_base("mixtral", tmp_path / "base"), adapter)
    assert [refusal.code for refusal in plan.refusals] == ["unmergeable"]
