"""Exact merges that the full proof must pass, mixtures of experts above all, and what it must see whatever K says.

The workers run in this process (tests/faults/held.py): the same code, without the seconds that two processes take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from bot.checks.behaviour import roles
from bot.checks.behaviour.answers import DOUBTFUL
from bot.checks.behaviour.job import MergedAnswer, ReferenceAnswer, WorkerJob
from bot.checks.expected.bypassed import goes_around
from bot.records import Options
from tests.faults.damage import rewrite
from tests.faults.family import DEEPSEEK, GPT_OSS, MIXTRAL
from tests.faults.held import found, hold, job_of
from tests.faults.models import LLAMA, Built, Recipe, save_base
from tests.steps import merge_folders

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 160, "state_size": 8}
MAMBA = {**TINY, "model_type": "falcon_mamba", "architectures": ["FalconMambaForCausalLM"]}
FINE = {key: value for key, value in DEEPSEEK.items() if key not in ("num_experts", "num_local_experts")}
ONE_EXPERT = {**MIXTRAL, "num_experts_per_tok": 1}
XGLM = {
    "model_type": "xglm", "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "vocab_size": 160,
    "max_position_embeddings": 128, "architectures": ["XGLMForCausalLM"],
}  # fmt: skip
RECIPES = {
    "mixtral": Recipe(config=MIXTRAL, targets="all-linear"),
    "one-expert": Recipe(config=ONE_EXPERT, targets=r".*(q_proj|gate)"),
    "gpt_oss": Recipe(config=GPT_OSS, targets="all-linear"),
    "deepseek_v3": Recipe(config=FINE, targets="all-linear"),
    "mixtral-float32": Recipe(config=MIXTRAL, targets="all-linear", dtype="float32"),
    "xglm-float32": Recipe(config=XGLM, targets=("q_proj", "fc2"), dtype="float32"),
    "falcon_mamba": Recipe(config=MAMBA, targets=("in_proj", "x_proj", "dt_proj")),
    "llama": Recipe(config=LLAMA),
}
Builder = Callable[[str], Built]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Base, adapter, and the engine's merge of them, by the recipe's name."""

    def make(name: str) -> Built:
        root, recipe = tmp_path_factory.mktemp(name), RECIPES[name]
        one = Built(recipe=recipe, base=root / "base", adapter=root / "adapter", merged=root / "merged")
        save_base(recipe, one.base, 0)
        tune(one)
        merge_folders(one.base, one.adapter, one.merged)
        return one

    return cache(make)


def tune(one: Built, only: str = "") -> None:
    """A LoRA by chance; `only`: the others' B stay zero."""
    chosen = getattr(transformers, one.recipe.config["architectures"][0])
    model = chosen.from_pretrained(one.base, dtype=torch.float32)
    targets = one.recipe.targets if isinstance(one.recipe.targets, str) else list(one.recipe.targets)
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    torch.manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name and only in name:
            torch.nn.init.normal_(parameter, std=0.05)
    tuned.save_pretrained(one.adapter)


def job(one: Built, folder: Path, work: Path, **changes: Any) -> WorkerJob:
    given = {"storage": one.recipe.dtype, "compute": "float64" if one.recipe.dtype == "float32" else "float32"}
    return job_of(one.base, one.adapter, folder, **{**given, "work": work, **changes})


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "deepseek_v3", "one-expert"])
def test_a_mixture_is_measured_along_the_unmerged_models_choices(made: Builder, tmp_path: Path, name: str):
    one = made(name)
    trial = hold(job(one, one.merged, tmp_path))
    finding = found(trial)
    assert finding.status == "pass", finding
    assert 0.2 < trial.ratio.k < 0.8, "theory says 0.5"
    assert trial.ratio.nearest == pytest.approx(trial.ratio.k, rel=1e-3), "PEFT's numbers, rounded to nearest, are ours"
    assert "Experts as the unmerged model chooses them" in finding.why
    floor = trial.noise_floor
    assert floor is not None
    assert floor["controls"] == 8
    assert floor["systematic"] == 0.0
    assert floor["routing"]["choices"] > 0
    assert floor["routing"]["free_calls"] == 0


@pytest.mark.parametrize("name", ["mixtral-float32", "xglm-float32"])
def test_what_is_stored_as_float32_is_proven_in_float64(made: Builder, tmp_path: Path, name: str):
    """A grouped product of experts has no float64; and a mask is filled with the least number of the default dtype."""
    one = made(name)
    assert found(hold(job(one, one.merged, tmp_path))).status == "pass"


def test_a_bfloat16_mixture_merged_into_float32_is_proven_too(made: Builder, tmp_path: Path):
    one = made("mixtral")
    folder = merge_folders(one.base, one.adapter, tmp_path / "merged", Options(dtype="float32"))
    wider = job(one, folder, tmp_path, storage="float32", compute="float64", cast_all=True)
    assert found(hold(wider)).status == "pass"


