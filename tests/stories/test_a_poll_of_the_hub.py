"""No server, no webhook: a poll now and then turns a tag on the Hub into a proven merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.stories.conftest import Command, World
from tests.stories.test_a_tag_on_the_hub import wait_for


def test_a_tag_is_merged_by_polls_alone(world: World, adapter_merge: Command, tmp_path: Path) -> None:
    state = tmp_path / "state" / "bot.db"

    def poll(*more: str) -> list[dict[str, Any]]:
        ran = adapter_merge("poll", "--allow", "demo/*", "--state", state, "--json", *more)
        assert ran.code == 0, ran.err
        tags: list[dict[str, Any]] = json.loads(ran.out)["tags"]
        return tags

    dry = poll("--dry-run")
    assert [(tag["adapter"], tag["tag"], tag["status"]) for tag in dry] == [("demo/adapter", "v1", "missing")]
    assert not state.exists()
    assert [tag["status"] for tag in poll()] == ["dispatched"]
    # Whoever comes by meanwhile, with the state or without it, starts nothing.
    assert [tag["status"] for tag in poll()] == ["known"]
    for left in state.parent.glob("bot.db*"):
        if left.is_file():
            left.unlink()
    assert [tag["status"] for tag in poll()] == ["dispatched"]
    wait_for(lambda: any(state.parent.glob("bot.db.runs/*/exit")))
    assert [path.read_text().count("\n") for path in state.parent.glob("bot.db.runs/*/starts")] == [1]
    report = json.loads(Path(world.api.hf_hub_download("demo/adapter-merged", "verification.json")).read_text())
    assert report["verdict"] == "verified"
    elsewhere = adapter_merge("poll", "--allow", "demo/*", "--state", tmp_path / "other.db", "--json")
    assert [tag["status"] for tag in json.loads(elsewhere.out)["tags"]] == ["published"]


def test_what_a_poll_prints(world: World, adapter_merge: Command, tmp_path: Path) -> None:
    state = tmp_path / "bot.db"
    ran = adapter_merge("poll", "--allow", "demo/adapter", "--allow", "demo/gone", "--state", state, "--dry-run")
    assert ran.code == 5
    assert ran.out == "missing  demo/adapter@v1  It is merged nowhere yet.\n"
    assert "demo/gone" in ran.err
    none = adapter_merge("poll", "--allow", "demo/adapter", "--tags", "x*", "--state", state, "--dry-run")
    assert (none.code, none.out) == (0, "No tag of an allowed adapter fits.\n")


def test_a_poll_that_cannot_be_is_refused(world: World, adapter_merge: Command, tmp_path: Path) -> None:
    for arguments, words in (
        ((), "No adapter is allowed to start a merge."),
        (("--allow", "*/*"), "The repos of --allow */* cannot be listed."),
        (("--allow", "demo/*", "--announce"), "ADAPTER_MERGE_HUB_TOKEN is not set."),
        (("--allow", "demo/*", "--commands-from", "alice"), "--commands-from is of no use"),
    ):
        ran = adapter_merge("poll", "--state", tmp_path / "bot.db", *arguments)
        assert (ran.code, words in ran.err) == (2, True), ran.err
