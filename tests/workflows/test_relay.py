"""The relay of docs/hub-triggered.md, given what a local Hub really delivers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from bot.devhub import DevHub
from tests.workflows.files import EXAMPLES, GITHUB, read

REPO = "demo/assistant-lora"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with DevHub(tmp_path / "hub") as served:
        yield served


@pytest.fixture
def api(hub: DevHub) -> HfApi:
    """A client of the adapter's owner, with a webhook on the adapter that nobody answers."""
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(REPO)
    api.create_webhook(url="http://127.0.0.1:9/", watched=[{"type": "model", "name": REPO}], domains=["repo"])
    return api


def relayed(hub: DevHub) -> list[dict[str, Any]]:
    """What the relay would send for everything delivered so far."""
    spec = importlib.util.spec_from_file_location("relay", GITHUB / "examples" / "relay.py")
    assert spec is not None
    assert spec.loader is not None
    relay = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(relay)
    return [body for delivery in hub.drain_webhooks() for body in relay.dispatches(delivery.payload)]


def test_a_new_tag_becomes_one_dispatch_that_the_workflows_understand(hub: DevHub, api: HfApi) -> None:
    api.create_tag(REPO, tag="v1.2")
    (body,) = relayed(hub)
    assert body == {"event_type": "adapter-tag", "client_payload": {"adapter": REPO, "revision": "v1.2"}}
    for path in (GITHUB / "examples" / "hub-triggered.yml", GITHUB / "workflows" / "merge.yml"):
        assert body["event_type"] in read(path)["on"]["repository_dispatch"]["types"]
        for key in body["client_payload"]:
            assert f"github.event.client_payload.{key}" in path.read_text()


def test_a_commit_a_branch_a_pull_request_and_a_deleted_tag_become_none(hub: DevHub, api: HfApi) -> None:
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=REPO)
    api.create_branch(REPO, branch="other")
    api.create_pull_request(REPO, title="A pull request")
    api.create_tag(REPO, tag="v1")
    api.delete_tag(REPO, tag="v1")
    assert [body["client_payload"]["revision"] for body in relayed(hub)] == ["v1"]


@pytest.mark.parametrize(
    "payload", [{}, {"repo": {"type": "dataset"}}, {"repo": {"type": "model"}, "updatedRefs": None}]
)
def test_a_payload_of_another_shape_becomes_none(hub: DevHub, payload: dict[str, Any]) -> None:
    hub.drain_webhooks()
    assert relayed(hub) == []
    assert EXAMPLES
