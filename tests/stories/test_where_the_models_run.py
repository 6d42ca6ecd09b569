"""Which device a merge and its proof take: what the driver says is there, what fits, and what was asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bot import pipeline, reverify
from bot.budget import LOADED
from bot.checks.behaviour import trial
from bot.devices import CONTEXT, choose_proof_device
from bot.gpus import list_gpus
from bot.machine import look
from bot.records import Gpu, Machine, Options, ProofDevice
from tests.factory import save_adapter, save_base
from tests.faults.held import work_here
from tests.steps import merge_folders
from tests.stories.conftest import Command

GB = 10**9
SMI = """#!/bin/sh
case $* in
  *--query-gpu=uuid,name,memory.total,memory.free,mig.mode.current*) cat <<'END'
{rows}
END
  ;;
  -L) cat <<'END'
GPU 0: NVIDIA H200 (UUID: GPU-aa)
GPU 1: NVIDIA H200 (UUID: GPU-ab)
  MIG 1g.18gb     Device  0: (UUID: MIG-x)
  MIG 2g.35gb     Device  1: (UUID: MIG-y)
END
  ;;
esac
exit {code}
"""
TWO = "GPU-aa, NVIDIA H200, 143771, 143000, Disabled\nGPU-ab, NVIDIA H200, 143771, 9, Disabled"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a driver's tool on the PATH that tells of such GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(rows: str = TWO, code: int = 0) -> None:
        tool = tmp_path / "tools" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(SMI.format(rows=rows, code=code))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")

    return put


def names() -> list[str]:
    return [gpu.uuid for gpu in list_gpus()]


def test_the_driver_names_every_gpu_and_its_free_memory(driver) -> None:
    driver()
    first, second = list_gpus()
    assert first == Gpu(name="NVIDIA H200", uuid="GPU-aa", memory=143771 << 20, free=143000 << 20)
    assert second.free == 9 << 20
    assert look(Path()).gpus == (first, second)


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        ("1", ["GPU-ab"]),
        ("1,0", ["GPU-ab", "GPU-aa"]),
        ("GPU-ab", ["GPU-ab"]),
        ("0,7,1", ["GPU-aa"]),  # CUDA stops at what it does not know
        ("GPU-a", []),  # two begin so
        ("", []),
        ("-1", []),
    ],
)
def test_gpus_that_cuda_hides_are_not_there(
    visible: str, seen: list[str], driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert names() == seen


def test_a_gpu_in_slices_is_its_slices_whose_room_nobody_tells(driver) -> None:
    driver(TWO.replace("9, Disabled", "9, Enabled"))
    assert names() == ["GPU-aa", "MIG-x", "MIG-y"]
    assert [gpu.free for gpu in list_gpus()] == [143000 << 20, None, None]


def test_a_driver_that_does_not_answer_has_no_gpus(driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(code=9)
    assert names() == []
    driver("No devices were found")
    assert names() == []
    monkeypatch.setenv("PATH", "/nowhere")
    assert names() == []


# --- the choice -----------------------------------------------------------------------------------------------------


def machine(*free: int | None, memory: int = 64 * GB, cuda: bool = True, **changes: str) -> Machine:
    """One with such GPUs; `changes`: {uuid: name} of those of another kind."""
    gpus = tuple(
        Gpu(name=changes.get(f"u{number}", "A"), uuid=f"u{number}", memory=80 * GB, free=room and room + CONTEXT)
        for number, room in enumerate(free)
    )
    return Machine(memory=memory, memory_available=memory, disk_free=GB, platform="", versions={}, gpus=gpus, cuda=cuda)


AUTO, CUDA = Options(), Options(device="cuda")


@pytest.mark.parametrize(
    ("options", "has", "expected", "note"),
    [
        (AUTO, machine(), ProofDevice(), ""),
        (AUTO, machine(30 * GB), ProofDevice(gpus=("u0",)), ""),
        (AUTO, machine(30 * GB, 40 * GB), ProofDevice(gpus=("u1",)), ""),
        (AUTO, machine(12 * GB, 13 * GB), ProofDevice(gpus=("u0", "u1")), ""),
        (AUTO, machine(12 * GB, 13 * GB, u0="B"), ProofDevice(), "would need 20.0 GB of GPU memory, 13.0 GB are free"),
        (AUTO, machine(19 * GB), ProofDevice(), "would need 20.0 GB of GPU memory, 19.0 GB are free"),
        (AUTO, machine(None), ProofDevice(), "does not tell this GPU's free memory"),
        (AUTO, machine(30 * GB, cuda=False), ProofDevice(), "not built for this machine's GPU"),
        (AUTO, machine(30 * GB, memory=GB), ProofDevice(gpus=("u0",), fits_cpu=False), ""),
        (Options(device="cpu"), machine(30 * GB), ProofDevice(), ""),
        (Options(verify="weights"), machine(30 * GB), ProofDevice(), ""),
        (CUDA, machine(30 * GB), ProofDevice(gpus=("u0",), insists=True), ""),
        (CUDA, machine(None), ProofDevice(gpus=("u0",), insists=True), ""),
        (CUDA, machine(30 * GB, cuda=False), ProofDevice(), ""),  # a refusal says it
        (
            CUDA,
            machine(GB),
            ProofDevice(insists=True, lacks="needs 20.0 GB of GPU memory, 1.0 GB are free"),
            "",
        ),
    ],
)
def test_the_proof_takes_the_gpu_that_has_the_room(
    options: Options, has: Machine, expected: ProofDevice, note: str
) -> None:
    chosen, notes = choose_proof_device(options, 20 * GB, has)
    assert chosen == expected
    assert len(notes) == bool(note)
    assert all(note in text and text.startswith("device:") for text in notes)


# --- whole commands -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Base, adapter, and their merge."""
    root = tmp_path_factory.mktemp("models")
    base = save_base("llama", root / "base")
    adapter = save_adapter(base, "llama", root / "adapter", r=4)
    return base, adapter, merge_folders(base, adapter, root / "merged")


