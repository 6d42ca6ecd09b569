"""Models that are run layer by layer: the same weights, the same distances, to the last bit, as models that are in memory whole."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bot.budget import LOADED, MIB, ByLayers, by_layers, choose_level, layers_memory
from bot.checks.behaviour import large_modules, layer_roles, roles, trial
from bot.checks.behaviour.answers import Trial
from bot.checks.behaviour.empty_model import empty_model
from bot.checks.behaviour.job import CannotRun, MergedAnswer, ReferenceAnswer, WorkerJob, read_answer, write_answer
from bot.checks.behaviour.load_models import load_folder
from bot.checks.behaviour.stored_weights import StoredWeights
from bot.events import silent
from bot.machine import look
from bot.records import Machine, Options, Stored
from bot.verify import table, verify
from tests.factory import save_adapter, save_base
from tests.faults.conftest import claim, named
from tests.faults.damage import rewrite
from tests.faults.held import answered, found, hold, job_of, work_here
from tests.faults.models import LLAMA, Recipe
from tests.faults.models import save_adapter as save_lora
from tests.faults.models import save_base as plain_base
from tests.steps import merge_folders

STORED = (
    "llama", "qwen2", "gemma2", "gpt2", "phi3", "falcon", "bloom", "t5", "whisper", "bert", "distilbert", "vit", "mixtral",
    "qwen2_moe", "deepseek_v3", "gpt_oss", "qwen3_next", "llava", "qwen2_vl", "clip",
)  # fmt: skip
RUN = {
    "llama": "float32", "qwen2": "bfloat16", "gemma2": "bfloat16", "gpt2": "float16", "mixtral": "bfloat16", "phi": "bfloat16",
    "deepseek_v3": "bfloat16", "t5": "bfloat16", "llava": "bfloat16", "vit": "bfloat16",
}  # fmt: skip
Builder = Callable[[str], tuple[Path, Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Base, adapter and an exact merge, by the architecture's name."""

    def make(name: str) -> tuple[Path, Path, Path]:
        root = tmp_path_factory.mktemp(name)
        base = save_base(name, root / "base", dtype=getattr(torch, RUN.get(name, "bfloat16")))
        adapter = save_adapter(base, name, root / "adapter")
        return base, adapter, merge_folders(base, adapter, root / "merged")

    return cache(make)


def job(folders: tuple[Path, Path, Path], work: Path, name: str = "", **changes: object) -> WorkerJob:
    dtype = RUN.get(name, "bfloat16")
    work.mkdir(exist_ok=True)
    how = {"storage": dtype, "compute": "float64" if dtype == "float32" else "float32"}
    return job_of(*folders, **{**how, "work": work, **changes})


def hold_by_layers(asked: WorkerJob) -> Trial:
    reference, merged = (answered(role, asked, layer_roles.LAYERED) for role in ("reference", "merged"))
    assert isinstance(reference, ReferenceAnswer)
    assert isinstance(merged, MergedAnswer)
    return Trial(reference=reference, merged=merged, expected=frozenset(reference.layers))


def figures(trial: Trial) -> dict[str, float]:
    """The numbers of a noise floor."""
    assert trial.noise_floor is not None
    return {name: value for name, value in trial.noise_floor.items() if isinstance(value, int | float)}


@pytest.mark.parametrize("name", STORED)
def test_a_module_is_read_as_from_pretrained_would_load_it(tmp_path: Path, name: str):
    folder = save_base(name, tmp_path / "base", shard_size="40KB")
    whole, report = load_folder(folder, job((folder, folder, folder), tmp_path))
    model = empty_model(folder)
    weights = StoredWeights(folder, model, torch.float32)
    state = whole.state_dict()
    read = weights.read(state)
    assert read.keys() == state.keys()
    assert [key for key in state if state[key].dtype != read[key].dtype or not torch.equal(state[key], read[key])] == []
    buffers = dict(model.named_buffers())
    assert buffers.keys() == dict(whole.named_buffers()).keys()
    assert [key for key, value in whole.named_buffers() if not torch.equal(value, buffers[key])] == []
    assert weights.report == {key: set(report[key]) for key in weights.report}
    assert all(weight.untyped_storage().nbytes() <= 8 for weight in model.parameters())


@pytest.mark.parametrize("name", RUN)
def test_every_distance_is_that_of_models_in_memory(made: Builder, tmp_path: Path, name: str):
    folders = made(name)
    whole = hold(job(folders, tmp_path / "whole", name))
    layered = hold_by_layers(job(folders, tmp_path / "layers", name))
    assert found(layered) == found(whole)
    assert figures(layered) == pytest.approx(figures(whole), rel=1e-9)
    assert [row["module"] for row in layered.probe] == [row["module"] for row in whole.probe]
    for row, other in zip(layered.probe, whole.probe, strict=True):
        assert (row["control"], row["merged"]) == pytest.approx((other["control"], other["merged"]), rel=1e-9)
    assert found(whole).status == "pass"


