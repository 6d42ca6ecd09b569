"""Where the models of the full proof run: on a GPU as on the processor, and on the processor where the GPU fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bot.checks.behaviour import device, trial, worker
from bot.checks.behaviour.job import MergedAnswer, ReferenceAnswer, Stopped, WorkerJob
from bot.errors import MachineTooSmall
from bot.events import Event, Note
from bot.records import ProofDevice
from tests.factory import save_adapter, save_base
from tests.faults.held import job_of, work_here
from tests.steps import merge_folders

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine's GPU can be reached")
WITH_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@pytest.fixture(scope="module")
def merge(tmp_path_factory: pytest.TempPathFactory) -> WorkerJob:
    """A job of a small Llama and its merge."""
    root = tmp_path_factory.mktemp("small")
    base = save_base("llama", root / "base")
    adapter = save_adapter(base, "llama", root / "adapter", r=4)
    return job_of(base, adapter, merge_folders(base, adapter, root / "merged"), prompts=2, draws=2)


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def at(job: WorkerJob, work: Path, **changes: object) -> WorkerJob:
    return replace(job, work=work, **changes)


# --- what a worker starts with --------------------------------------------------------------------------------------


def test_a_worker_on_the_processor_sees_no_gpu(merge: WorkerJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    given = trial._environment(merge)
    assert given["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUBLAS_WORKSPACE_CONFIG" not in given


def test_a_worker_on_a_gpu_sees_the_chosen_ones_and_computes_in_one_order(
    merge: WorkerJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    given = trial._environment(replace(merge, device="cuda", gpus=("GPU-2", "GPU-5")))
    assert given["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-5"
    assert given["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert given["NVIDIA_TF32_OVERRIDE"] == "0"
    assert "HF_TOKEN" not in given


@NO_GPU
def test_a_gpu_job_computes_in_full_float32_by_deterministic_kernels(merge: WorkerJob) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    with pytest.raises(device.NoDevice):
        device.prepare(replace(merge, device="cuda"))
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_the_processor_is_left_as_it_is(merge: WorkerJob) -> None:
    device.prepare(merge)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox is Linux's")
def test_a_confined_worker_may_use_the_drivers_devices_and_no_file_beside_them(
    merge: WorkerJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "DRIVER_DEVICES", ("zer*", "shm", "nothing*"))
    given: dict[str, list[Path]] = {}
    monkeypatch.setattr("bot.checks.behaviour.sandbox.confine", lambda **kinds: given.update(kinds) or True)
    assert worker.confine_for(replace(merge, device="cuda"))
    assert [path for path in given["writable"] if path != merge.work] == [Path("/dev/zero")]
    assert Path("/run/opengl-driver") in given["readable"]
    worker.confine_for(merge)
    assert given["writable"] == [merge.work]


def test_a_device_is_opened_to_write_in_the_sandbox_where_it_was_given(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from bot.checks.behaviour.sandbox import confine
confined = confine(writable=[Path(sys.argv[1]), *map(Path, sys.argv[2:])], readable=[])
try:
    os.close(os.open("/dev/zero", os.O_RDWR))
    print(confined, "open")
except OSError:
    print(confined, "shut")
"""

    def ends(*devices: str) -> str:
        command = [sys.executable, "-c", code, str(tmp_path), *devices]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if ends().startswith("False"):
        pytest.skip("this kernel has no Landlock")
    assert ends() == "True shut"
    assert ends("/dev/zero") == "True open"


# --- how a model is loaded ------------------------------------------------------------------------------------------


def test_one_gpu_takes_all_of_a_model_and_several_share_it_by_what_is_free(
    merge: WorkerJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert device.placing(merge) == {}
    assert device.placing(replace(merge, device="cuda", gpus=("GPU-1",))) == {"device_map": {"": "cuda"}}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: ((10, 20)[number], 40))
    several = device.placing(replace(merge, device="cuda", gpus=("GPU-1", "GPU-2")))
    assert several == {"device_map": "auto", "max_memory": {0: 10, 1: 20}}


