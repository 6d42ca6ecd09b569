"""All models in one forward pass: the same distances as one after the other, and only where that can be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bot.checks.behaviour import joint, joint_pass, worker
from bot.checks.behaviour.answers import Trial
from bot.checks.behaviour.job import JointAnswer, MergedAnswer, ReferenceAnswer, WorkerJob, read_answer, write_answer
from bot.checks.behaviour.load_models import load_tuned, ready_to_run
from bot.checks.behaviour.roles import load_merged
from bot.checks.behaviour.same_model import NotJoint, same_bits
from tests.faults.damage import in_config, rewrite
from tests.faults.family import MIXTRAL
from tests.faults.held import found, hold, job_of
from tests.faults.models import LLAMA, Built, Recipe, save_base
from tests.faults.test_what_no_rounding_explains import MAMBA, tune
from tests.steps import merge_folders

pytestmark = pytest.mark.slow

BERT = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "vocab_size": 160, "max_position_embeddings": 80, "architectures": ["BertForMaskedLM"],
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 160,
    "decoder_start_token_id": 0, "architectures": ["T5ForConditionalGeneration"],
}  # fmt: skip
RECIPES = {
    "llama": Recipe(config=LLAMA, targets="all-linear"),
    "llama-float16": Recipe(config=LLAMA, targets=("q_proj", "embed_tokens"), dtype="float16"),
    "llama-float32": Recipe(config=LLAMA, targets="all-linear", dtype="float32"),
    "bert": Recipe(config=BERT, targets=("query", "dense")),
    "t5": Recipe(config=T5, targets=("q", "wo")),
    "mixtral": Recipe(config=MIXTRAL, targets="all-linear"),
    "falcon_mamba": Recipe(config=MAMBA, targets=("in_proj", "x_proj", "dt_proj")),
}
Builder = Callable[[str], Built]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Base, adapter, and the engine's merge of them, by the recipe's name."""

    def make(name: str) -> Built:
        root, recipe = tmp_path_factory.mktemp(name), RECIPES[name]
        built = Built(recipe=recipe, base=root / "base", adapter=root / "adapter", merged=root / "merged")
        save_base(recipe, built.base, 0)
        tune(built)
        merge_folders(built.base, built.adapter, built.merged)
        return built

    return cache(make)


def job(built: Built, folder: Path, work: Path, **changes: Any) -> WorkerJob:
    given = {"storage": built.recipe.dtype, "compute": "float64" if built.recipe.dtype == "float32" else "float32"}
    return job_of(built.base, built.adapter, folder, **{**given, "work": work, "draws": 3, **changes})


def jointly(job: WorkerJob) -> tuple[Trial, bool]:
    """What one process answers, by way of its file; and whether it ran the models together."""
    path = job.work / "joint.json"
    write_answer(path, worker.attempt(replace(job, role="joint")), confined=True)
    answer, _ = read_answer(path)
    assert isinstance(answer, JointAnswer), answer
    assert isinstance(answer.reference, ReferenceAnswer), answer.reference
    trial = Trial(reference=answer.reference, merged=answer.merged, expected=frozenset(answer.reference.layers))
    return trial, answer.together


def require_same(one: Trial, other: Trial) -> None:
    """To rounding: what each model is asked for, K, and where it comes from."""
    assert isinstance(one.merged, MergedAnswer)
    assert isinstance(other.merged, MergedAnswer)
    assert one.merged.loads == other.merged.loads
    floors = [trial.noise_floor or {} for trial in (one, other)]
    assert floors[0].keys() == floors[1].keys() > {"ratio"}
    for name, value in floors[0].items():
        same = pytest.approx(floors[1][name], rel=1e-3, abs=1e-9) if isinstance(value, float) else floors[1][name]
        assert value == same, name
    assert one.reference.layers == other.reference.layers  # type: ignore[union-attr]
    for row, like in zip(one.probe, other.probe, strict=True):
        assert row["module"] == like["module"]
        assert row["merged"] == pytest.approx(like["merged"], rel=1e-2, abs=1e-12), row["module"]
        assert row["control"] == pytest.approx(like["control"], rel=1e-2, abs=1e-12), row["module"]


@pytest.mark.parametrize("name", ["llama", "llama-float16", "bert", "t5"])
def test_together_gives_what_one_by_one_gives(made: Builder, tmp_path: Path, name: str):
    built = made(name)
    trial, together = jointly(job(built, built.merged, tmp_path))
    assert together
    require_same(trial, hold(job(built, built.merged, tmp_path)))
    assert found(trial).status == "pass"


