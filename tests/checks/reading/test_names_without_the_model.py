"""What is known of a class without building it is what its skeleton says; and what goes beyond that is left to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from bot.checks.reading.folders import read_json
from bot.checks.reading.model_skeleton import Skeleton, build, model_class
from bot.checks.reading.plain_skeleton import NotPlain, PlainSkeleton
from tests.factory import ARCHITECTURES, save_base
from tools import make_plain_models

CLASSES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM", "GPTNeoXForCausalLM")


def both(folder: Path) -> tuple[PlainSkeleton, Skeleton]:
    config = read_json(folder / "config.json") or {}
    shapes = {
        key: tuple(value.shape) for path in folder.glob("*.safetensors") for key, value in load_file(path).items()
    }
    return PlainSkeleton(config, shapes), Skeleton(build(folder, model_class(config)), shapes)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_says_what_the_model_says(tmp_path: Path, name: str):
    save_base(name, tmp_path, dtype=torch.float32)
    try:
        plain, skeleton = both(tmp_path)
    except NotPlain:
        pytest.skip("no plain class")
    assert plain.known.keys() == skeleton.known.keys()
    assert {key: value.blocks for key, value in plain.symbolic.items()} == {
        key: value.blocks for key, value in skeleton.symbolic.items()
    }
    assert (plain.tied, plain.embedding, plain.head) == (skeleton.tied, skeleton.embedding, skeleton.head)
    assert (plain.feeds, plain.key_of, plain.used) == (skeleton.feeds, skeleton.key_of, skeleton.used)
    assert plain.modules.keys() <= skeleton.modules.keys()
    for module in {parameter.rpartition(".")[0] for parameter in plain.known}:
        assert plain.parameters_of(module) == skeleton.parameters_of(module)


def test_the_models_that_most_adapters_are_for_are_plain(tmp_path: Path):
    names = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "phi3")
    for name in names:
        save_base(name, tmp_path / name)
        both(tmp_path / name)


@pytest.mark.parametrize("name", CLASSES)
def test_the_rows_are_what_their_maker_writes(name: str):
    import json

    rows = json.loads(Path(make_plain_models.TARGET).read_text())["classes"]
    assert make_plain_models.row_of(getattr(transformers, name)) == rows[name]


def llama(tmp_path: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    save_base("llama", tmp_path)
    shapes = {key: tuple(value.shape) for key, value in load_file(tmp_path / "model.safetensors").items()}
    return {**(read_json(tmp_path / "config.json") or {}), **changes}, shapes


@pytest.mark.parametrize("changes", [
    {"attention_bias": True}, {"model_type": "mistral"}, {"architectures": ["GPT2LMHeadModel"]}, {"architectures": []},
    {"num_hidden_layers": None}, {"num_hidden_layers": 1}, {"tie_word_embeddings": "yes"},
])  # fmt: skip
def test_another_config_is_left_to_the_model(tmp_path: Path, changes: dict[str, Any]):
    config, shapes = llama(tmp_path, **changes)
    with pytest.raises(NotPlain):
        PlainSkeleton(config, shapes)


def test_a_key_or_a_shape_that_the_class_has_not_is_left_to_the_model(tmp_path: Path):
    config, shapes = llama(tmp_path)
    for strange in ({"model.layers.0.self_attn.q_norm.weight": (8,)}, {"model.norm.weight": (4, 4)}):
        with pytest.raises(NotPlain):
            PlainSkeleton(config, shapes | strange)


def test_a_name_that_the_class_has_not_is_left_to_the_model(tmp_path: Path):
    plain = PlainSkeleton(*llama(tmp_path))
    for ask in (plain.trace, plain.rename):
        with pytest.raises(NotPlain):
            ask("layers.0.self_attn.q_proj.weight")
    with pytest.raises(NotPlain):
        plain.parameters_of("model.layers.0")
    with pytest.raises(NotPlain):
        _ = plain.model
