"""Where else a run is told: every place opted into, none of them ever a failure."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.action.conftest import EVENTS, PUSHED_TAG, Runner, Step
from tests.gh.fake import FakeGitHub
from tests.stories.conftest import World

Run = Callable[..., Step]
EVERYWHERE = "summary, check-run, comment, release, status, hub-comment"


def test_nothing_is_told_that_was_not_asked_for(run: Run, github: FakeGitHub) -> None:
    assert run().code == 0
    assert github.requests == []


def test_a_tag_push_is_told_everywhere(run: Run, runner: Runner, world: World, github: FakeGitHub) -> None:
    world.api.create_tag("demo/adapter", tag=PUSHED_TAG)
    runner.push_tag()
    step = run(report=EVERYWHERE)
    assert step.code == 0, step.log
    assert not step.annotations("warning"), step.log
    (check,) = github.kept.checks
    assert (check["conclusion"], check["head_sha"]) == ("success", "c" * 40)
    assert check["external_id"] == step.outputs["fingerprint"]
    assert "| touched |" in check["output"]["text"]
    (release,) = github.kept.releases
    assert release["tag_name"] == PUSHED_TAG
    assert "Verified and published" in release["body"]
    report = json.loads(github.kept.files["verification.json"])
    assert report["merge"]["fingerprint"] == step.outputs["fingerprint"]
    assert github.kept.files["SHA256SUMS"].decode().count("\n") == len(report["subject"]["files"]) + 1  # and itself
    (status,) = github.kept.statuses
    assert (status["state"], status["context"]) == ("success", "adapter-merge (demo/adapter)")
    (discussion,) = world.api.get_repo_discussions("demo/adapter")
    told = world.api.get_discussion_details("demo/adapter", discussion.num).events[0].content
    assert "demo/adapter-merged" in told
    assert PUSHED_TAG in told
    assert github.kept.comments == []


def test_a_pull_request_gets_one_comment_that_is_edited(run: Run, runner: Runner, github: FakeGitHub) -> None:
    runner.event("pull_request", EVENTS["pull_request"][0])
    assert run(report="comment").code == 0
    assert run(report="comment").outputs["status"] == "unchanged"
    (comment,) = github.kept.comments
    assert comment["edits"] == 1
    assert "✓ Unchanged" in comment["body"]


def test_a_refusal_is_told_too(run: Run, github: FakeGitHub) -> None:
    step = run(report="check-run,status", adapter="demo/base", target_repo="demo/mine")
    assert step.code == 3
    (check,) = github.kept.checks
    assert check["conclusion"] == "failure"
    (annotation,) = check["output"]["annotations"]
    assert annotation["annotation_level"] == "failure"
    assert annotation["path"] == ".github/workflows/merge.yml"
    assert github.kept.statuses[0]["state"] == "failure"


def test_the_publish_phase_reports_what_an_earlier_one_found(run: Run, github: FakeGitHub) -> None:
    inputs = {"report": "status", "adapter": "demo/base", "target_repo": "demo/mine"}
    first = run("fetch", **inputs)
    assert (first.code, first.outputs["status"], github.kept.statuses) == (3, "refused", [])
    last = run("publish", **inputs)
    assert (last.code, last.outputs, last.summary) == (3, {}, ""), "it was told once already"
    assert github.kept.statuses[0]["state"] == "failure"


def test_a_missing_permission_is_a_warning(run: Run, runner: Runner, github: FakeGitHub, world: World) -> None:
    runner.event("pull_request", EVENTS["pull_request"][0])
    github.denied |= {"checks", "pull-requests", "statuses", "contents"}
    step = run(report=EVERYWHERE)
    assert (step.code, step.outputs["status"]) == (0, "published")
    warnings = "".join(step.annotations("warning"))
    for permission in ("checks", "pull-requests", "statuses"):
        assert f"`permissions%3A {permission}%3A write`" in warnings.replace(": ", "%3A ")


def test_a_missing_github_token_is_a_warning(run: Run) -> None:
    step = run(report="check-run, comment")
    assert step.code == 0
    assert "there is no github-token" in step.annotations("warning")[0]


def test_a_github_that_fails_changes_nothing(run: Run, github: FakeGitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib3.util.retry.time.sleep", lambda seconds: None)
    github.broken = 500
    step = run(report="check-run")
    assert (step.code, step.outputs["status"]) == (0, "published")
    assert "GitHub keeps failing" in step.annotations("warning")[0]


def test_the_next_merge_goes_into_the_same_discussion(run: Run, world: World) -> None:
    assert run(report="hub-comment").code == 0
    world.new_version("v2", seed=5)
    assert run(report="hub-comment", adapter="demo/adapter@v2").code == 0
    (discussion,) = world.api.get_repo_discussions("demo/adapter")
    details = world.api.get_discussion_details("demo/adapter", discussion.num)
    assert [event.type for event in details.events] == ["comment", "comment"]
    assert "proposed to" in details.events[1].content


def test_no_summary_is_written_where_none_was_asked_for(run: Run) -> None:
    assert run(report="none").summary == ""


def test_of_several_adapters_each_is_told(run: Run, world: World, github: FakeGitHub) -> None:
    world.api.create_repo("demo/second")
    world.api.upload_folder(repo_id="demo/second", folder_path=world.adapter)
    step = run(report="check-run,status", adapter="demo/adapter, demo/second")
    assert step.code == 0, step.log
    title = "✓ 2 adapters: demo/adapter-merged published, demo/second-merged published"
    (check,) = github.kept.checks
    assert check["output"]["title"] == title
    assert check["external_id"].split(",") == json.loads(step.outputs["fingerprint"])
    assert check["output"]["text"].count("### Evidence") == 2
    (status,) = github.kept.statuses
    assert status["description"] == title
    assert status["target_url"] == "https://github.com/octo/adapters/actions/runs/1", "no one of them"
