"""The target is never the base or an adapter of the same merge, by whatever name: nothing of them is replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.action.conftest import Runner, runner
from tests.stories.conftest import Command, Ran, World
from tests.stories.test_bad_input import assert_said

__all__ = ["runner"]
INPUTS = ("demo/base", "demo/adapter")


@pytest.fixture
def untouched(world: World) -> Callable[[], None]:
    """Asserts that neither input has changed, and that no weight was downloaded."""
    before = {repo: world.api.model_info(repo).sha for repo in INPUTS}
    asked = world.answers()

    def check() -> None:
        assert {repo: world.api.model_info(repo).sha for repo in INPUTS} == before
        assert not [path for _, path, _ in world.hub.requests[asked:] if "/commit/" in path or "/preupload/" in path]

    return check


def refused(ran: Ran, role: str, repo: str) -> None:
    assert_said(ran, 2, f"The target is the {role} of this merge ({repo}")
    assert "Name another target" in ran.err


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
@pytest.mark.parametrize("how", ["auto", "push", "pr"])
@pytest.mark.parametrize("role", ["base", "adapter"])
def test_an_input_is_no_target(
    role: str, how: str, dry: tuple[str, ...], world: World, adapter_merge: Command, untouched: Callable[[], None]
) -> None:
    refused(adapter_merge("run", "demo/adapter", "--to", f"demo/{role}", "--publish", how, *dry), role, f"demo/{role}")
    untouched()


@pytest.mark.parametrize("target", ["Demo/BASE", "demo/once"])
def test_nor_under_another_spelling_or_an_older_name(
    target: str, world: World, adapter_merge: Command, untouched: Callable[[], None]
) -> None:
    world.api.move_repo("demo/base", "demo/other")
    world.api.move_repo("demo/other", "demo/once")
    world.api.move_repo("demo/once", "demo/base")
    refused(adapter_merge("run", "demo/adapter", "--to", target, "--publish", "push", "--force"), "base", "demo/base")
    # The adapter's config names the base by the name it had.
    world.api.move_repo("demo/base", "demo/new")
    refused(adapter_merge("run", "demo/adapter", "--to", "demo/new"), "base", "demo/new")
    world.api.move_repo("demo/new", "demo/base")
    untouched()


def test_nor_any_of_several_adapters(world: World, adapter_merge: Command, untouched: Callable[[], None]) -> None:
    world.api.create_repo("demo/second")
    world.api.upload_folder(repo_id="demo/second", folder_path=world.adapter)
    ran = adapter_merge("run", "demo/adapter", "demo/second", "--to", "demo/Second", "--weights", "1,1")
    refused(ran, "adapter", "demo/second")


def test_with_each_no_adapter_is_anothers_target(
    world: World, adapter_merge: Command, untouched: Callable[[], None]
) -> None:
    world.api.create_repo("demo/adapter-merged")
    world.api.upload_folder(repo_id="demo/adapter-merged", folder_path=world.adapter)
    ran = adapter_merge("run", "--each", "demo/adapter", "demo/Adapter-merged")
    assert_said(ran, 2, "demo/adapter would be published to demo/adapter-merged, which is one of the adapters")


@pytest.mark.parametrize("target", ["demo/base", "demo/ADAPTER"])
def test_nor_for_a_folder_that_was_merged_from_them(
    target: str, world: World, adapter_merge: Command, tmp_path: Path, untouched: Callable[[], None]
) -> None:
    made = tmp_path / "made"
    assert adapter_merge("merge", "demo/adapter", "-o", made, "--verify", "files").code == 0
    for more in ([], ["--dry-run"], ["--publish", "push", "--force"]):
        refused(adapter_merge("publish", made, "--to", target, *more), target[5:].lower(), f"demo/{target[5:].lower()}")
    untouched()


def test_nor_where_an_input_was_renamed_since(world: World, adapter_merge: Command, tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert adapter_merge("merge", "demo/adapter", "-o", made, "--verify", "files").code == 0
    world.api.move_repo("demo/base", "demo/renamed")
    ran = adapter_merge("publish", made, "--to", "demo/renamed", "--publish", "push")
    refused(ran, "base", "demo/base, which demo/renamed is another name of")


def test_nor_in_the_action(world: World, runner: Runner, untouched: Callable[[], None]) -> None:
    step = runner.step("fetch", adapter="demo/adapter", target_repo="demo/base", hf_token=world.hub.token)
    assert step.code == 2, step.log
    assert "The target is the base of this merge (demo/base)" in step.log
    both = {"adapter": "demo/adapter,demo/base", "target_repo": "demo/a,demo/adapter"}
    step = runner.step("fetch", **both, hf_token=world.hub.token)
    assert step.code == 2, step.log
    assert "which is one of the adapters to be merged" in step.log
    untouched()