def test_a_module_left_out_is_found_together_too(made: Builder, tmp_path: Path):
    built = made("llama")
    folder = built.fresh(tmp_path / "merged")
    plain = load_file(built.base / "model.safetensors")
    key = next(key for key in plain if key.endswith("1.self_attn.v_proj.weight"))
    rewrite(folder / "model.safetensors", lambda tensors: tensors.update({key: plain[key]}))
    trial, together = jointly(job(built, folder, tmp_path))
    assert together
    require_same(trial, hold(job(built, folder, tmp_path)))
    assert found(trial).status == "fail"


@pytest.mark.parametrize("name", ["mixtral", "falcon_mamba", "llama-float32"])
def test_what_cannot_run_together_runs_one_by_one(made: Builder, tmp_path: Path, name: str):
    """Routers choose; a model reads a weight itself, past PEFT's layer; everything is computed in float64."""
    built = made(name)
    trial, together = jointly(job(built, built.merged, tmp_path))
    assert not together
    require_same(trial, hold(job(built, built.merged, tmp_path)))


def test_a_merge_that_differs_elsewhere_runs_one_by_one(made: Builder, tmp_path: Path):
    built = made("llama")
    norm, drifted = built.fresh(tmp_path / "norm"), built.fresh(tmp_path / "drifted")
    rewrite(norm / "model.safetensors", lambda tensors: tensors["model.norm.weight"].mul_(1.5))
    in_config(rms_norm_eps=0.5)(drifted, built)
    for folder in (norm, drifted):
        trial, together = jointly(job(built, folder, tmp_path))
        assert not together, folder.name
        assert found(trial).status == "fail"
        require_same(trial, hold(job(built, folder, tmp_path)))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 64, 67])
def test_each_number_of_a_weight_is_compared(count: int):
    torch.manual_seed(0)
    own = torch.randn(count).bfloat16()
    assert same_bits(own, own.clone())
    for at in range(count):
        other = own.clone()
        other[at] += 1
        assert not same_bits(own, other)


class Meeting(torch.nn.Module):
    """A final norm whose rows meet: each is moved by the mean of all."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden) + 1e-2 * hidden.mean(0, keepdim=True)


def test_rows_that_meet_are_noticed(made: Builder, tmp_path: Path):
    built = made("llama")
    asked = job(built, built.merged, tmp_path)
    model, loads = load_merged(asked)
    model = ready_to_run(model, asked)
    plain = load_tuned(asked).get_base_model()
    for each in (model, plain):
        each.eval()
        each.model.norm = Meeting(each.model.norm)
    with pytest.raises(NotJoint, match="by itself gives something else"):
        joint.run_together(asked, plain, model, loads)


def test_flat_tokens_are_not_taken_for_a_batch(made: Builder, tmp_path: Path):
    built = made("llama")
    asked = job(built, built.merged, tmp_path)
    model, loads = load_merged(asked)
    model = ready_to_run(model, asked)
    plain = load_tuned(asked).get_base_model()
    for each in (model, plain):
        each.eval()
        mlp = each.model.layers[0].mlp
        forward = mlp.forward
        mlp.forward = lambda hidden, forward=forward: forward(hidden.flatten(0, 1)).view_as(hidden)
    with pytest.raises(NotJoint, match="not given the batch"):
        joint.run_together(asked, plain, model, loads)
    assert "forward" not in plain.model.layers[1].self_attn.q_proj.__dict__, "and the layers are PEFT's again"


def test_prompts_that_do_not_fit_together_go_in_turns(made: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    built = made("llama")
    whole, _ = jointly(job(built, built.merged, tmp_path))
    monkeypatch.setattr(joint_pass, "ROOM", 3 * 4 * 160 * 64 * 8)
    parts, together = jointly(job(built, built.merged, tmp_path))
    assert together
    require_same(parts, whole)


def test_the_merged_model_is_loaded_where_peft_does_not_exist(made: Builder, tmp_path: Path):
    from transformers.utils import is_peft_available

    with joint.without_peft():
        assert not is_peft_available()
        with pytest.raises(ImportError):
            import peft
    assert is_peft_available()
    import peft

    assert sys.modules["peft"] is peft
