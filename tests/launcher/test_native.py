"""Inside the image, and where the package is installed: plain children, each with its own token."""

from __future__ import annotations

import pytest

from tests.launcher.conftest import GITHUB_TOKEN, READ, VERSION, WRITE, Runner


def test_auto_is_native_where_the_package_is_of_the_actions_own_version(runner: Runner) -> None:
    runner.env["STUB_INSTALLED"] = VERSION
    ran = runner.run()
    assert ran.code == 0, ran.log
    assert f"Runtime native: adapter-merge {VERSION} is installed here, which is the action's own version." in ran.log
    assert {call.name for call in ran.calls} == {"python3"}
    assert [call.arguments for call in ran.calls if call.phase] == [
        ["-P", "-m", "bot.action", phase] for phase in ("preflight", "fetch", "merge", "publish")
    ]


def test_auto_is_docker_elsewhere_also_beside_a_folder_named_bot(runner: Runner) -> None:
    (runner.workspace / "bot/action").mkdir(parents=True)
    assert {call.name for call in runner.run().calls if call.phase} == {"docker"}


def test_auto_is_docker_where_another_version_is_installed(runner: Runner) -> None:
    runner.env["STUB_INSTALLED"] = "0.0.9"
    ran = runner.run()
    assert ran.code == 0, ran.log
    assert {call.name for call in ran.calls if call.phase} == {"docker"}
    assert f"Runtime docker: adapter-merge 0.0.9 is installed here, and the action is {VERSION}." in ran.log


def test_another_version_and_no_docker_is_an_end_that_names_both(runner: Runner) -> None:
    runner.env["STUB_INSTALLED"] = "0.0.9"
    runner.lacks("docker")
    ran = runner.run()
    assert ran.code == 2
    assert f"adapter-merge 0.0.9 is installed here, the action is {VERSION}, and there is no docker" in ran.log
    assert not ran.phases()


def test_native_takes_another_version_with_a_warning(runner: Runner) -> None:
    runner.env["STUB_INSTALLED"] = "0.0.9"
    ran = runner.run(runtime="native")
    assert ran.code == 0
    assert {call.name for call in ran.calls if call.phase} == {"python3"}
    assert (
        f"::warning title=adapter-merge::adapter-merge 0.0.9 is installed here, and the action is {VERSION}" in ran.log
    )


def test_docker_can_be_asked_for_where_the_package_is(runner: Runner) -> None:
    runner.env["STUB_INSTALLED"] = VERSION
    assert {call.name for call in runner.run(runtime="docker").calls if call.phase} == {"docker"}


def test_each_child_has_its_own_token_and_the_merge_has_none(runner: Runner) -> None:
    runner.env |= {"STUB_INSTALLED": VERSION, "GITHUB_TOKEN": GITHUB_TOKEN, "HF_TOKEN": WRITE}
    phases = runner.run(hf_token=WRITE, hf_read_token=READ).phases()
    known = {WRITE, READ, GITHUB_TOKEN, "ey.neverOurs"}
    held = {phase: known & set(call.env.values()) for phase, call in phases.items()}
    assert held == {"preflight": {WRITE}, "fetch": {READ}, "merge": set(), "publish": {WRITE, GITHUB_TOKEN}}
    assert [name for name, call in phases.items() if call.env.get("HF_HUB_OFFLINE")] == ["merge"]


def test_a_child_knows_the_work_folder_and_the_cache(runner: Runner) -> None:
    runner.env["STUB_INSTALLED"] = VERSION
    env = runner.run().phases()["merge"].env
    assert env["ADAPTER_MERGE_WORK"] == f"{runner.temp}/adapter-merge"
    assert env["HF_HOME"] == f"{runner.root}/tools/adapter-merge"


@pytest.mark.parametrize("phase", ["preflight", "fetch", "merge", "publish"])
def test_the_exit_code_of_a_child_is_the_steps(runner: Runner, phase: str) -> None:
    runner.env |= {"STUB_INSTALLED": VERSION, f"STUB_{phase.upper()}_CODE": "5"}
    assert runner.run().code == 5


def test_native_without_the_package_says_how_to_get_it(runner: Runner) -> None:
    ran = runner.run(runtime="native")
    assert ran.code == 2
    assert "::error title=adapter-merge::runtime is native, but python3 on this runner does not have" in ran.log
    runner.lacks("python3")
    assert runner.run(runtime="native").code == 2


def test_cache_dir_wins_over_the_jobs_own_cache_with_a_word(runner: Runner) -> None:
    runner.env |= {"STUB_INSTALLED": VERSION, "HF_HUB_CACHE": str(runner.root / "elsewhere")}
    ran = runner.run(cache_dir=str(runner.root / "mine"))
    assert ran.code == 0, ran.log
    assert (
        f"::notice title=adapter-merge::cache-dir wins over HF_HUB_CACHE, which is {runner.root}/elsewhere here."
        in ran.log
    )
    for call in ran.phases().values():
        assert call.env["HF_HOME"] == call.env["INPUT_CACHE_DIR"] == f"{runner.root}/mine"
        assert "HF_HUB_CACHE" not in call.env


@pytest.mark.parametrize("name", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
def test_without_cache_dir_the_jobs_own_cache_is_taken(name: str, runner: Runner) -> None:
    runner.env |= {"STUB_INSTALLED": VERSION, name: str(runner.root / "elsewhere/hub")}
    env = runner.run().phases()["fetch"].env
    assert env["HF_HUB_CACHE"] == f"{runner.root}/elsewhere/hub"
    assert not env["INPUT_CACHE_DIR"]
