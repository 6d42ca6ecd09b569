"""A local Hub with adapters on it, and a backend that only writes down what it is sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.devhub import DevHub
from bot.dispatch.records import Fate, Run, RunRequest
from bot.dispatch.store import Store
from bot.hub import Hub
from tests.dispatch.processes import Bot


@dataclass
class Notebook:
    """A backend. `runs`: what it was sent, by the request's id; `fates`: how those stand, running where nothing else is set."""

    runs: dict[str, RunRequest] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    fates: dict[str, Fate] = field(default_factory=dict)
    fails: Exception | None = None

    NAME = "notebook"
    SHOWN_AFTER = 0.0
    LOOK_EVERY = 15.0

    def check(self) -> None: ...

    def send(self, request: RunRequest) -> Run:
        if self.fails is not None:
            raise self.fails
        self.sent.append(f"{request.order.adapter}@{request.order.revision}")
        self.runs[request.id] = request
        return Run(id=request.id, url=f"https://runs.example/{request.id}")

    def find(self, request: RunRequest) -> Run | None:
        return Run(id=request.id, url=f"https://runs.example/{request.id}") if request.id in self.runs else None

    def look(self, request: RunRequest) -> Fate:
        return self.fates.get(request.id, Fate(status="running"))

    def log(self, request: RunRequest, lines: int) -> list[str]:
        return []


@pytest.fixture
def devhub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevHub]:
    with DevHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture
def api(devhub: DevHub) -> HfApi:
    return HfApi(endpoint=devhub.url, token=devhub.token)


@pytest.fixture
def hub(devhub: DevHub, tmp_path: Path) -> Hub:
    return Hub(endpoint=devhub.url, write_token=devhub.token, cache_dir=tmp_path / "cache", patience=())


@pytest.fixture
def new_adapter(api: HfApi) -> Callable[..., str]:
    """Make an adapter with tags that all are at its one commit; the commit."""

    def make(repo: str, *tags: str, by: HfApi = api) -> str:
        by.create_repo(repo)
        config = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "demo/base"}).encode()
        sha = by.upload_file(path_or_fileobj=config, path_in_repo="adapter_config.json", repo_id=repo).oid
        for tag in tags:
            by.create_tag(repo, tag=tag)
        return str(sha)

    return make


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "bot.db")
    yield opened
    opened.close()


@pytest.fixture
def notebook() -> Notebook:
    return Notebook()


@pytest.fixture
def bot(tmp_path: Path, devhub: DevHub) -> Iterator[Bot]:
    made = Bot(tmp_path, devhub)
    yield made
    made.hold.unlink(missing_ok=True)
    made.kill()
