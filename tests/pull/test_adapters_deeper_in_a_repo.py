"""What a source in a folder of its repo is made of: the folder's own files, and what the folders around it say for it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bot.errors import NotFound
from bot.hub import Hub
from bot.pull import fetch, parse_ref, pin, subfolders
from bot.records import FileEntry, Request
from tests.pull.given import put, write_adapter, write_base

QUIET = lambda event: None  # noqa: E731


def files(*names: str) -> tuple[FileEntry, ...]:
    return tuple(FileEntry(name=name, size=1) for name in names)


def seen(names: tuple[FileEntry, ...], folder: str) -> dict[str, str | None]:
    return {entry.name: entry.path for entry in subfolders.below(names, folder)}


def test_a_folder_has_its_files_under_their_own_names():
    there = files("adapter_config.json", "a/adapter_config.json", "a/x.bin", "ab/adapter_config.json")
    assert seen(there, "a") == {"adapter_config.json": "a/adapter_config.json", "x.bin": "a/x.bin"}


def test_license_and_card_come_from_the_nearest_folder_that_has_them():
    there = files(
        "LICENSE", "NOTICE", "README.md", "a/LICENSE", "a/b/adapter_config.json", "a/b/c.txt", "c/LICENSE.txt"
    )
    assert seen(there, "a/b") == {
        "adapter_config.json": "a/b/adapter_config.json",
        "c.txt": "a/b/c.txt",
        "LICENSE": "a/LICENSE",
        "NOTICE": "NOTICE",
        "README.md": "README.md",
    }


def test_a_tokenizer_is_taken_whole_from_one_folder():
    around = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
    own = files(*around, "a/adapter_config.json", "a/tokenizer.json")
    assert seen(own, "a").keys() == {"adapter_config.json", "tokenizer.json", "generation_config.json"}
    none = files(*around, "a/adapter_config.json")
    assert seen(none, "a").keys() == {"adapter_config.json", *around}


def test_another_adapters_files_are_never_taken():
    there = files("a/adapter_config.json", "a/b/adapter_config.json", "a/b/LICENSE", "a/c/adapter_config.json")
    assert seen(there, "a/c").keys() == {"adapter_config.json"}


def test_checkpoints_are_listed_as_people_count_and_not_all_of_many():
    there = files(*(f"checkpoint-{step}/adapter_config.json" for step in (1000, 500, 2000)))
    assert subfolders.adapters_in(there) == ["checkpoint-500", "checkpoint-1000", "checkpoint-2000"]
    many = subfolders.adapters_in(files(*(f"checkpoint-{step}/adapter_config.json" for step in range(100))))
    said = subfolders.listed(many)
    assert said.startswith("checkpoint-0, …, ")
    assert said.endswith("checkpoint-98, checkpoint-99 (100 in all)")
    assert len(said) < 150


@pytest.fixture
def run(dev, tmp_path):
    """demo/run with one checkpoint, and a card around it that says more than the checkpoint's."""
    put(dev, "demo/base", write_base(tmp_path / "base"))
    written = write_adapter(tmp_path / "run" / "last") / "README.md"
    written.write_text(written.read_text().replace("---\n", "---\nlicense:\n", 1))  # a field of a template, left empty
    (tmp_path / "run" / "README.md").write_text("---\nlicense: mit\nbase_model: other/base\n---\nload_in_4bit: true\n")
    return put(dev, "demo/run", tmp_path / "run")


def test_what_a_checkpoints_card_does_not_say_the_repos_does(hub, run):
    source = pin(Request(adapter=parse_ref("demo/run/last", deeper=True)), hub, QUIET).adapter
    assert source.card == {"license": "mit", "base_model": "demo/base", "library_name": "peft"}
    assert b"load_in_4bit: true" in source.texts["README.md"], "how it was trained"
    assert source.called == "demo/run/last"
    assert source.pin == f"{run}/last"


def test_it_is_found_again_without_the_hub(hub, run, tmp_path):
    request = Request(adapter=parse_ref("demo/run/last", deeper=True))
    wanted = {"base": ["model.safetensors"], "adapter": ["adapter_model.safetensors"]}
    online = pin(request, hub, QUIET)
    there = fetch(online, wanted, hub, QUIET)
    away = Hub(endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "cache" / "hub", patience=())
    offline = pin(request, away, QUIET)
    assert (offline.adapter.pin, offline.adapter.card) == (online.adapter.pin, online.adapter.card)
    assert fetch(offline, wanted, away, QUIET).adapter == there.adapter
    assert json.loads((there.adapter / "adapter_config.json").read_text())["r"] == 2


def test_a_damaged_file_of_it_is_fetched_again(hub, run):
    request = Request(adapter=parse_ref("demo/run/last", deeper=True))
    source = pin(request, hub, QUIET).adapter
    path = hub.cached("demo/run", run, "last/adapter_config.json")
    real = path.resolve()
    real.chmod(0o644)
    real.write_bytes(b"{}" + b" " * (real.stat().st_size - 2))
    said = []
    assert pin(request, hub, said.append).adapter.texts == source.texts
    assert "last/adapter_config.json of demo/run was damaged in the cache; it is fetched again." in [
        getattr(event, "text", "") for event in said
    ]


def test_a_revision_without_it_says_which_have_one(hub, run):
    ref = replace(parse_ref("demo/run/last", deeper=True), subfolder="first")
    with pytest.raises(NotFound) as caught:
        pin(Request(adapter=ref), hub, QUIET)
    assert "demo/run/last" in caught.value.remedy
