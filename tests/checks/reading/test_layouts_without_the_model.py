"""What is known of a class with experts, a vision tower or Conv1D is what its skeleton says; all else is left to the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from bot.checks.reading.folders import read_json
from bot.checks.reading.laid_out_skeleton import LaidOutSkeleton
from bot.checks.reading.layout_rows import rows_of
from bot.checks.reading.model_skeleton import Skeleton, build, model_class
from bot.checks.reading.plain_skeleton import NotPlain
from tests.checks.reading.same_skeleton import hold
from tests.factory import ALL_ARCHITECTURES, save_base
from tools import make_model_layouts

CLASSES = ("MixtralForCausalLM", "GPT2LMHeadModel", "LlavaForConditionalGeneration", "BertForSequenceClassification")
# Architectures that have to be known; the others may be left to the model.
KNOWN = (
    "gpt2", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss", "olmoe", "glm4_moe", "gemma3-vlm", "llava",
    "qwen2_vl", "qwen2_5_vl", "llama-classifier", "gpt2-classifier", "bert-classifier",
)  # fmt: skip


def read(folder: Path) -> tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]:
    config = read_json(folder / "config.json") or {}
    shapes = {
        key: tuple(value.shape) for path in folder.glob("*.safetensors") for key, value in load_file(path).items()
    }
    return config["architectures"][0], config, shapes


@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_it_says_what_the_model_says(tmp_path: Path, name: str):
    save_base(name, tmp_path, dtype=torch.float32)
    known_class, config, shapes = read(tmp_path)
    try:
        known = LaidOutSkeleton(known_class, config, shapes)
    except NotPlain:
        if name in KNOWN:
            raise
        pytest.skip("no known class")
    skeleton = Skeleton(build(tmp_path, model_class(config)), shapes)
    hold(known, skeleton)


@pytest.mark.parametrize("name", CLASSES)
def test_the_rows_are_what_their_maker_writes(name: str):
    row = json.loads(json.dumps(make_model_layouts.row_of(getattr(transformers, name))))
    assert row == next(rows_of(name))


MOE = "model.layers.1.block_sparse_moe.experts"


def refused(name: str, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(NotPlain):
        _ = LaidOutSkeleton(name, config, shapes).symbolic


def test_experts_that_are_missing_too_many_or_of_another_shape_are_left_to_the_model(tmp_path: Path):
    save_base("mixtral", tmp_path)
    name, config, shapes = read(tmp_path)
    assert LaidOutSkeleton(name, config, shapes).symbolic
    last = f"{MOE}.3.w1.weight"
    refused(name, config, {key: shape for key, shape in shapes.items() if key != last})
    refused(name, config, {key: shape for key, shape in shapes.items() if f"{MOE}.3." not in key})
    refused(name, config, shapes | {last.replace(".3.", ".4."): shapes[last]})
    refused(name, config, shapes | {last: (8, 8)})
    refused(name, config, shapes | {"model.layers.2.input_layernorm.weight": (64,)})
    refused(name, config, shapes | {"model.norm.weight": (8, 8)})
    for number in ("00", "٠"):  # no layer is called that
        refused(name, config, shapes | {f"model.layers.{number}.input_layernorm.weight": (64,)})
    refused(name, config, shapes | {"model.layers.0.mlp.gate_proj.weight": (8, 8)})
    for changes in (
        {"num_local_experts": 5},
        {"num_local_experts": None},
        {"num_local_experts": True},
        {"num_local_experts": {"a": 1}},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": -1},
        {"model_type": "llama"},
        {"num_hidden_layers": "2"},
    ):
        refused(name, config | changes, shapes)
    with pytest.raises(NotPlain):
        LaidOutSkeleton(name, config, shapes).trace("model.layers.0.mlp.gate_proj.weight")


def test_another_tower_or_switch_is_left_to_the_model(tmp_path: Path):
    save_base("llava", tmp_path)
    name, config, shapes = read(tmp_path)
    assert LaidOutSkeleton(name, config, shapes).symbolic
    for section, changes in (
        ("text_config", {"model_type": "mistral"}), ("vision_config", {"model_type": "siglip_vision_model"}),
        ("text_config", {"attention_bias": True}),
    ):  # fmt: skip
        refused(name, config | {section: config[section] | changes}, shapes)
    with pytest.raises(NotPlain):
        LaidOutSkeleton(name, config, shapes).owner("model.vision_tower.embeddings.patch_embedding.weight")