@pytest.mark.parametrize("cast", [False, True])
def test_a_head_in_slices_and_an_embeddings_rows_in_use_change_nothing(
    made: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cast: bool
):
    """With `cast` the merge changes the dtype, so that the head is rounded too: in slices, by the same random numbers."""
    base, adapter, folder = made("qwen2")
    if cast:
        folder = merge_folders(base, adapter, tmp_path / "float16", Options(dtype="float16"))
    changes = {"storage": "float16" if cast else "bfloat16", "cast_all": cast}
    monkeypatch.setattr("bot.checks.behaviour.control.CHUNK", 640)
    monkeypatch.setattr(large_modules, "CHUNK", 640)
    whole = hold(job((base, adapter, folder), tmp_path / "whole", **changes))
    monkeypatch.setattr(large_modules, "LARGE", 1000)
    layered = hold_by_layers(job((base, adapter, folder), tmp_path / "layers", **changes))
    assert figures(layered) == pytest.approx(figures(whole), rel=1e-3)
    assert found(layered).status == "pass"


def test_a_fault_in_a_layer_is_named_too(made: Builder, tmp_path: Path):
    base, adapter, merged = made("mixtral")
    folder = Path(shutil.copytree(merged, tmp_path / "merged"))
    rewrite(folder / "model.safetensors", lambda weights: weights["model.layers.1.self_attn.v_proj.weight"].mul_(2))
    finding = found(hold_by_layers(job((base, adapter, folder), tmp_path)))
    assert finding.status == "fail"
    assert finding.why.endswith("It starts at model.layers.1.")


def test_what_is_missing_from_the_folder_or_left_over_is_said_and_not_run(made: Builder, tmp_path: Path):
    base, adapter, merged = made("phi")
    folder = Path(shutil.copytree(merged, tmp_path / "merged"))

    def rename(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.other.weight"] = weights.pop("model.layers.0.self_attn.q_proj.weight")

    rewrite(folder / "model.safetensors", rename)
    answer = layer_roles.merged(job((base, adapter, folder), tmp_path))
    assert isinstance(answer, MergedAnswer)
    assert answer.loads.missing == ["model.layers.0.self_attn.q_proj.weight"]
    assert answer.loads.unexpected == ["model.layers.0.other.weight"]
    assert answer.distances is None


def test_a_stale_single_file_beside_shards_is_what_is_run(made: Builder, tmp_path: Path):
    """As a loader would take it, whatever the index says."""
    base, adapter, merged = made("qwen2")
    folder = Path(shutil.copytree(merged, tmp_path / "merged"))
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    keys = load_file(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(keys, "part.safetensors")})
    )
    asked = job((base, adapter, folder), tmp_path)
    assert found(hold_by_layers(asked)).status == "pass"
    shutil.copyfile(base / "model.safetensors", folder / "model.safetensors")
    assert found(hold_by_layers(asked)).status == "fail"


def test_what_makes_its_layers_of_the_bases_weights_cannot_be_run_so(made: Builder, tmp_path: Path):
    base, _, merged = made("phi")
    adapter = save_adapter(base, "phi", tmp_path / "adapter", init_lora_weights="pissa")
    with pytest.raises(CannotRun, match="PEFT has no base to make this method's layers of"):
        layer_roles.reference(job((base, adapter, merged), tmp_path))


def test_a_tensor_of_another_shape_cannot_be_run_so(made: Builder, tmp_path: Path):
    base, adapter, merged = made("phi")
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:100].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CannotRun, match=r"model\.embed_tokens\.weight"):
        layer_roles.reference(job((folder, adapter, merged), tmp_path))


def test_the_roles_of_both_ways_have_the_same_names():
    assert layer_roles.LAYERED.keys() <= roles.ROLES.keys()


