"""What a person may write for a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.errors import Usage
from bot.pull import parse_ref


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("owner/name", "owner/name", None),
        ("owner/name@v1.0", "owner/name", "v1.0"),
        ("owner/name@refs/pr/3", "owner/name", "refs/pr/3"),
        (" gpt2 ", "gpt2", None),
        (f"Owner-1/na.me_2@{'0a' * 20}", "Owner-1/na.me_2", "0a" * 20),
    ],
)  # fmt: skip
def test_a_repo_may_have_a_revision(text, repo, revision):
    found = parse_ref(text)
    assert (found.repo, found.revision, found.folder) == (repo, revision, None)


@pytest.mark.parametrize("text", ["./x", "../x", "/x/y", ".", "./owner/name@v1"])
def test_a_path_is_a_folder_even_where_it_does_not_exist(text):
    assert parse_ref(text).folder == Path(text)


def test_a_home_is_expanded():
    assert parse_ref("~/x").folder == Path.home() / "x"


def test_an_existing_path_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert parse_ref("owner/name").folder == Path("owner/name")
    assert parse_ref("owner/name@main").repo == "owner/name"


@pytest.mark.parametrize(
    "text",
    ["", "a/b/c", "a/b@", "a/b@a b", "a/b@../x", "-x/y", "owner/na--me", "what is this", "a/b@-x", "x\n/y"],
)  # fmt: skip
def test_nonsense_is_a_usage_error(text):
    with pytest.raises(Usage) as caught:
        parse_ref(text)
    assert "./folder" in caught.value.remedy


def test_a_url_is_answered_with_what_to_write():
    with pytest.raises(Usage) as caught:
        parse_ref("https://huggingface.co/owner/name/tree/v2")
    assert caught.value.remedy == "Write owner/name@v2."
