"""The GPU goes to the merge where there is one and Docker can hand it over, by its own flag or by CDI."""

from __future__ import annotations

import json

import pytest

from bot.action.inputs import OPTIONS
from bot.terminal.spelling import resolve_choice
from tests.launcher.conftest import Call, Ran, Runner

TOOLKIT = '{"Runtimes":{"nvidia":{"path":"nvidia-container-runtime"},"runc":{"path":"runc"}}}'
CDI = '{"Runtimes":{"runc":{"path":"runc"}},"DiscoveredDevices":[{"Source":"cdi","ID":"nvidia.com/gpu=all"}]}'


def flags(call: Call) -> list[str]:
    return [f"--gpus {value}" for value in call.values("--gpus")] + [f"--device {v}" for v in call.values("--device")]


def merge_flags(ran: Ran) -> list[str]:
    assert ran.code == 0, ran.log
    phases = ran.phases()
    assert not flags(phases["fetch"])
    assert not flags(phases["publish"])
    assert phases["publish"].given["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "NVIDIA_VISIBLE_DEVICES" not in phases["merge"].given
    return flags(phases["merge"])


def test_a_runner_without_a_gpu_merges_on_the_cpu_and_says_nothing(runner: Runner) -> None:
    ran = runner.run()
    assert merge_flags(ran) == []
    assert "::warning" not in ran.log


def test_the_container_toolkit_hands_over_all_gpus(runner: Runner) -> None:
    runner.has("nvidia-smi")
    runner.env["STUB_INFO"] = TOOLKIT
    assert merge_flags(runner.run()) == ["--gpus all"]


def test_its_hook_alone_does_too(runner: Runner) -> None:
    runner.has("nvidia-smi", "nvidia-container-runtime-hook")
    assert merge_flags(runner.run()) == ["--gpus all"]


def test_cdi_hands_them_over_where_docker_knows_it(runner: Runner) -> None:
    runner.has("nvidia-smi")
    runner.env["STUB_INFO"] = CDI
    assert merge_flags(runner.run()) == ["--device nvidia.com/gpu=all"]


def test_cdi_hands_them_over_where_its_description_lies(runner: Runner) -> None:
    runner.has("nvidia-smi")
    folders = ["/nowhere", str(runner.root)]
    runner.env["STUB_INFO"] = json.dumps({"CDISpecDirs": folders}, separators=(",", ":"))
    assert merge_flags(runner.run()) == []
    (runner.root / "nvidia.yaml").write_text("")
    assert merge_flags(runner.run()) == ["--device nvidia.com/gpu=all"]


def test_docker_beside_the_runner_is_believed(runner: Runner) -> None:
    runner.env["STUB_INFO"] = TOOLKIT  # and no nvidia-smi in the runner's own pod
    assert merge_flags(runner.run()) == ["--gpus all"]


def test_a_driver_that_does_not_answer_is_no_gpu(runner: Runner) -> None:
    runner.has("nvidia-smi")
    runner.env |= {"STUB_INFO": TOOLKIT, "STUB_GPU_CODE": "9"}
    assert merge_flags(runner.run()) == []


def test_a_gpu_that_docker_cannot_hand_over_is_a_warning_and_a_merge_on_the_cpu(runner: Runner) -> None:
    runner.has("nvidia-smi")
    ran = runner.run()
    assert merge_flags(ran) == []
    assert "::warning title=adapter-merge::This runner has a GPU, but Docker cannot hand it over" in ran.log


def test_none_asks_nobody(runner: Runner) -> None:
    runner.has("nvidia-smi")
    runner.env["STUB_INFO"] = TOOLKIT
    assert merge_flags(runner.run(gpus="none")) == []


@pytest.mark.parametrize(
    ("engine", "expected"),
    [(TOOLKIT, ['--gpus "device=0,2"']), (CDI, ["--device nvidia.com/gpu=0", "--device nvidia.com/gpu=2"])],
    ids=["toolkit", "cdi"],
)
def test_a_list_names_the_devices(runner: Runner, engine: str, expected: list[str]) -> None:
    runner.env["STUB_INFO"] = engine
    assert merge_flags(runner.run(gpus="0,2")) == expected


@pytest.mark.parametrize("wanted", ["all", "0"])
def test_gpus_that_are_asked_for_and_not_there_are_an_error(runner: Runner, wanted: str) -> None:
    ran = runner.run(gpus=wanted)
    assert ran.code == 6
    assert f"::error title=adapter-merge::gpus is {wanted}, but Docker on this runner has no way" in ran.log
    assert not ran.phases()


def test_gpus_that_are_no_list_are_an_error(runner: Runner) -> None:
    ran = runner.run(gpus='0","capabilities=all')
    assert ran.code == 2
    assert "Choose auto, all, none, or a list" in ran.log


def test_a_device_that_is_cuda_insists_on_a_gpu(runner: Runner) -> None:
    ran = runner.run(device="cuda")
    assert ran.code == 6
    assert "::error title=adapter-merge::device is cuda, but Docker on this runner has no way" in ran.log
    assert not ran.phases()
    runner.env["STUB_INFO"] = TOOLKIT
    assert merge_flags(runner.run(device="cuda")) == ["--gpus all"]
    assert merge_flags(runner.run(device="cuda", gpus="0")) == ['--gpus "device=0"']


@pytest.mark.parametrize("device", ["cuda", "gpu", "CUDA", " Gpu "])
def test_a_device_that_is_cuda_and_no_gpus_is_usage(device: str, runner: Runner) -> None:
    ran = runner.run(device=device, gpus="none")
    assert ran.code == 2
    assert "device is cuda, and gpus is none. Leave one of them at auto." in ran.log
    assert not ran.phases()


@pytest.mark.parametrize("device", ["gpu", "CUDA"])
def test_however_the_device_is_spelled_it_insists_on_a_gpu(device: str, runner: Runner) -> None:
    assert resolve_choice("device", device, OPTIONS["device"].choices) == "cuda"
    ran = runner.run(device=device)
    assert ran.code == 6
    assert not ran.phases()


def test_the_words_for_gpus_may_be_written_large(runner: Runner) -> None:
    runner.env["STUB_INFO"] = TOOLKIT
    assert merge_flags(runner.run(gpus="None")) == []
    assert merge_flags(runner.run(gpus="All")) == ["--gpus all"]