def test_a_model_that_does_not_fit_into_memory_is_proven_layer_by_layer(
    made: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The worker in this process, and a machine that has less memory than the model takes."""
    base, adapter, merged = made("qwen2")
    folder = Path(shutil.copytree(merged, tmp_path / "merged"))
    machine = replace(look(tmp_path), memory_available=100 * MIB)
    monkeypatch.setattr(trial, "look", lambda folder: machine)
    monkeypatch.setattr(trial, "_work", work_here)
    report = verify(claim(base, adapter, folder, level="full"), silent)
    assert report.verdict == "verified", table(report)
    assert named(report, "loads").why.endswith("Looked at layer by layer, since no whole model fits into memory.")
    assert named(report, "behaviour").measured.startswith("K = 0.4")
    assert json.loads(report.document.canonical())["probe"][-1]["module"] == "lm_head"


def tensor(key: str, *shape: int) -> Stored:
    size = 2 * math.prod(shape)
    return Stored(key=key, file="model.safetensors", dtype="BF16", shape=shape, start=0, stop=size)


def test_the_memory_of_layer_by_layer_is_that_of_the_largest_layer():
    layers = [tensor(f"model.layers.{at}.{name}.weight", 4096, 4096) for at in range(80) for name in ("q", "k", "up")]
    some, all_of_them = (layers_memory(layers[:count]) for count in (3, 240))
    assert some == all_of_them == LOADED + (12 * 3 + 24) * 4096 * 4096
    assert layers_memory([*layers, tensor("lm_head.weight", 200_000, 4096)]) == LOADED + 36 * 200_000 * 4096


GB = 10**9
HERE = Machine(memory=16 * GB, memory_available=14 * GB, disk_free=10**12, platform="", versions={})


@pytest.mark.parametrize(
    ("asked", "stored", "held", "level", "reason"),
    [
        ("auto", 20 * GB, 5 * GB, "full", None),
        ("auto", 40 * GB, 5 * GB, "weights", "layer by layer it would read 40.0 GB, which --verify full does"),
        ("full", 400 * GB, 5 * GB, "full", None),
        ("auto", 20 * GB, 15 * GB, "weights", "needs 90.0 GB of memory, 14.0 GB are available"),
    ],
)  # fmt: skip
def test_auto_takes_layer_by_layer_up_to_twice_the_memory(
    asked: Any, stored: int, held: int, level: str, reason: str | None
):
    layers = ByLayers(memory=held, stored=stored)
    chosen, not_run, refusals = choose_level(Options(verify=asked), {}, 90 * GB, HERE, layers=layers)
    assert (chosen, refusals) == (level, [])
    assert reason is None or not_run[0][1].endswith(reason)
    assert bool(not_run) == (reason is not None)


def test_full_by_name_is_refused_where_not_even_a_layer_fits():
    _, _, refusals = choose_level(Options(verify="full"), {}, 90 * GB, HERE, layers=ByLayers(memory=15 * GB, stored=1))
    assert [refusal.code for refusal in refusals] == ["verify-memory"]


def test_what_is_not_plain_and_a_repos_own_code_are_not_run_layer_by_layer():
    assert by_layers([tensor("a", 2)], {}, is_plain=True) is not None
    assert by_layers([tensor("a", 2)], {}, is_plain=False) is None
    assert by_layers([tensor("a", 2)], {"auto_map": {"AutoModel": "own.Own"}}, is_plain=True) is None


DEEP = {**LLAMA, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 24, "vocab_size": 320}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much memory a process has had")
def test_the_memory_of_a_worker_does_not_grow_with_the_models_depth(tmp_path: Path):
    """82 million weights are 330 MB in float32, and one layer of them is 14."""
    recipe = Recipe(config={**DEEP, "architectures": ["LlamaForCausalLM"]}, targets=("v_proj",))
    base = Path(tmp_path / "base")
    plain_base(recipe, base, 0)
    save_lora(recipe, base, tmp_path / "adapter")
    asked = job_of(base, tmp_path / "adapter", base, work=tmp_path, prompts=2, draws=1)
    shallow = tmp_path / "shallow"
    plain_base(replace(recipe, config={**recipe.config, "num_hidden_layers": 2}), shallow, 0)
    peak = {running: peak_of(replace(asked, role="merged", running=running)) for running in ("whole", "layers")}
    least = peak_of(replace(asked, role="merged", folder=shallow, running="layers"))
    assert peak["whole"] - least > 200 * MIB, "else this test could not fail"
    assert peak["layers"] - least < 60 * MIB


def peak_of(job: WorkerJob) -> int:
    """The most memory that the worker of a job takes, in bytes."""
    if not (job.work / "reference.json").exists():
        write_answer(
            job.work / "reference.json",
            answered("reference", replace(job, role="reference"), layer_roles.LAYERED),
            True,
        )
    job.write(job.work / "job.json")
    command = [sys.executable, "-c", PEAK, str(job.work / "job.json")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    answer, _ = read_answer(job.work / "merged.json")
    assert isinstance(answer, MergedAnswer), answer
    return int(ran.stdout.split()[-1]) * 1024


# ru_maxrss would be that of this process, which a child begins as a copy of.
PEAK = """
import re, sys
from pathlib import Path
from bot.checks.behaviour.worker import main
main(Path(sys.argv[1]))
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
