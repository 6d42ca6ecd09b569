"""What a GitHub tag means for an adapter on the Hub: its tag of that name, else of that version, else main."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bot.action.github_tag import candidates
from bot.devhub.faults import Fault
from tests.action.conftest import EVENTS, Runner, Step
from tests.stories.conftest import World

Run = Callable[..., Step]

# pushed tag: the names looked for on the Hub, in their order
NAMES = {
    "v1.0": ("v1.0", "1.0"),
    "1.0": ("1.0", "v1.0"),
    "adapter-v1.0": ("adapter-v1.0", "v1.0", "1.0"),
    "lora@1.0.0": ("lora@1.0.0", "1.0.0", "v1.0.0"),
    "release/2024.1": ("release/2024.1", "2024.1", "v2024.1"),
    "adapter-2": ("adapter-2", "2", "v2"),
    "adapter-v1.0-rc1": ("adapter-v1.0-rc1", "v1.0-rc1", "1.0-rc1"),
    "llama-3.1-v2": ("llama-3.1-v2", "3.1-v2", "v2", "v3.1-v2", "2"),
    "v1.0-2": ("v1.0-2", "1.0-2"),
    "1.0-2": ("1.0-2", "v1.0-2"),
    "adapter-1.0-2": ("adapter-1.0-2", "1.0-2", "v1.0-2"),
    "adapter-v2.0-rc-1": ("adapter-v2.0-rc-1", "v2.0-rc-1", "2.0-rc-1"),
    "v1.2.0-hotfix-3": ("v1.2.0-hotfix-3", "1.2.0-hotfix-3"),
    "adapter-v3-epoch-2": ("adapter-v3-epoch-2", "v3-epoch-2", "3-epoch-2"),
    "adapter-3-epoch-2": ("adapter-3-epoch-2", "3-epoch-2", "v3-epoch-2"),
    "adapter-v1.0-base-v2": ("adapter-v1.0-base-v2", "v1.0-base-v2", "1.0-base-v2"),
    "2025.01.02-hotfix-1": ("2025.01.02-hotfix-1", "v2025.01.02-hotfix-1"),
    "2025.01.02-v2": ("2025.01.02-v2", "v2025.01.02-v2"),
    "release/2024-01-05": ("release/2024-01-05", "2024-01-05", "v2024-01-05"),
    "llama-3-8b-1.2": ("llama-3-8b-1.2", "3-8b-1.2", "1.2", "v3-8b-1.2", "v1.2"),
    "latest": ("latest",),
    "stable-release": ("stable-release",),
}


@pytest.mark.parametrize("tag", NAMES)
def test_the_names_that_a_pushed_tag_may_have_on_the_hub(tag: str) -> None:
    assert candidates(tag) == NAMES[tag]


def pushed(runner: Runner, tag: str, name: str = "push") -> None:
    runner.event(name, EVENTS[name][0], f"refs/tags/{tag}")


def test_readmes_snippet_works_with_an_adapter_that_has_no_such_tag(run: Run, runner: Runner, world: World) -> None:
    world.api.delete_tag("demo/adapter", tag="v1")
    pushed(runner, "adapter-v1.0")
    step = run()
    assert step.code == 0, step.log
    assert (step.outputs["status"], step.outputs["tag"]) == ("published", "")
    assert step.outputs["adapter-sha"] == world.api.model_info("demo/adapter").sha
    (notice,) = step.annotations("notice")
    assert "demo/adapter has no tag adapter-v1.0 and none of its version, so that its main branch is merged" in notice
    assert "adapter-revision can name another" in notice


@pytest.mark.parametrize("tag", ["v1", "adapter-v1", "lora@1", "1"])
def test_the_tag_of_that_version_is_merged_where_there_is_one(tag: str, run: Run, runner: Runner, world: World) -> None:
    world.new_version("later", seed=9)  # main has moved on
    pushed(runner, tag)
    step = run()
    assert step.code == 0, step.log
    assert step.outputs["tag"] == "v1"
    assert step.outputs["adapter-sha"] == world.api.model_info("demo/adapter", revision="v1").sha
    assert bool(step.annotations("notice")) is (tag != "v1")


def test_a_pre_release_merges_no_other_version(run: Run, runner: Runner, world: World) -> None:
    later = world.new_version("later", seed=9)
    pushed(runner, "adapter-v2.0-rc-1")  # the adapter's v1 is another one
    step = run()
    assert step.code == 0, step.log
    assert (step.outputs["tag"], step.outputs["adapter-sha"]) == ("later", later)


def test_the_tag_of_that_very_name_comes_first(run: Run, runner: Runner, world: World) -> None:
    sha = world.new_version("lora@1.0.0", seed=9)
    world.new_version("1.0.0", seed=10)
    pushed(runner, "lora@1.0.0")
    step = run()
    assert step.code == 0, step.log
    assert (step.outputs["tag"], step.outputs["adapter-sha"]) == ("lora@1.0.0", sha)
    assert not step.annotations("notice")


@pytest.mark.parametrize("written", ["adapter", "adapter_revision"])
def test_a_tag_with_an_at_in_it_can_be_named(written: str, run: Run, world: World) -> None:
    sha = world.new_version("lora@1.0.0", seed=9)
    named = {"adapter": "demo/adapter@lora@1.0.0"} if written == "adapter" else {"adapter_revision": "lora@1.0.0"}
    step = run(**named)
    assert step.code == 0, step.log
    assert (step.outputs["tag"], step.outputs["adapter-sha"]) == ("lora@1.0.0", sha)
    assert run(**named).outputs["status"] == "unchanged"


def test_a_run_by_hand_takes_main_whatever_its_form_chose(run: Run, runner: Runner, world: World) -> None:
    later = world.new_version("later", seed=9)
    pushed(runner, "v1", "workflow_dispatch")
    step = run()
    assert step.code == 0, step.log
    assert step.outputs["adapter-sha"] == later
    assert not step.annotations("notice")


def test_a_revision_that_is_asked_for_wins_over_the_pushed_tag(run: Run, runner: Runner, world: World) -> None:
    sha = world.new_version("v2", seed=9)
    pushed(runner, "v1")
    assert run(adapter_revision="v2").outputs["adapter-sha"] == sha


def test_a_hub_that_lists_no_tags_is_asked_for_each(run: Run, runner: Runner, world: World) -> None:
    world.new_version("later", seed=9)
    world.hub.faults.add(Fault(path=r"/refs", status=400, times=1, body='{"error": "no such route"}'))
    pushed(runner, "adapter-v1")
    step = run()
    assert step.code == 0, step.log
    assert step.outputs["adapter-sha"] == world.api.model_info("demo/adapter", revision="v1").sha


def test_of_several_adapters_each_is_taken_at_its_own_tag(run: Run, runner: Runner, world: World) -> None:
    world.api.create_repo("demo/second")
    world.api.upload_folder(repo_id="demo/second", folder_path=world.adapter)
    world.api.create_tag("demo/second", tag="1.0")
    world.api.create_tag("demo/adapter", tag="v1.0")
    pushed(runner, "adapter-v1.0")
    step = run(adapter="demo/adapter, demo/second", combine="cat", target_repo="demo/both")
    assert step.code == 0, step.log
    assert "means the tag v1.0 of demo/adapter" in step.log
    assert "means the tag 1.0 of demo/second" in step.log


def test_an_adapter_deeper_in_a_repo_is_taken_at_the_repos_tag(run: Run, runner: Runner, world: World) -> None:
    world.api.upload_folder(repo_id="demo/adapter", folder_path=world.adapter, path_in_repo="checkpoint-5")
    world.api.create_tag("demo/adapter", tag="v5")
    pushed(runner, "adapter-v5")
    step = run(adapter="demo/adapter/checkpoint-5", target_repo="demo/deeper")
    assert step.code == 0, step.log
    assert (step.outputs["tag"], step.outputs["repo"]) == ("v5", "demo/deeper")


def test_of_an_adapter_that_is_not_there_no_tag_is_missed(run: Run, runner: Runner) -> None:
    pushed(runner, "v1")
    step = run(adapter="demo/nobody")
    assert step.code == 5
    assert "demo/nobody does not exist" in step.annotations("error")[0]
    assert not step.annotations("notice")