def has(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    for module in (pipeline, reverify):
        monkeypatch.setattr(module, "look", lambda folder: replace(look(folder), **changes))


def roomy(free: int = 100 * GB) -> dict[str, object]:
    return {"gpus": (Gpu(name="NVIDIA H200", uuid="GPU-1", memory=141 * GB, free=free),), "cuda": True}


def test_a_plan_says_where_the_models_would_run(
    folders, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, _ = folders
    has(monkeypatch, **roomy(), memory_available=LOADED)  # too little for the models, beside the GPU
    planned = json.loads(adapter_merge("plan", adapter, "--base", base, "--json").out)["verify"]
    assert (planned["level"], planned["device"]) == ("full", "cuda")
    assert "full on the GPU" in adapter_merge("plan", adapter, "--base", base).out


def test_a_gpu_without_room_is_said_or_refused(
    folders, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, _ = folders
    has(monkeypatch, **roomy(GB // 2))
    planned = adapter_merge("plan", adapter, "--base", base)
    assert "device: cpu for the proof, which would need" in planned.out
    for level, code in (("full", 6), ("auto", 0)):
        insisting = adapter_merge("plan", adapter, "--base", base, "--device", "cuda", "--verify", level)
        assert insisting.code == code
        assert "of GPU memory, 0 B are free" in insisting.out + insisting.err


@pytest.mark.parametrize(
    ("gpus", "words"), [((), "this machine has no GPU"), (roomy()["gpus"], "is not built for GPUs")]
)
def test_verify_insists_on_a_gpu_too(
    gpus: tuple[Gpu, ...], words: str, folders, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, merged = folders
    has(monkeypatch, gpus=gpus, cuda=not gpus)
    ran = adapter_merge("verify", merged, "--base", base, "--adapter", adapter, "--device", "cuda")
    assert ran.code == 6
    assert words in ran.err


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(trial, "_work", work_here)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine's GPU can be reached")
def test_a_gpu_that_torch_does_not_find_leaves_the_proof_to_the_cpu_unless_it_was_asked_for(
    folders, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch, one_process: None
) -> None:
    base, adapter, merged = folders
    has(monkeypatch, **roomy())
    command = ("verify", merged, "--base", base, "--adapter", adapter, "--verify", "full")
    ran = adapter_merge(*command, "--json")
    assert ran.code == 0, ran.err
    assert "this torch finds no CUDA device. They run on the CPU instead." in ran.err
    document = json.loads(ran.out)
    assert document["environment"]["device"] == "cpu"
    assert document["noise_floor"]["ratio"] < 1
    insisting = adapter_merge(*command, "--device", "cuda")
    assert insisting.code == 6
    assert "The GPU could not run the models: this torch finds no CUDA device." in insisting.err


def test_a_report_without_models_names_no_device(folders, adapter_merge: Command) -> None:
    base, adapter, merged = folders
    command = ("verify", merged, "--base", base, "--adapter", adapter, "--verify", "files", "--json")
    assert "device" not in json.loads(adapter_merge(*command).out)["environment"]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_proof_on_a_gpu_says_which(folders, adapter_merge: Command) -> None:
    base, adapter, merged = folders
    command = ("verify", merged, "--base", base, "--adapter", adapter, "--verify", "full", "--device", "cuda", "--json")
    first, second = (adapter_merge(*command) for _ in range(2))
    assert first.code == 0, first.err
    assert json.loads(first.out)["environment"]["device"] == torch.cuda.get_device_name()
    kept = [json.loads(ran.out) for ran in (first, second)]
    for document in kept:
        for check in document["checks"]:
            del check["seconds"]
    assert kept[0] == kept[1]
