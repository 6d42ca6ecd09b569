"""A model that is larger than the GPU, and run there layer by layer: every weight and every input is brought to it, and what comes
of them is what comes on the processor. Where there is no GPU, a device is pretended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bot.budget import ByLayers, choose_level
from bot.checks.behaviour import (
    empty_model,
    large_modules,
    layer_roles,
    layered_model,
    stored_weights,
    trial,
)
from bot.checks.behaviour.answers import Trial
from bot.checks.behaviour.device import DevicesUsed
from bot.checks.behaviour.job import MergedAnswer, ReferenceAnswer
from bot.devices import CONTEXT, choose_proof_device
from bot.records import Gpu, Machine, Options, ProofDevice
from tests.checks.behaviour import pretended_device
from tests.checks.behaviour.test_layer_by_layer import Builder, hold_by_layers, job
from tests.checks.behaviour.test_layer_by_layer import made as made
from tests.faults.held import found

GB = 10**9


def in_place(monkeypatch: pytest.MonkeyPatch, owner: Any, *names: str) -> None:
    """These functions run where there is such a device."""
    for name in names:
        real = getattr(owner, name)

        def there(*args: Any, real: Callable[..., Any] = real, **kwargs: Any) -> Any:
            with pretended_device.device():
                return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, there)


def is_empty(weight: Tensor) -> bool:
    """One on `meta` is elsewhere here, and no empty one."""
    return getattr(weight, "hollow", weight.is_meta and not isinstance(weight, pretended_device.There))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> str:
    """A device for models that run layer by layer; its name."""
    for module in (empty_model, layer_roles, stored_weights):
        monkeypatch.setattr(module, "is_empty", is_empty)
    used = DevicesUsed()  # those of this process are others
    for module in (layered_model, layer_roles):
        monkeypatch.setattr(module, "DEVICES", used)
    in_place(monkeypatch, layered_model, "bring")
    in_place(monkeypatch, layered_model.LayeredModel, "question", "ask")
    in_place(monkeypatch, layer_roles._Reference, "_uncalled")
    in_place(monkeypatch, stored_weights.StoredWeights, "read", "rows", "fill")

    class Stepped(layered_model.SteppedRun):
        def __init__(self, run: Callable[[], Any], modes: Callable[[], AbstractContextManager[Any]]) -> None:
            @contextmanager
            def there() -> Iterator[None]:
                with pretended_device.device(), modes():
                    yield

            super().__init__(run, there)

    monkeypatch.setattr(layered_model, "SteppedRun", Stepped)
    return pretended_device.NAME


ARCHITECTURES = ("llama", "gemma2", "gpt2", "t5", "llava")


def pair_of(trial: Trial) -> tuple[ReferenceAnswer, MergedAnswer]:
    assert isinstance(trial.reference, ReferenceAnswer)
    assert isinstance(trial.merged, MergedAnswer)
    return trial.reference, trial.merged


def compare(folders: tuple[Path, Path, Path], tmp_path: Path, name: str, device: str) -> None:
    here = hold_by_layers(job(folders, tmp_path / "here", name, draws=2, prompts=2))
    there = hold_by_layers(job(folders, tmp_path / "there", name, draws=2, prompts=2, device=device))
    (reference, merged), (reference_there, merged_there) = pair_of(here), pair_of(there)
    assert device in (merged_there.device or "")
    assert found(there) == found(here)
    for distances in ("base", "exact", "nearest", "controls", "probe"):
        assert getattr(reference_there, distances) == getattr(reference, distances)
    assert (merged_there.distances, merged_there.probe) == (merged.distances, merged.probe)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_on_another_device_every_distance_is_the_same(made: Builder, tmp_path: Path, name: str, pretended: str) -> None:
    compare(made(name), tmp_path, name, pretended)


def test_an_embedding_by_its_rows_and_a_head_in_slices_too(
    made: Builder, tmp_path: Path, pretended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_modules, "LARGE", 10)
    compare(made("llama"), tmp_path, "llama", pretended)


def test_what_is_left_on_the_processor_is_refused_by_the_device(
    made: Builder, tmp_path: Path, pretended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pretended device is as strict as a real one."""
    monkeypatch.setattr(layered_model, "bring", lambda model, device: None)
    with pytest.raises(Exception, match="Expected all tensors to be on the same device"):
        hold_by_layers(job(made("llama"), tmp_path / "there", "llama", device=pretended))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_on_a_gpu_k_is_that_of_the_processor(made: Builder, tmp_path: Path, name: str) -> None:
    here = hold_by_layers(job(made(name), tmp_path / "here", name))
    there = hold_by_layers(job(made(name), tmp_path / "there", name, device="cuda"))
    assert found(there).status == found(here).status
    assert there.ratio.k == pytest.approx(here.ratio.k, abs=4 * here.ratio.k * here.ratio.error)


