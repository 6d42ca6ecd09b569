"""Rights and fit are looked at before the first weight: a run that cannot be published ends before any download."""

from __future__ import annotations

import pytest

from bot.devhub import Fault
from tests.stories.conftest import Command, World
from tests.stories.test_bad_input import assert_said

MERGED = "demo/adapter-merged"


def nothing_was_downloaded(world: World, err: str) -> None:
    """No weight left the Hub: headers are read by ranges."""
    assert "Downloading" not in err
    assert not any(path.endswith(".safetensors") and method == "HEAD" for method, path, _ in world.hub.requests)


@pytest.mark.parametrize("dry", [False, True], ids=["run", "dry run"])
def test_a_token_that_may_not_create_the_target(
    dry: bool, world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = world.hub.create_token("demo", "fine-grained", [MERGED, "demo/base", "demo/adapter"])
    monkeypatch.setenv("HF_TOKEN", token)
    ran = adapter_merge("run", "demo/adapter", *(["--dry-run"] if dry else []))
    if dry:
        assert ran.code == 0, ran.err
        assert f"Publishing would fail: {MERGED} does not exist, and this fine-grained token may not create" in ran.err
    else:
        assert_said(ran, 5, "it lacks repo.write on demo")
    nothing_was_downloaded(world, ran.err)


@pytest.mark.parametrize("private", ["auto", "true"])
def test_a_private_input_and_a_target_that_is_public_already(
    private: str, world: World, adapter_merge: Command
) -> None:
    world.api.update_repo_settings("demo/adapter", private=True)
    world.api.create_repo(MERGED, private=False)
    ran = adapter_merge("run", "demo/adapter", "--private", private)
    assert_said(ran, 3, f"{MERGED} is public" if private == "auto" else "was asked to be private")
    nothing_was_downloaded(world, ran.err)


def test_a_private_input_whose_result_is_to_be_public_is_told_what_it_means(
    world: World, adapter_merge: Command
) -> None:
    world.api.update_repo_settings("demo/adapter", private=True)
    ran = adapter_merge("run", "demo/adapter", "--private", "false", "--dry-run")
    assert ran.code == 0, ran.err
    assert "demo/adapter is private; the result will be public, as asked, and shows everyone" in ran.err


def test_a_gated_base_whose_request_is_pending(
    world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.api.update_repo_settings("demo/base", gated="manual")
    monkeypatch.setenv("HF_TOKEN", world.hub.create_token(world.hub.create_user("eve")))
    world.hub.request("demo/base", "eve")
    ran = adapter_merge("run", "demo/adapter", "--to", "eve/merged")
    assert_said(ran, 5, "awaiting a review from the repo authors")
    assert "Wait until they accept it" in ran.err
    nothing_was_downloaded(world, ran.err)


def test_a_limit_that_is_tripped_keeps_the_hubs_words(world: World, adapter_merge: Command) -> None:
    words = '{"error": "You have been rate limited: too many whoami calls today"}'
    headers = {"RateLimit": '"api";r=0;t=3000'}
    world.hub.faults.add(Fault(path="/api/whoami", status=429, times=None, body=words, headers=headers))
    ran = adapter_merge("run", "demo/adapter")
    assert_said(ran, 5, "the Hub said: You have been rate limited: too many whoami calls today")
    nothing_was_downloaded(world, ran.err)
