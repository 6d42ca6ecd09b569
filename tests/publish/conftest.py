"""A local Hub with public inputs, and a finished merge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from bot.devhub import DevHub
from bot.hub import Hub
from bot.records import Json
from tests.publish.given import ADAPTER, BASE, Owner, finished
from tests.publish.scenarios import Place
from tests.pull.given import hub_client


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LFS in this process (what HF_HUB_DISABLE_XET=1 does at import), and no token or cache of this machine's user."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[DevHub]:
    """A fresh local Hub with both inputs, public."""
    with DevHub(tmp_path / "devhub") as served:
        owner = Owner(served)
        for repo in (BASE, ADAPTER):
            owner.put("config.json", b"{}", repo)
        yield served


@pytest.fixture
def owner(dev: DevHub) -> Owner:
    """The target's owner."""
    return Owner(dev)


@pytest.fixture
def hub(dev: DevHub, tmp_path: Path) -> Hub:
    """Our client, with the default user's token."""
    return hub_client(dev, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the finished merge lies."""
    return tmp_path / "finished"


@pytest.fixture
def document(folder: Path) -> Json:
    """The finished merge's report."""
    return finished(folder)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One local Hub for many publications, see `tests.publish.scenarios`."""
    tmp = tmp_path_factory.mktemp("place")
    with DevHub(tmp / "devhub") as served:
        yield Place(dev=served, tmp=tmp)
