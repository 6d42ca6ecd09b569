"""A local Hub with a base and an adapter on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from bot.devhub import DevHub
from bot.hub import Hub
from tests.pull.given import hub_client, put, write_adapter, write_base


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LFS in this process (what HF_HUB_DISABLE_XET=1 does at import), and no token or cache of this machine's user."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[DevHub]:
    """A fresh local Hub."""
    with DevHub(tmp_path / "devhub") as served:
        yield served


@pytest.fixture
def hub(dev: DevHub, tmp_path: Path) -> Hub:
    """Our client to it, with the default user's token."""
    return hub_client(dev, tmp_path)


@pytest.fixture
def pair(dev: DevHub, tmp_path: Path) -> dict[str, str]:
    """demo/base and demo/adapter, and their shas."""
    return {
        "base": put(dev, "demo/base", write_base(tmp_path / "base", shards=2)),
        "adapter": put(dev, "demo/adapter", write_adapter(tmp_path / "adapter")),
    }
