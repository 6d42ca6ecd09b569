"""The demo's bot: it listens, hears of a tag, and what it writes is read to its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.demo.listening import DemoFailed, listening
from bot.devhub import DevHub

ADAPTER = "demo/answers"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevHub]:
    with DevHub(tmp_path / "hub") as served:
        for name, value in served.environment().items():
            monkeypatch.setenv(name, value)
        HfApi(endpoint=served.url, token=served.token).create_repo(ADAPTER)
        yield served


def test_a_tag_that_the_bot_drops_fails_the_demo(hub: DevHub, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.url, token=hub.token)
    with listening(hub, tmp_path / "bot.db", ADAPTER) as bot:
        api.create_tag(ADAPTER, tag="v3")  # of a repo that holds no adapter
        with pytest.raises(DemoFailed, match="dropped"):
            bot.tell_of_the_merge()


def test_a_bot_that_does_not_start_fails_the_demo(hub: DevHub, tmp_path: Path) -> None:
    (tmp_path / "bot.db").mkdir()
    with pytest.raises(DemoFailed, match="does not listen"), listening(hub, tmp_path / "bot.db", ADAPTER):
        raise AssertionError("it listened")
