"""Mirrors and company proxies serve only what reading takes; a repo's owner may switch discussions off: what is optional
is gone on without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.devhub import DevHub
from tests.stories.conftest import Command, World
from tests.stories.test_bad_input import assert_said

BELOW = "/artifactory/api/huggingfaceml/repo"
OPTIONAL = [400, 404, 405, 501, 200]  # 200: a web page for everything


@pytest.fixture
def mirror(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[DevHub]:
    """A mirror of the world's Hub, below a path; what it does not serve it answers with this status and a web page."""
    with DevHub(tmp_path / "hub", prefix=BELOW, mirror=request.param) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_TOKEN")
        yield served


@pytest.mark.parametrize("mirror", OPTIONAL, indirect=True)
def test_a_mirror_is_enough_to_plan_to_merge_and_to_verify(
    mirror: DevHub, adapter_merge: Command, tmp_path: Path
) -> None:
    ran = adapter_merge("plan", "demo/adapter@v1")
    assert ran.code == 0, ran.err
    assert "Whether that commit has a tag is not known" in ran.err
    assert "<html" not in ran.err
    made = tmp_path / "made"
    ran = adapter_merge("run", "demo/adapter@v1", "--publish", "none", "-o", made, "--verify", "weights")
    assert ran.code == 0, ran.err
    assert json.loads((made / "verification.json").read_text())["verdict"] == "verified"
    ran = adapter_merge("verify", made, "--verify", "weights")
    assert ran.code == 0, ran.err
    assert "whose commit that is cannot be looked up now" in ran.err
    asked = [path for _, path, _ in mirror.requests]
    assert not [path for path in asked if path.startswith("/outside")], "not under its path"


@pytest.mark.parametrize("mirror", [404, 200], indirect=True)
def test_publishing_to_a_mirror_is_refused_before_any_download(
    mirror: DevHub, world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", world.hub.token)
    ran = adapter_merge("run", "demo/adapter")
    assert_said(ran, 5, "Could not ask whose token this is")
    assert "Downloading" not in ran.err
    assert "HF_ENDPOINT" in ran.err
    dry = adapter_merge("run", "demo/adapter", "--dry-run")
    assert dry.code == 0
    assert "Publishing would fail: Could not ask whose token this is" in dry.err


@pytest.mark.parametrize("mirror", [404, 200], indirect=True)
def test_doctor_knows_a_mirror(mirror: DevHub, adapter_merge: Command) -> None:
    found = {line["topic"]: line for line in json.loads(adapter_merge("doctor", "--json").out)}
    assert found["hub"]["status"] == "warn"
    assert "a mirror of the Hub" in found["hub"]["what"]
    assert "HF_ENDPOINT" in found["hub"]["remedy"]


def test_a_repo_that_a_mirror_does_not_have(world: World, mirror404: None, adapter_merge: Command) -> None:
    assert_said(adapter_merge("plan", "demo/nope"), 5, "demo/nope does not exist on")


@pytest.fixture
def mirror404(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with DevHub(tmp_path / "hub", prefix=BELOW, mirror=404) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield


# --- discussions that are switched off ----------------------------------------------------------------------------


def without_discussions(world: World, repo: str, *, empty: bool = False) -> None:
    world.api.create_repo(repo, exist_ok=True)
    if not empty:
        world.api.upload_file(repo_id=repo, path_in_repo="notes.txt", path_or_fileobj=b"mine")
    from huggingface_hub.utils import get_session

    headers = {"Authorization": f"Bearer {world.hub.token}"}
    url = f"{world.hub.url}/api/models/{repo}/settings"
    assert get_session().put(url, json={"discussionsDisabled": True}, headers=headers).status_code == 200


def test_a_target_without_discussions_is_pushed_to(world: World, adapter_merge: Command) -> None:
    without_discussions(world, "demo/adapter-merged")
    ran = adapter_merge("run", "demo/adapter", "--publish", "push", "--verify", "files")
    assert ran.code == 0, ran.err
    again = adapter_merge("run", "demo/adapter", "--publish", "push", "--verify", "files")
    assert (again.code, "unchanged" in again.out) == (0, True)


def test_an_empty_target_without_discussions_is_pushed_to_unasked(world: World, adapter_merge: Command) -> None:
    without_discussions(world, "demo/adapter-merged", empty=True)
    ran = adapter_merge("run", "demo/adapter", "--verify", "files")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("how", ["auto", "pr"])
def test_a_pull_request_that_cannot_be_is_told_before_any_download(
    how: str, world: World, adapter_merge: Command
) -> None:
    without_discussions(world, "demo/adapter-merged")
    ran = adapter_merge("run", "demo/adapter", "--publish", how)
    assert_said(ran, 5, "switched off there (the Hub said: Discussions are disabled for this repo)")
    assert "--publish push" in ran.err
    assert "Downloading" not in ran.err
