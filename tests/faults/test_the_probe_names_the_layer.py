"""Where a fault sits in the model: the probe holds each module of control and merged to the unmerged model's.

The workers run in this process (tests/faults/held.py); the unmerged model and its controls once for all faults.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from bot.checks.behaviour.answers import Trial
from bot.checks.behaviour.probe import modules_of
from bot.report_document import Document
from tests.factory import build as tiny
from tests.faults.damage import in_config, rewrite
from tests.faults.held import answered, found, hold, job_of
from tests.faults.models import GPT2, LLAMA, Built, Recipe, build

pytestmark = pytest.mark.slow

RECIPES = {
    "llama": Recipe(config={**LLAMA, "num_hidden_layers": 4}),
    "gpt2": Recipe(config={**GPT2, "n_layer": 3}, targets=("c_attn", "c_fc")),
}
FRONTS = {"llama": "model.layers.", "gpt2": "transformer.h."}
Builder = Callable[[str], tuple[Built, Trial]]
Damage = Callable[[Path, Built], None]


@pytest.fixture(scope="module")
def correct(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """A correct merge by the recipe's name, and what the workers answer of it."""

    def make(name: str) -> tuple[Built, Trial]:
        made = build(RECIPES[name], tmp_path_factory.mktemp(name))
        return made, hold(job_of(made.base, made.adapter, made.merged))

    return cache(make)


def damaged(pair: tuple[Built, Trial], folder: Path, damage: Damage) -> Trial:
    """The same trial, of a merge that was damaged."""
    made, trial = pair
    damage(made.fresh(folder), made)
    job = job_of(made.base, made.adapter, folder, work=made.merged.parent)
    return replace(trial, merged=answered("merged", job))


def scaled(key: str, factor: float = 1.5) -> Damage:
    return lambda folder, _: rewrite(folder / "model.safetensors", lambda tensors: tensors[key].mul_(factor))


@pytest.mark.parametrize("name", RECIPES)
def test_a_correct_merge_lies_nowhere_farther_off_than_a_control(correct: Builder, name: str):
    _, trial = correct(name)
    assert found(trial).status == "pass"
    assert trial.starts_at is None
    modules = [row["module"] for row in trial.probe]
    count = sum(module.startswith(FRONTS[name]) for module in modules)
    assert count == {"llama": 4, "gpt2": 3}[name]
    assert modules[-1] == "lm_head"
    late = [row["merged"] / row["control"] for row in trial.probe if row["module"].startswith(FRONTS[name])]
    assert all(0.2 < share < 0.9 for share in late), "theory says 0.5"


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
@pytest.mark.parametrize("weight", ["self_attn.v_proj", "input_layernorm"])
def test_a_weight_of_one_layer_that_is_wrong_is_traced_to_it(correct: Builder, tmp_path: Path, layer: int, weight: str):
    trial = damaged(correct("llama"), tmp_path / "merged", scaled(f"model.layers.{layer}.{weight}.weight"))
    finding = found(trial)
    assert finding.status == "fail"
    assert finding.why.endswith(f" It starts at model.layers.{layer}.")


FAULTS: dict[str, tuple[str, Damage, str]] = {
    "rope theta": ("llama", in_config(rope_parameters={"rope_type": "default", "rope_theta": 500.0}), "model.rotary_emb"),
    "the head": ("llama", scaled("lm_head.weight"), "lm_head"),
    "the last norm": ("llama", scaled("model.norm.weight"), "model.norm"),
    "the embedding": ("llama", scaled("model.embed_tokens.weight"), "model.embed_tokens"),
    "the positions": ("gpt2", scaled("transformer.wpe.weight", 3.0), "transformer.wpe"),
    "a layer of GPT-2": ("gpt2", scaled("transformer.h.1.mlp.c_proj.weight", 3.0), "transformer.h.1"),
    "epsilon": ("llama", in_config(rms_norm_eps=0.5), "model.layers.0"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_outside_of_the_layers_is_traced_too(correct: Builder, tmp_path: Path, fault: str):
    name, damage, module = FAULTS[fault]
    finding = found(damaged(correct(name), tmp_path / "merged", damage))
    assert finding.status == "fail"
    assert finding.why.endswith(f" It starts at {module}.")


def test_numbers_that_are_lost_are_traced_and_the_document_stays_json(correct: Builder, tmp_path: Path):
    trial = damaged(correct("llama"), tmp_path / "merged", scaled("model.layers.2.mlp.up_proj.weight", float("nan")))
    assert found(trial).why.endswith("there is nothing to compare. It starts at model.layers.2.")
    rows = {row["module"]: row["merged"] for row in trial.probe}
    assert rows["model.layers.1"] is not None
    assert rows["model.layers.2"] is None
    document = Document.read(Document.of({"probe": trial.probe}).canonical())
    assert [row["merged"] for row in document.probe if row["module"] == "model.layers.2"] == [None]
    json.dumps(trial.probe, allow_nan=False)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "t5", "llava", "vit"])
def test_the_modules_share_out_the_models_parameters(name: str):
    model = tiny(name)
    modules = modules_of(model)
    inside = [weight for module in modules.values() for weight in set(module.parameters())]
    whole = set(model.parameters())
    tied = [model.get_input_embeddings(), getattr(model, "lm_head", None)]
    shared = {weight for module in tied if module is not None for weight in module.parameters()}
    once = [weight for weight in inside if weight not in shared]
    assert len(once) == len(set(once))
    assert whole - shared <= set(inside)
    assert torch.nn.ModuleList not in map(type, modules.values())
