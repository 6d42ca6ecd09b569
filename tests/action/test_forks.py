"""Strangers' pull requests get a plan and nothing else, whatever the workflow hands over."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from bot.action.event import read_event
from tests.action.conftest import EVENTS, Runner, Step
from tests.gh.fake import FakeGitHub
from tests.stories.conftest import World

Run = Callable[..., Step]


def pull_request(*, fork: bool) -> dict[str, Any]:
    """GitHub's example of an opened pull request, from a fork or from the repository itself."""
    payload = copy.deepcopy(EVENTS["pull_request"][0])
    if fork:
        payload["pull_request"]["head"]["repo"] |= {"full_name": "stranger/Hello-World", "fork": True}
    return payload


@pytest.mark.parametrize("name", ["pull_request", "pull_request_target"])
def test_a_stranger_gets_a_plan_and_nothing_is_written(name: str, run: Run, runner: Runner, world: World) -> None:
    runner.event(name, pull_request(fork=True), "refs/pull/2/merge")
    before = len(world.hub.requests)
    step = run(hf_token="hf_refusedIfItWereUsed")
    assert step.code == 0, step.log
    assert (step.outputs["status"], step.outputs["verified"], step.outputs["repo"]) == ("dry-run", "false", "")
    assert "Nothing is published by this event" in step.summary
    assert "14 merged" in step.summary
    assert step.annotations("notice")[0].startswith("::notice title=adapter-merge::Plan only")
    asked = world.hub.requests[before:]
    assert {method for method, _, _ in asked} <= {"GET", "HEAD", "POST"}
    assert not [path for method, path, _ in asked if method == "POST" and "paths-info" not in path]
    assert not [path for _, path, status in asked if "model-0000" in path and "json" not in path and status == 200]


def test_pull_request_target_is_planned_only_even_from_the_same_repository(run: Run, runner: Runner) -> None:
    runner.event("pull_request_target", pull_request(fork=False))
    assert run().outputs["status"] == "dry-run"


def test_a_pull_request_of_the_repository_itself_publishes(run: Run, runner: Runner) -> None:
    runner.event("pull_request", pull_request(fork=False))
    assert run().outputs["status"] == "published"


def test_a_strangers_plan_can_be_told_in_a_comment(run: Run, runner: Runner, github: FakeGitHub) -> None:
    runner.event("pull_request_target", pull_request(fork=True))
    assert run(report="comment").code == 0
    (comment,) = github.kept.comments
    assert "Plan only" in comment["body"]


def test_a_strangers_plan_is_refused_as_any_other(run: Run, runner: Runner) -> None:
    runner.event("pull_request", pull_request(fork=True))
    step = run(adapter="demo/base", target_repo="demo/x")
    assert (step.code, step.outputs["status"]) == (3, "refused")


def deleted_fork() -> dict[str, Any]:
    payload = pull_request(fork=True)
    payload["pull_request"]["head"]["repo"] = None
    return payload


FOREIGN_RUN = {
    "workflow_run": {"head_repository": {"full_name": "stranger/adapters"}},
    "repository": {"full_name": "octo/adapters"},
}
OWN_RUN = {
    "workflow_run": {"head_repository": {"full_name": "octo/adapters"}},
    "repository": {"full_name": "octo/adapters"},
}
# event: (name, payload, whether it may publish)
WHO: dict[str, tuple[str, dict[str, Any], bool]] = {
    "a tag push": ("push", EVENTS["push"][0], True),
    "a manual run": ("workflow_dispatch", EVENTS["workflow_dispatch"][0], True),
    "a dispatch from outside": ("repository_dispatch", EVENTS["repository_dispatch"][0], True),
    "a release": ("release", EVENTS["release"][0], True),
    "a pull request of the repository": ("pull_request", pull_request(fork=False), True),
    "a pull request from a fork": ("pull_request", pull_request(fork=True), False),
    "a pull request from a deleted fork": ("pull_request", deleted_fork(), False),
    "a review in a fork's pull request": ("pull_request_review", pull_request(fork=True), False),
    "a pull request that cannot be read": ("pull_request", {}, False),
    "a run after a fork's run": ("workflow_run", FOREIGN_RUN, False),
    "a run after a run of the repository": ("workflow_run", OWN_RUN, True),
    "a run after one that cannot be read": ("workflow_run", {}, False),
}


@pytest.mark.parametrize("who", WHO)
def test_who_may_publish(who: str, runner: Runner) -> None:
    name, payload, may = WHO[who]
    runner.event(name, payload)
    assert (read_event(runner.environment).plan_only == "") is may


def test_the_event_says_where_to_report(runner: Runner) -> None:
    runner.event("pull_request", pull_request(fork=False), "refs/pull/2/merge")
    event = read_event(runner.environment)
    payload = EVENTS["pull_request"][0]["pull_request"]
    assert (event.pull, event.sha) == (payload["number"], payload["head"]["sha"])
    assert event.workflow == ".github/workflows/merge.yml"
    runner.push_tag()
    event = read_event(runner.environment)
    assert (event.tag, event.pull, event.sha) == ("simple-tag", None, "c" * 40)
