"""A fake GitHub, and our client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bot.gh import GitHub
from tests.gh.fake import TOKEN, FakeGitHub


@pytest.fixture
def fake() -> Iterator[FakeGitHub]:
    with FakeGitHub() as github:
        yield github
        assert github.violations == []


@pytest.fixture
def github(fake: FakeGitHub) -> Iterator[GitHub]:
    found = GitHub(token=TOKEN, repo="octo/adapters", api_url=fake.url)
    yield found
    found.close()
