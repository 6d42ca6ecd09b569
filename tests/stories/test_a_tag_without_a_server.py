"""A tag on the Hub becomes a proven merge without any server of ours: the webhook starts a Job, and that merges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stories.conftest import Command, World


def test_a_tag_starts_a_job_that_merges(world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_MERGE_HUB_TOKEN", world.hub.token)
    installed = adapter_merge("bot", "install", "--jobs", "--allow", "demo/adapter", "--option", "verify=weights")
    assert installed.code == 0, installed.err
    world.hub.drain_jobs()
    world.api.create_tag("demo/adapter", tag="v2")
    world.hub.drain_webhooks()
    job = world.hub.drain_jobs(240)[0]
    assert job.stage == "COMPLETED", world.hub.site.jobs.lines(job)
    report = json.loads(Path(world.api.hf_hub_download("demo/adapter-merged", "verification.json")).read_text())
    assert report["verdict"] == "verified"
    assert {tag.name for tag in world.api.list_repo_refs("demo/adapter-merged").tags} == {"v2"}
    # The merge's own commits and its tag are events too: of a repo that nobody watches.
    world.hub.drain_webhooks()
    assert [each.initiator["type"] for each in world.hub.jobs()] == ["webhook", "user"]


def test_dispatched_by_hand_a_job_merges_on_the_machine_that_the_plan_fits_on(
    world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ADAPTER_MERGE_HUB_TOKEN", world.hub.token)
    ran = adapter_merge(
        "dispatch", "demo/adapter@v1", "--backend", "jobs", "--option", "verify=weights", "--state", tmp_path / "bot.db", "--wait"
    )  # fmt: skip
    assert ran.code == 0, ran.out + ran.err
    (job,) = world.hub.jobs()
    assert (job.spec["flavor"], job.spec["timeoutSeconds"]) == ("cpu-basic", 1800)
    assert world.api.repo_exists("demo/adapter-merged")
    assert "published" in ran.out
    assert "(cpu-basic, $0.01 an hour ($0.0002 a minute), at most 0.5 h, $0.01)" in ran.out
