"""A GPU that torch cannot use, and a cache on another disk than the output: neither is a merge's end, unless it must be."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bot import pipeline
from bot.budget import disk_to_prove
from bot.devices import CONTEXT
from bot.machine import free_beside, look
from bot.options import Options
from bot.plan import make_plan
from bot.records import Budget, Gpu
from tests.factory import save_adapter, save_base
from tests.steps import sources_of
from tests.stories.conftest import Command, World

Folders = tuple[Path, Path]
HERE = {"gpus": (Gpu(name="NVIDIA H200", uuid="GPU-1", memory=141 * 10**9, free=140 * 10**9),)}


@pytest.fixture(scope="module")
def high_rank(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A base and an adapter of a rank at which a GPU would multiply."""
    root = tmp_path_factory.mktemp("high")
    base = save_base("llama", root / "base")
    return base, save_adapter(base, "llama", root / "adapter", r=128, target_modules=["q_proj", "up_proj"])


def has(monkeypatch: pytest.MonkeyPatch, **what: object) -> None:
    found = pipeline.look
    monkeypatch.setattr(pipeline, "look", lambda folder: replace(found(folder), **what))


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def merge(high_rank: Folders, adapter_merge: Command, tmp_path: Path):
    base, adapter = high_rank

    def run(name: str, *options: str):
        to = tmp_path / name
        return adapter_merge("merge", adapter, "--base", base, "-o", to, "--verify", "files", *options), to

    return run


def test_what_torchs_own_file_says_of_cuda_is_what_torch_says() -> None:
    import torch

    assert look(Path()).cuda is (torch.version.cuda is not None)


