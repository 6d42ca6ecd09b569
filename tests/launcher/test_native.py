"""Inside the image, and where the package is installed: plain children, each with its own token."""

from __future__ import annotations

import pytest

from tests.launcher.conftest import GITHUB_TOKEN, READ, WRITE, Runner


@pytest.mark.parametrize("sign", ["STUB_INSTALLED", "ADAPTER_MERGE_IMAGE"])
def test_auto_is_native_where_the_package_is(runner: Runner, sign: str) -> None:
    runner.env[sign] = "1"
    ran = runner.run()
    assert ran.code == 0, ran.log
    assert {call.name for call in ran.calls} == {"python3"}
    assert [call.arguments for call in ran.calls if call.phase] == [
        ["-P", "-m", "bot.action", phase] for phase in ("preflight", "fetch", "merge", "publish")
    ]


def test_auto_is_docker_elsewhere_also_beside_a_folder_named_bot(runner: Runner) -> None:
    (runner.workspace / "bot/action").mkdir(parents=True)
    assert {call.name for call in runner.run().calls if call.phase} == {"docker"}


def test_docker_can_be_asked_for_where_the_package_is(runner: Runner) -> None:
    runner.env["STUB_INSTALLED"] = "1"
    assert {call.name for call in runner.run(runtime="docker").calls if call.phase} == {"docker"}


def test_each_child_has_its_own_token_and_the_merge_has_none(runner: Runner) -> None:
    runner.env |= {"STUB_INSTALLED": "1", "GITHUB_TOKEN": GITHUB_TOKEN, "HF_TOKEN": WRITE}
    phases = runner.run(hf_token=WRITE, hf_read_token=READ).phases()
    known = {WRITE, READ, GITHUB_TOKEN, "ey.neverOurs"}
    held = {phase: known & set(call.env.values()) for phase, call in phases.items()}
    assert held == {"preflight": {WRITE}, "fetch": {READ}, "merge": set(), "publish": {WRITE, GITHUB_TOKEN}}
    assert [name for name, call in phases.items() if call.env.get("HF_HUB_OFFLINE")] == ["merge"]


def test_a_child_knows_the_work_folder_and_the_cache(runner: Runner) -> None:
    runner.env["STUB_INSTALLED"] = "1"
    env = runner.run().phases()["merge"].env
    assert env["ADAPTER_MERGE_WORK"] == f"{runner.temp}/adapter-merge"
    assert env["HF_HOME"] == f"{runner.root}/tools/adapter-merge"


@pytest.mark.parametrize("phase", ["preflight", "fetch", "merge", "publish"])
def test_the_exit_code_of_a_child_is_the_steps(runner: Runner, phase: str) -> None:
    runner.env |= {"STUB_INSTALLED": "1", f"STUB_{phase.upper()}_CODE": "5"}
    assert runner.run().code == 5


def test_native_without_the_package_says_how_to_get_it(runner: Runner) -> None:
    ran = runner.run(runtime="native")
    assert ran.code == 2
    assert "::error title=adapter-merge::runtime is native, but python3 on this runner does not have" in ran.log
    runner.lacks("python3")
    assert runner.run(runtime="native").code == 2