def test_a_model_that_transformers_places_answers_as_one_that_it_does_not(
    merge: WorkerJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [work_here(None, at(merge, tmp_path, role=role)) for role in ("reference", "merged")]
    monkeypatch.setattr("bot.checks.behaviour.load_models.placing", lambda job: {"device_map": {"": "cpu"}})
    placed = [work_here(None, at(merge, tmp_path, role=role)) for role in ("reference", "merged")]
    assert isinstance(plain[0], ReferenceAnswer)
    assert isinstance(plain[1], MergedAnswer)
    assert placed == plain
    assert plain[0].device == plain[1].device == "cpu"


def to_gpu(model: torch.nn.Module) -> None:
    """Tensors of a GPU without numbers, in the place of the model's own."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in [pair for pair in held.items() if pair[1] is not None]:
                there = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                held[name] = torch.nn.Parameter(there, False) if held is module._parameters else there


@pytest.mark.parametrize("kind", ["lora", "embedding", "dora", "parameter"])
def test_what_peft_makes_of_a_weight_on_a_gpu_stays_there(
    kind: str, merge: WorkerJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without numbers, which know their device: two devices in one operation are an error, as on a GPU."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from bot.checks.behaviour import control

    settings: dict[str, Any] = {
        "embedding": {"target_modules": ["embed_tokens"]},
        "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
        "parameter": {"target_modules": [], "target_parameters": ["q_proj.weight"]},
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(merge.base), attn_implementation="eager")
    tuned = get_peft_model(model, LoraConfig(r=4, **settings.get(kind, {"target_modules": ["q_proj"]})))
    tuned.base_model.disable_adapter_layers()
    plain = tuned.get_base_model()
    monkeypatch.setattr(control, "chance", lambda *_: torch.Generator())  # a GPU's own needs a GPU
    # Without CUDA, torch cannot take slices of such tensors.
    monkeypatch.setattr(control, "rounded", lambda exact, rounds, kept: rounds(exact).to(kept))
    with FakeTensorMode(allow_non_fake_inputs=True):
        to_gpu(tuned)
        control.stand_in(plain, merge, "exact", 0, keep=False)
        assert {parameter.device.type for parameter in plain.parameters()} == {"cuda"}
        assert device.to_model({"input_ids": torch.ones(1)}, plain)["input_ids"].device.type == "cuda"


# --- what happens where a GPU fails ---------------------------------------------------------------------------------


class Case:
    """As much of a case as the trial's outermost function asks for."""

    def __init__(self, chosen: ProofDevice) -> None:
        self.subject = SimpleNamespace(device=chosen)
        self.said: list[str] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, Note):
            self.said.append(event.text)


ON_GPU = ProofDevice(gpus=("GPU-1",))
ANSWER = SimpleNamespace(device="cpu")  # as far as what follows asks for one


def held(monkeypatch: pytest.MonkeyPatch, chosen: ProofDevice, stopped: Stopped) -> tuple[Case, list[str], object]:
    """(the case, the devices that were tried, what came of it) where the GPU's reference is `stopped`."""
    case, tried = Case(chosen), []

    def try_on(case: object, chosen: ProofDevice) -> object:
        tried.append(chosen.kind)
        first = stopped if chosen.gpus else ANSWER
        return trial.Trial(reference=first, merged=ANSWER, expected=frozenset())  # type: ignore[arg-type]

    monkeypatch.setattr(trial, "_trial_on", try_on)
    return case, tried, trial.hold_trial(case)  # type: ignore[arg-type]


LOST = Stopped(status="skip", why=device.NO_DEVICE, unrunnable=True, of_device=True)
ERROR = Stopped(status="error", why="RuntimeError: two devices", raised=True)


@pytest.mark.parametrize(
    ("stopped", "words"),
    [
        (LOST, "The GPU could not run the models: this torch finds no CUDA device. They run on the CPU instead."),
        (ERROR, "The GPU could not run the models: RuntimeError: two devices. They run on the CPU instead."),
    ],
)
def test_what_a_gpu_cannot_run_is_run_on_the_processor(
    stopped: Stopped, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, tried, ended = held(monkeypatch, ON_GPU, stopped)
    assert tried == ["cuda", "cpu"]
    assert case.said == [words]
    assert ended.device == "cpu"


def test_a_gpu_that_somebody_insists_on_must_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MachineTooSmall, match="this torch finds no CUDA device") as raised:
        held(monkeypatch, replace(ON_GPU, insists=True), LOST)
    assert "--device cpu" in raised.value.remedy