def test_a_gpu_that_this_torch_is_not_built_for_is_left_alone(merge, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, without = merge("plain")
    assert plain.code == 0, plain.err
    has(monkeypatch, **HERE, cuda=False)
    ran, folder = merge("merged")
    assert ran.code == 0, ran.err
    assert "device: cpu, since the installed torch is not built for this machine's GPU" in ran.err + ran.out
    assert weights(folder) == weights(without)


def test_a_gpu_that_this_torch_cannot_reach_is_left_alone_with_a_word(merge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver too old for the torch that is there: nobody knows before it is tried."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine's GPU can be reached")
    plain, without = merge("plain")
    assert plain.code == 0, plain.err
    has(monkeypatch, **HERE, cuda=True)
    ran, folder = merge("merged")
    assert ran.code == 0, ran.err
    assert (ran.err + ran.out).count("This torch finds no CUDA device. The merge goes on without it") == 1
    assert weights(folder) == weights(without)


def test_a_gpu_that_fails_in_the_middle_is_left_alone_with_a_word(merge, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from bot.engines.cuda_product import CudaProduct

    plain, without = merge("plain")
    assert plain.code == 0, plain.err
    there, calls = CudaProduct._there, []

    def run_out(self: CudaProduct, *given: object) -> None:
        calls.append(None)
        if len(calls) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
        there(self, *given)

    has(monkeypatch, **HERE, cuda=True)
    monkeypatch.setattr(CudaProduct, "_there", run_out)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "device", lambda name, make=torch.device: make("cpu"))
    ran, folder = merge("merged")
    assert ran.code == 0, ran.err
    assert (ran.err + ran.out).count("The GPU could not multiply: CUDA out of memory. Tried to allocate") == 1
    assert weights(folder) == weights(without)
    insisting, _ = merge("asked", "--device", "cuda")
    assert insisting.code == 6
    assert "The GPU could not multiply" in insisting.err


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"gpus": (), "cuda": True}, "this machine has no GPU"),
        ({**HERE, "cuda": False}, "the installed torch is not built for GPUs"),
        ({**HERE, "cuda": True}, "This torch finds no CUDA device"),
    ],
    ids=["no gpu", "no cuda", "no driver"],
)
def test_cuda_by_name_insists(machine: dict[str, object], words: str, merge, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine's GPU can be reached")
    has(monkeypatch, **machine)
    ran, folder = merge("merged", "--device", "cuda")
    assert ran.code == 6
    assert words in ran.err
    assert not folder.exists()


# --- two disks ----------------------------------------------------------------------------------------------------


def plan(world: World, adapter_merge: Command, output: Path | None = None) -> dict[str, list[str]]:
    """Why the plan of demo/adapter refuses, by code."""
    ran = adapter_merge("merge", "demo/adapter", "-o", output or world.base.parent / "out", "--dry-run")
    return {
        "said": [line for line in ran.err.splitlines() if "disk" in line and "  disk  " not in line],
        "code": [str(ran.code)],
    }


def test_what_fits_on_two_disks_need_not_fit_on_one(
    world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = json.loads(adapter_merge("plan", "demo/adapter", "--json").out)["budget"]
    output, download = budget["output"], budget["download"]
    assert download
    monkeypatch.setattr(pipeline, "free_beside", lambda cache, output: None)
    has(monkeypatch, disk_free=output + download - 1)
    found = plan(world, adapter_merge)
    assert found["code"] == ["6"]
    assert "The merge needs" in found["said"][0]
    monkeypatch.setattr(pipeline, "free_beside", lambda cache, output: download)
    has(monkeypatch, disk_free=output)
    assert plan(world, adapter_merge) == {"said": [], "code": ["0"]}


def test_what_the_full_proof_writes_lies_beside_the_output_alone() -> None:
    budget = Budget(download=100, output=10, peak_memory=0, disk=110, verify_memory=0, verify_disk=5)
    machine = look(Path.cwd())
    assert disk_to_prove(budget, replace(machine, cache_free=None)) == 115
    assert disk_to_prove(budget, replace(machine, cache_free=1000)) == 15
    assert disk_to_prove(replace(budget, verify_disk=0), machine) == 0


def test_each_of_two_disks_is_told_by_its_name(
    world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, disk_free=100)
    monkeypatch.setattr(pipeline, "free_beside", lambda cache, output: 100)
    found = plan(world, adapter_merge)
    assert found["code"] == ["6"]
    text = "\n".join(found["said"])
    assert "The output needs" in text
    assert "point --output at a larger disk" in text
    assert "The download cache needs" in text
    assert "point HF_HOME at a larger disk" in text


def test_two_folders_of_one_disk_are_one(tmp_path: Path) -> None:
    assert free_beside(tmp_path / "not" / "yet", tmp_path) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_another_disk_is_found_where_it_is_mounted(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this sandbox mounts nothing")
    try:
        found = free_beside(disk / "hub", tmp_path / "out")
        assert found is not None
        assert found == shutil.disk_usage(disk).free <= 400 << 10
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_plan_says_where_models_are_proven_layer_by_layer(
    high_rank: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer takes next to nothing, as it does of a deep model."""
    monkeypatch.setattr("bot.budget.LAYER", 0)
    monkeypatch.setattr("bot.budget.WIDEST", 0)
    sources = sources_of(*high_rank)

    def notes(gpus: tuple[Gpu, ...] = (), **memory: int) -> list[str]:
        plan = make_plan(sources, Options(verify="full"), replace(look(Path()), gpus=gpus, cuda=bool(gpus), **memory))
        return [note for note in plan.notes if "layer by layer" in note] if not plan.refusals else ["refused"]

    whole = make_plan(sources, Options(), look(Path())).budget.verify_memory
    assert notes(memory_available=whole) == []
    assert notes(memory_available=whole - 1) == [
        "No model fits into memory as a whole: the full verification runs each layer by layer, which takes longer."
    ]
    gpu = Gpu(name="A", uuid="u0", memory=1 << 40, free=CONTEXT + whole - 1)
    assert notes((gpu,), memory_available=whole) == [
        "No model fits into the GPU's memory as a whole: the full verification runs each there layer by layer."
    ]
    assert notes((replace(gpu, free=CONTEXT + whole),), memory_available=whole) == []
