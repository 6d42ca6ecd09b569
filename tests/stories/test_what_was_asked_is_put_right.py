"""A run that finds its merge there already still brings the rest of what was asked for: without merging again."""

from __future__ import annotations

import pytest

from tests.stories.conftest import Command, World

MERGED = "demo/adapter-merged"
RUN = ("run", "demo/adapter@v1", "--verify", "weights")


@pytest.fixture
def existing(world: World) -> None:
    """Somebody's model at the target."""
    world.api.create_repo(MERGED)
    world.api.upload_file(path_or_fileobj=b"older", path_in_repo="model.safetensors", repo_id=MERGED)


def weights_read(world: World, before: int) -> bool:
    return any(
        "resolve" in path and "base/" in path and ".safetensors" in path for _, path, _ in world.hub.requests[before:]
    )


@pytest.mark.usefixtures("existing")
def test_what_was_proposed_can_be_pushed(world: World, adapter_merge: Command) -> None:
    assert "pull request #1" in adapter_merge(*RUN).out
    ran = adapter_merge(*RUN, "--publish", "push")
    assert ran.code == 0, ran.err
    assert "published: pushed to demo/adapter-merged, tag v1" in ran.out
    assert "Pull request 1 proposed this merge; it is closed, since main holds it now." in ran.err
    assert [pull.status for pull in world.api.get_repo_discussions(MERGED)] == ["closed"]
    assert "unchanged" in adapter_merge(*RUN, "--publish", "push").out
    assert "unchanged" in adapter_merge(*RUN).out


@pytest.mark.usefixtures("existing")
def test_a_draft_that_a_killed_run_left_is_opened_without_a_merge(world: World, adapter_merge: Command) -> None:
    assert adapter_merge(*RUN).code == 0
    with world.hub.site.db.write() as rows:
        rows.execute("UPDATE discussion SET status = 'draft'")
    before = world.answers()
    ran = adapter_merge(*RUN)
    assert ran.code == 0, ran.err
    assert "unchanged" in ran.out
    assert [pull.status for pull in world.api.get_repo_discussions(MERGED)] == ["open"]
    assert not weights_read(world, before)


def test_a_target_that_is_to_be_public_is_made_so(world: World, adapter_merge: Command) -> None:
    assert adapter_merge(*RUN, "--private", "true").code == 0
    assert world.api.model_info(MERGED).private
    before = world.answers()
    ran = adapter_merge(*RUN, "--private", "false")
    assert "is public now, as asked" in ran.out + ran.err
    assert not world.api.model_info(MERGED).private
    assert not weights_read(world, before)
    ran = adapter_merge(*RUN, "--private", "true", "--dry-run")  # which changes nothing
    assert not world.api.model_info(MERGED).private