def test_an_error_on_a_gpu_that_somebody_insists_on_is_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    _, tried, ended = held(monkeypatch, replace(ON_GPU, insists=True), ERROR)
    assert tried == ["cuda"]
    assert ended.reference is ERROR


def test_models_that_do_not_fit_the_processor_stay_unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    _, tried, ended = held(monkeypatch, replace(ON_GPU, fits_cpu=False), LOST)
    assert tried == ["cuda"]
    assert ended.unrunnable == device.NO_DEVICE


@NO_GPU
def test_a_worker_without_its_gpu_says_so_and_not_that_the_merge_is_wrong(merge: WorkerJob) -> None:
    lost = worker.start_device(replace(merge, device="cuda"))
    assert lost == LOST
    assert worker.start_device(merge) is None


@pytest.mark.parametrize(
    ("error", "of_device"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory."), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 7"), False),
        (MemoryError(), False),
    ],
)
def test_a_gpu_that_fails_in_the_middle_is_told_from_a_model_that_does(
    error: Exception, of_device: bool, merge: WorkerJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bot.checks.behaviour.load_models import trying

    def role(job: WorkerJob) -> None:
        with trying("the base itself"):
            raise error

    monkeypatch.setattr("bot.checks.behaviour.roles.ROLES", {"reference": role})
    stopped = worker.attempt(replace(merge, device="cuda"))
    assert isinstance(stopped, Stopped)
    assert stopped.of_device is of_device
    assert stopped.unrunnable
    assert not worker.attempt(merge).of_device


# --- on a GPU -------------------------------------------------------------------------------------------------------


def ratio_of(job: WorkerJob) -> tuple[float, float, list[object]]:
    """(K, its standard error, both answers) of a job, on its device."""
    from bot.checks.behaviour.answers import Trial

    lost = worker.start_device(job)
    assert lost is None, lost
    reference, merged = (work_here(None, replace(job, role=role)) for role in ("reference", "merged"))
    assert isinstance(reference, ReferenceAnswer), reference
    assert isinstance(merged, MergedAnswer), merged
    held = Trial(reference=reference, merged=merged, expected=frozenset(reference.layers))
    return held.ratio.k, held.ratio.k * held.ratio.error, [reference, merged]


@pytest.mark.gpu
@WITH_GPU
@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_k_is_the_same_on_a_gpu_but_for_its_own_error(compute: str, merge: WorkerJob, tmp_path: Path) -> None:
    here, error, answers = ratio_of(at(merge, tmp_path, compute=compute, draws=8))
    there, _, on_gpu = ratio_of(at(merge, tmp_path, compute=compute, draws=8, device="cuda"))
    assert on_gpu[1].device == torch.cuda.get_device_name()
    assert abs(there - here) <= 4 * error
    pairs = zip(answers[1].distances, on_gpu[1].distances, strict=True)  # of the same two models, on either device
    assert all(there.far == pytest.approx(here.far, rel=1e-2) for here, there in pairs)


@pytest.mark.gpu
@WITH_GPU
def test_a_gpu_gives_the_same_answers_twice_bit_for_bit(merge: WorkerJob, tmp_path: Path) -> None:
    job = at(merge, tmp_path, device="cuda")
    assert ratio_of(job) == ratio_of(job)


@pytest.mark.gpu
@WITH_GPU
def test_the_models_take_no_more_of_a_gpu_than_was_planned(merge: WorkerJob, tmp_path: Path) -> None:
    from bot.budget import verify_memory
    from bot.checkpoint.header import read_header

    header = read_header(merge.base / "model.safetensors", file="model.safetensors")
    torch.cuda.reset_peak_memory_stats()
    ratio_of(at(merge, tmp_path, device="cuda"))
    assert torch.cuda.max_memory_reserved() <= verify_memory(header.tensors)
