"""The card's picture lies beside it: drawn with the report, published in the same commit, and proven by nothing."""

from __future__ import annotations

import json
from pathlib import Path

from bot.report_document import PICTURE
from tests.stories.conftest import Command, World

MERGED = "demo/adapter-merged"
PNG = b"\x89PNG\r\n\x1a\n"


def merged(adapter_merge: Command, out: Path, *words: str | Path) -> Path:
    ran = adapter_merge("merge", "demo/adapter", "-o", out, *words)
    assert ran.code == 0, ran.err
    return out


def test_a_proof_of_the_weights_is_pictured_and_its_report_does_not_name_the_file(
    world: World, adapter_merge: Command, tmp_path: Path
) -> None:
    out = merged(adapter_merge, tmp_path / "out", "--verify", "weights")
    assert (out / PICTURE).read_bytes().startswith(PNG)
    assert f"]({PICTURE})" in (out / "README.md").read_text()
    report = json.loads((out / "verification.json").read_text())
    assert report["delta"]
    assert not {PICTURE, "README.md"} & report["subject"]["files"].keys()
    again = adapter_merge("verify", out, "--verify", "weights", "-v")
    assert again.code == 0, again.out
    assert "0 strays" in again.out


def test_without_a_comparison_of_the_weights_there_is_none(
    world: World, adapter_merge: Command, tmp_path: Path
) -> None:
    out = merged(adapter_merge, tmp_path / "out", "--verify", "files")
    assert not (out / PICTURE).exists()
    assert PICTURE not in (out / "README.md").read_text()


def test_it_is_published_in_the_one_commit_and_a_second_run_changes_nothing(
    world: World, adapter_merge: Command
) -> None:
    assert adapter_merge("run", "demo/adapter", "--verify", "weights").code == 0
    assert PICTURE in world.api.list_repo_files(MERGED)
    commits = [commit.commit_id for commit in world.api.list_repo_commits(MERGED)]
    again = adapter_merge("run", "demo/adapter", "--verify", "weights", "--json")
    assert json.loads(again.out)["status"] == "unchanged"
    assert [commit.commit_id for commit in world.api.list_repo_commits(MERGED)] == commits


def test_a_card_that_was_written_otherwise_is_not_published_again(world: World, adapter_merge: Command) -> None:
    """As by an earlier version: the merge is known by its fingerprint."""
    assert adapter_merge("run", "demo/adapter", "--verify", "weights").code == 0
    world.api.upload_file(
        repo_id=MERGED, path_in_repo="README.md", path_or_fileobj=b"---\nlicense: mit\n---\n\n# As it was\n"
    )
    world.api.delete_file(PICTURE, repo_id=MERGED)
    again = adapter_merge("run", "demo/adapter", "--verify", "weights", "--json")
    assert json.loads(again.out)["status"] == "unchanged"
    assert PICTURE not in world.api.list_repo_files(MERGED)


def test_the_picture_of_an_older_merge_goes_with_it(world: World, adapter_merge: Command) -> None:
    assert adapter_merge("run", "demo/adapter", "--verify", "weights").code == 0
    world.new_version("v2", seed=7)
    ran = adapter_merge("run", "demo/adapter@v2", "--verify", "files", "--publish", "push")
    assert ran.code == 0, ran.err
    assert PICTURE not in world.api.list_repo_files(MERGED)
