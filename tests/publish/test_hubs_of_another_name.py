"""A Hub whose answers name another address than the one it is asked at: our own address is the one that is gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bot.devhub import DevHub
from bot.hub import Hub
from tests.publish.given import ADAPTER, BASE, TARGET, Owner, deliver, finished
from tests.pull.given import hub_client

FOREIGN = ("https://hub.company.example", "https://hub.company.example/below/a/path", "http://10.0.0.7:8080", "/", "")


@pytest.fixture
def foreign(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[DevHub, Hub]]:
    with DevHub(tmp_path / "foreign") as named:
        for repo in (BASE, ADAPTER):
            Owner(named).put("config.json", b"{}", repo)
    with DevHub(tmp_path / "foreign", public=request.param) as named:
        yield named, hub_client(named, tmp_path)


@pytest.mark.parametrize("foreign", FOREIGN, indirect=True)
def test_a_hub_behind_another_name_is_pushed_to_and_proposed_to(foreign: tuple[DevHub, Hub], tmp_path: Path) -> None:
    dev, hub = foreign
    told: list[Any] = []
    first = deliver(tmp_path / "one", finished(tmp_path / "one"), hub, emit=told.append)
    assert (first.status, first.how) == ("published", "push")
    second = deliver(tmp_path / "two", finished(tmp_path / "two", seed=2), hub)
    assert (second.status, second.how, second.pr_number) == ("published", "pr", 1)
    for link in (first.url, second.pr_url, second.url):
        assert str(link).startswith(f"{dev.url}/{TARGET}/"), link
    assert deliver(tmp_path / "two", finished_again(tmp_path / "two"), hub).status == "unchanged"


def finished_again(folder: Path) -> Any:
    import json

    return json.loads((folder / "verification.json").read_text())
