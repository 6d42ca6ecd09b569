"""Whoever may write to an adapter's repo says /merge in a discussion, and is answered there; strangers are not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import DiscussionComment, HfApi

from tests.stories.conftest import World
from tests.stories.test_a_tag_on_the_hub import SECRET, Server, wait_for


@pytest.fixture
def server(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("ADAPTER_MERGE_HUB_TOKEN", world.hub.token)
    started = Server(world, tmp_path, "--announce")
    watched = [{"type": "model", "name": "demo/adapter"}]
    domains = ["repo", "discussion"]
    world.api.create_webhook(url=f"{started.url}/webhook", watched=watched, domains=domains, secret=SECRET)  # type: ignore[arg-type]
    yield started
    started.process.kill()


@pytest.fixture
def comments(world: World) -> Callable[[], list[list[str]]]:
    """All comments on the adapter, by discussion, the oldest first."""

    def read() -> list[list[str]]:
        details = [
            world.api.get_discussion_details("demo/adapter", each.num)
            for each in world.api.get_repo_discussions("demo/adapter")
        ]
        return [[e.content for e in each.events if isinstance(e, DiscussionComment)] for each in reversed(details)]

    return read


def test_a_comment_becomes_a_proven_merge_and_is_answered_once(
    world: World, server: Server, comments: Callable[[], list[list[str]]]
) -> None:
    stranger = HfApi(endpoint=world.hub.url, token=world.hub.create_token(world.hub.create_user("mallory")))
    question = world.api.create_discussion("demo/adapter", "May I have a model of it?")
    stranger.comment_discussion("demo/adapter", question.num, "/merge")
    world.api.comment_discussion("demo/adapter", question.num, "Of course:\n\n/merge --verify weights")
    wait_for(lambda: any("published" in text for text in comments()[0]))
    report = json.loads(Path(world.api.hf_hub_download("demo/adapter-merged", "verification.json")).read_text())
    assert report["verdict"] == "verified"
    (discussion,) = comments()
    _, first, second, answer = discussion
    assert (first, second.endswith("/merge --verify weights")) == ("/merge", True)
    assert "published. [The merged model](" in answer
    assert "Proof: verified." in answer
    assert "mallory may not give commands on demo/adapter." in server.get("/")
    assert server.end() == 0


def test_a_tag_is_told_of_on_the_adapter(world: World, server: Server, comments: Callable[[], list[list[str]]]) -> None:
    world.api.create_tag("demo/adapter", tag="v2")
    wait_for(lambda: bool(comments()) and "published" in comments()[0][0])
    ((told,),) = comments()
    assert "The merge of `v2` by `adapter-merge`: published." in told
    assert f"({world.hub.url}/demo/adapter-merged" in told