# --- the choice -----------------------------------------------------------------------------------------------------


def machine(*free: int, memory: int = 64 * GB) -> Machine:
    gpus = tuple(
        Gpu(name="A", uuid=f"u{number}", memory=80 * GB, free=room + CONTEXT) for number, room in enumerate(free)
    )
    return Machine(memory=memory, memory_available=memory, disk_free=GB, platform="", versions={}, gpus=gpus, cuda=True)


AUTO, CUDA, FULL = Options(), Options(device="cuda"), Options(verify="full")
LAYERS = ByLayers(memory=3 * GB, stored=40 * GB)


@pytest.mark.parametrize(
    ("options", "has", "expected"),
    [
        (AUTO, machine(30 * GB), ProofDevice(gpus=("u0",))),
        (AUTO, machine(4 * GB, 5 * GB), ProofDevice(gpus=("u1",), by_layers=True)),
        (CUDA, machine(4 * GB), ProofDevice(gpus=("u0",), insists=True, by_layers=True)),
        (AUTO, machine(4 * GB, memory=10 * GB), ProofDevice(gpus=("u0",), by_layers=True)),  # nor into memory
        (CUDA, machine(2 * GB), ProofDevice(insists=True, lacks="needs 20.0 GB of GPU memory, 2.0 GB are free")),
        (AUTO, machine(2 * GB), ProofDevice()),
        (AUTO, machine(4 * GB, memory=2 * GB), ProofDevice()),  # a layer is read by way of memory
    ],
)
def test_a_gpu_that_holds_a_layer_runs_one_after_the_other(
    options: Options, has: Machine, expected: ProofDevice
) -> None:
    assert choose_proof_device(options, 20 * GB, has, LAYERS)[0] == expected


def test_what_the_machine_lacks_for_a_layer_is_named_beside_what_the_gpu_lacks() -> None:
    chosen, notes = choose_proof_device(CUDA, 20 * GB, machine(4 * GB, memory=2 * GB), LAYERS)
    layer = "layer by layer 3.0 GB of memory, 2.0 GB are available"
    assert chosen.lacks == f"needs 20.0 GB of GPU memory, 4.0 GB are free; and {layer}"
    assert notes == []


def test_what_cannot_be_run_by_layers_is_not_run_so_on_a_gpu() -> None:
    assert choose_proof_device(AUTO, 20 * GB, machine(4 * GB), None)[0] == ProofDevice()


@pytest.mark.parametrize(
    ("options", "memory", "level", "why"),
    [
        (AUTO, 64 * GB, "full", ""),
        (AUTO, 19 * GB, "weights", "needs 90.0 GB of GPU memory; layer by layer it would read 40.0 GB"),
        (FULL, 19 * GB, "full", ""),
    ],
)
def test_auto_reads_no_more_than_twice_the_memory_for_a_gpu_either(
    options: Options, memory: int, level: str, why: str
) -> None:
    device = ProofDevice(gpus=("u0",), by_layers=True)
    chosen, not_run, refusals = choose_level(options, {}, 90 * GB, machine(4 * GB, memory=memory), 0, device, LAYERS)
    assert (chosen, refusals) == (level, [])
    assert why in dict(not_run).get("full", "")
    assert bool(not_run) == bool(why)


@pytest.mark.parametrize("by_layers", [True, False])
def test_the_workers_are_given_what_was_chosen(by_layers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Any] = []
    monkeypatch.setattr(trial, "_job", lambda case, base, work: job_like(work))
    monkeypatch.setattr(trial, "_base", lambda case, work: work)
    monkeypatch.setattr(trial, "_rows", lambda *_: None)
    monkeypatch.setattr(trial, "_parent_of_work", lambda case: None)
    monkeypatch.setattr(trial, "_hold", lambda case, asked: jobs.append(asked) or SETTLED)

    class Unread:
        unread = None

    trial._trial_on(Unread(), ProofDevice(gpus=("u0",), by_layers=by_layers))  # type: ignore[arg-type]
    assert [(asked.device, asked.gpus, asked.running) for asked in jobs] == [
        ("cuda", ("u0",), "layers" if by_layers else "whole")
    ]


def job_like(work: Path) -> Any:
    return trial.WorkerJob(base=work, adapter=work, folder=work, work=work, storage="bfloat16", compute="float32")


STOPPED = trial.Stopped(status="skip", why="")
SETTLED = Trial(reference=STOPPED, merged=STOPPED, expected=frozenset())
