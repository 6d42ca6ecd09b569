"""The GPU goes to the merge where there is one and Docker can hand it over, by its own flag or by CDI."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from bot.action.inputs import OPTIONS
from bot.terminal.spelling import resolve_choice
from tests.launcher.conftest import ACTION, ROOT, Call, Ran, Runner

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


# --- which of the two images ----------------------------------------------------------------------------------------

CPU_IMAGE, CUDA_IMAGE = (f"ghcr.io/adapter-merge/adapter-merge@sha256:{two * 32}" for two in ("ab", "cd"))


@pytest.fixture
def released(runner: Runner) -> Runner:
    """A runner with a release of the action, of which both images are stamped into action.yml."""
    root = runner.root / "release"
    (root / "bot").mkdir(parents=True)
    for name in ("bot/launch.sh", "bot/__init__.py", "action.yml", ".github/stamp_image.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes((ROOT / name).read_bytes())
    stamp = [sys.executable, root / ".github/stamp_image.py", root / "action.yml", CPU_IMAGE, CUDA_IMAGE]
    subprocess.run(stamp, check=True)
    runner.action = yaml.safe_load((root / "action.yml").read_text())
    runner.env |= {"GITHUB_ACTION_PATH": str(root), "STUB_INFO": TOOLKIT}
    return runner


def image_of(ran: Ran) -> str:
    """The one image of all phases."""
    assert ran.code == 0, ran.log
    used = {argument for call in ran.phases().values() for argument in call.arguments if "@sha256:" in argument}
    assert len(ran.phases()) == 4
    assert len(used) == 1
    return used.pop()


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({}, CUDA_IMAGE),
        ({"gpus": "0"}, CUDA_IMAGE),
        ({"device": "cuda"}, CUDA_IMAGE),
        ({"image": ""}, CUDA_IMAGE),
        ({"gpus": "none"}, CPU_IMAGE),
        ({"device": "cpu"}, CPU_IMAGE),
        ({"image": "cpu"}, CPU_IMAGE),
        ({"image": "cuda", "gpus": "none"}, CUDA_IMAGE),
        ({"image": f"own.example/merge@sha256:{'ef' * 32}"}, f"own.example/merge@sha256:{'ef' * 32}"),
    ],
)
def test_the_image_with_cuda_is_for_a_merge_that_gets_a_gpu(
    inputs: dict[str, str], expected: str, released: Runner
) -> None:
    assert image_of(released.run(**{"image": CPU_IMAGE} | inputs)) == expected


def test_a_runner_without_a_gpu_pulls_the_small_image(released: Runner) -> None:
    del released.env["STUB_INFO"]
    released.env["STUB_INSPECT_CODE"] = "1"
    ran = released.run(image=CPU_IMAGE)
    assert image_of(ran) == CPU_IMAGE
    assert [call.arguments[-1] for call in ran.calls if "pull" in call.arguments] == [CPU_IMAGE]


def test_an_image_with_cuda_that_was_never_built_is_said(runner: Runner) -> None:
    ran = runner.run(image="cuda")
    assert ran.code == 2
    assert "is not a release, so that it has no image yet" in ran.log
    assert ACTION["runs"]["steps"][0]["env"]["CUDA_IMAGE"].endswith("0" * 64)