def test_a_router_that_was_left_out_shows_in_what_it_would_choose(made: Builder, tmp_path: Path):
    """With one expert for each token, its weight is 1 whatever the router says: only the choice can show it."""
    one = made("one-expert")
    folder = one.fresh(tmp_path / "merged")
    plain = load_file(one.base / "model.safetensors")
    routers = {key: value for key, value in plain.items() if key.endswith(".gate.weight")}
    assert routers
    rewrite(folder / "model.safetensors", lambda tensors: tensors.update(routers))
    finding = found(hold(job(one, folder, tmp_path)))
    assert finding.status == "fail", finding
    assert "routers would choose" in finding.why


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "deepseek_v3", "mixtral-float32", "llama"])
def test_one_module_left_out_shows(made: Builder, tmp_path: Path, name: str):
    one = made(name)
    folder = one.fresh(tmp_path / "merged")
    plain, merged = (load_file(place / "model.safetensors") for place in (one.base, folder))
    key = next(key for key in plain if key.endswith("v_proj.weight") or "kv_b_proj.weight" in key)
    assert not torch.equal(plain[key], merged[key])
    rewrite(folder / "model.safetensors", lambda tensors: tensors.update({key: plain[key]}))
    trial = hold(job(one, folder, tmp_path))
    assert found(trial).status == "fail"
    assert trial.ratio.k > trial.ratio.limit


def test_a_module_that_the_model_reads_itself_is_named_whatever_k_says(made: Builder, tmp_path: Path):
    one = made("falcon_mamba")
    trial = hold(job(one, one.merged, tmp_path))
    finding = found(trial)
    assert trial.ratio.k <= 1.0, "the controls have the same fault"
    assert finding.status == "fail"
    assert finding.worst == tuple(f"backbone.layers.{layer}.mixer.dt_proj.weight" for layer in (0, 1))
    assert "past PEFT's layer" in finding.why


def test_such_a_module_whose_delta_is_zero_stands_in_nobodys_way(made: Builder, tmp_path: Path):
    """As training leaves it: nothing that PEFT's layer does not do has a gradient."""
    there = made("falcon_mamba")
    one = Built(recipe=there.recipe, base=there.base, adapter=tmp_path / "adapter", merged=tmp_path / "merged")
    tune(one, only="in_proj")
    merge_folders(one.base, one.adapter, one.merged)
    trial = hold(job(one, one.merged, tmp_path))
    assert isinstance(trial.reference, ReferenceAnswer)
    assert trial.reference.uncalled == []
    assert found(trial).status == "pass"


def test_the_source_of_a_class_says_what_it_reads_itself(made: Builder):
    def around(kind: str, parameter: str) -> bool:
        config = transformers.AutoConfig.for_model(kind, **{**TINY, "num_attention_heads": 4, "intermediate_size": 48})
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(config)
        return goes_around(dict(model.named_modules()), parameter)

    assert around("mamba", "layers.0.mixer.dt_proj.weight")
    assert around("falcon_mamba", "layers.1.mixer.dt_proj.weight"), "called only where it is quantised"
    assert around("wavlm", "encoder.layers.0.attention.q_proj.weight")
    assert not around("mamba", "layers.0.mixer.x_proj.weight")
    assert not around("llama", "layers.0.mlp.down_proj.weight")
    assert not around("t5", "encoder.block.0.layer.1.DenseReluDense.wo.weight"), "asked for its dtype only"


def test_a_large_model_is_loaded_anew_for_each_stand_in_and_measures_the_same(
    made: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one = made("llama")
    small = roles.reference(job(one, one.merged, tmp_path, draws=2))
    monkeypatch.setattr(roles, "SMALL", 0)
    asked = roles.reference(job(one, one.merged, tmp_path, draws=2, thorough=True))
    assert asked == small
    at_first = hold(job(one, one.merged, tmp_path))
    assert (at_first.ratio.controls, at_first.ratio.nearest) == (1, None)
    assert 0.2 < at_first.ratio.k < 1.0
    assert at_first.settled == (at_first.ratio.k <= DOUBTFUL)
    assert found(at_first).status == "pass"


def test_what_is_doubtful_is_looked_at_again_with_more(made: Builder, tmp_path: Path):
    one = made("llama")
    trial = hold(job(one, one.merged, tmp_path, prompts=3, draws=2))
    assert trial.settled
    assert isinstance(trial.merged, MergedAnswer)
    assert len(trial.merged.distances or ()) == 3
    farther = [replace(one, tokens=[2.4 * token for token in one.tokens]) for one in trial.merged.distances or ()]
    doubtful = replace(trial, merged=replace(trial.merged, distances=farther))
    assert not doubtful.settled
