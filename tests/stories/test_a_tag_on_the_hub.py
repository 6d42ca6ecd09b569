"""A tag is pushed to an adapter on the Hub; nobody runs anything; the merged repo is there, proven, and the adapter says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import DiscussionComment

from tests.stories.conftest import World

SECRET = "a secret of this test"
LONGEST = 240.0  # seconds


class Server:
    """`adapter-merge serve` in a process of its own, with the local backend."""

    def __init__(self, world: World, folder: Path, *more: str) -> None:
        self.state = folder / "bot.db"
        command = [sys.executable, "-P", "-m", "bot", "serve", "--allow", "demo/*", "--port", "0", "--backend", "local"]
        environment = (
            os.environ
            | world.hub.environment()
            | {
                "ADAPTER_MERGE_WEBHOOK_SECRET": SECRET,
                "ADAPTER_MERGE_HUB_TOKEN": world.hub.token,
            }
        )
        self.process = subprocess.Popen(
            [*command, "--state", str(self.state), *more], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[2].rstrip(";").removesuffix("/webhook")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return str(answer.read().decode())

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def serve(world: World, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers = []

    def start(*more: str) -> Server:
        servers.append(Server(world, tmp_path, *more))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.2)


def comments(world: World) -> list[str]:
    """What stands in the adapter's discussions."""
    details = [
        world.api.get_discussion_details("demo/adapter", each.num)
        for each in world.api.get_repo_discussions("demo/adapter")
    ]
    return [event.content for each in details for event in each.events if isinstance(event, DiscussionComment)]


def test_a_tag_becomes_a_proven_merge_and_a_comment(world: World, serve: Callable[..., Server]) -> None:
    server = serve("--announce")
    watched = [{"type": "model", "name": "demo/adapter"}]
    world.api.create_webhook(url=f"{server.url}/webhook", watched=watched, domains=["repo"], secret=SECRET)
    world.api.create_tag("demo/adapter", tag="v2")
    wait_for(lambda: world.api.repo_exists("demo/adapter-merged") and "published" in server.get("/"))
    report = json.loads(Path(world.api.hf_hub_download("demo/adapter-merged", "verification.json")).read_text())
    assert report["verdict"] == "verified"
    assert {tag.name for tag in world.api.list_repo_refs("demo/adapter-merged").tags} == {"v2"}
    assert 'adapter_merge_requests{state="done"} 1.0' in server.get("/metrics")
    wait_for(lambda: any("published" in comment for comment in comments(world)))
    assert len(comments(world)) == 1
    assert f"{world.hub.url}/demo/adapter-merged" in comments(world)[0]
    assert server.end() == 0
