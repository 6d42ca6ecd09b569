"""What a person may write for a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.errors import Usage
from bot.hub import is_repo_id
from bot.pull import parse_ref
from bot.records import Ref


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("owner/name", "owner/name", None),
        ("owner/name@v1.0", "owner/name", "v1.0"),
        ("owner/name@lora@1.0.0", "owner/name", "lora@1.0.0"),
        ("owner/name@ü-100%", "owner/name", "ü-100%"),
        ("owner/name@_v1", "owner/name", "_v1"),
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
    ["", "a/b/../c", "a/b//c", "a/b/.c", "a/b/c@", "a/b@", "a/b@a b", "a/b@../x", "-x/y", "owner/na--me", "what is this",
     "a/b@-x", "x\n/y"],
)  # fmt: skip
def test_nonsense_is_a_usage_error(text):
    with pytest.raises(Usage) as caught:
        parse_ref(text, deeper=True)
    assert "./folder" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "repo", "subfolder", "revision"),
    [
        ("owner/name/checkpoint-500", "owner/name", "checkpoint-500", None),
        ("owner/name/checkpoint-500@v1", "owner/name", "checkpoint-500", "v1"),
        ("owner/name/runs/a b/last/@refs/pr/3", "owner/name", "runs/a b/last", "refs/pr/3"),
        ("owner/name@v1", "owner/name", None, "v1"),
    ],
)  # fmt: skip
def test_an_adapter_may_lie_in_a_folder_of_its_repo(text, repo, subfolder, revision):
    found = parse_ref(text, deeper=True)
    assert (found.repo, found.subfolder, found.revision, found.folder) == (repo, subfolder, revision, None)


def test_nothing_else_may():
    with pytest.raises(Usage) as caught:
        parse_ref("owner/name/checkpoint-500")
    assert "only an adapter" in caught.value.what
    assert "owner/name" in caught.value.remedy


@pytest.mark.parametrize(
    ("subfolder", "name"),
    [
        ("checkpoint-500", "o/n-checkpoint-500"),
        ("a/b", "o/n-a-b"),
        ("a b/-c--d..e/", "o/n-a-b-c-d-e"),
        ("é.x", "o/n-x"),
    ],
)
def test_a_repo_and_a_folder_in_it_give_one_name_that_a_repo_can_have(subfolder, name):
    found = Ref(text="", repo="o/n", subfolder=subfolder).as_repo
    assert found == name
    assert is_repo_id(found)


@pytest.mark.parametrize(
    ("url", "write"),
    [
        ("https://huggingface.co/owner/name", "owner/name"),
        ("https://huggingface.co/owner/name/", "owner/name"),
        ("https://huggingface.co/owner/name/tree/v2", "owner/name@v2"),
        ("https://huggingface.co/owner/name/tree/main/checkpoint-500", "owner/name/checkpoint-500@main"),
        ("https://hub.example:8080/owner/name/tree/refs%2Fpr%2F3/a/b?not-for-all=1", "owner/name/a/b@refs/pr/3"),
        ("https://hf.co/owner/name/blob/main/checkpoint-500/adapter_config.json", "owner/name/checkpoint-500@main"),
        ("https://huggingface.co/owner/name/resolve/main/adapter_model.safetensors", "owner/name@main"),
        ("huggingface.co/owner/name/tree/v2", "owner/name@v2"),
        ("huggingface.co/owner/name", "owner/name"),
        ("owner/name/tree/main/checkpoint-500", "owner/name/checkpoint-500@main"),
        ("hf://owner/name@v2/checkpoint-500", "owner/name/checkpoint-500@v2"),
        ("https://huggingface.co/datasets/owner/name", "owner/name, owner/name@revision or ./folder"),
        ("https://huggingface.co/owner/name/tree/main/../../x", "owner/name@main"),
    ],
)
def test_a_url_is_answered_with_what_to_write(url, write):
    with pytest.raises(Usage) as caught:
        parse_ref(url, deeper=True)
    assert caught.value.remedy == f"Write {write}."
