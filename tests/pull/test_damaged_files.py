"""What is read of an input is what its source states: a damaged file is named, removed, fetched once more, and never merged."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.devhub import Fault
from bot.errors import Damaged, Outside, Refused
from bot.events import Event, Note, silent
from bot.input_files import holding
from bot.merged_folder import compare_models
from bot.pipeline import run
from bot.pull import fetch, hashes, parse_ref, pin
from bot.records import Combination, Options, Outcome, Ref, Request
from bot.reverify import reverify
from tests.pull.given import put, write_adapter, write_base

FILES = Options(verify="files")
TOUCHED, COPIED = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))


@pytest.fixture
def pair(dev, tmp_path: Path) -> dict[str, str]:
    """demo/base (two shards, of which the adapter changes one; a license) and demo/adapter."""
    base, adapter = write_base(tmp_path / "base", shards=2), write_adapter(tmp_path / "adapter")
    (base / "LICENSE").write_text("Do as you please.")
    (adapter / "tokenizer.json").write_text('{"model": {"vocab": {"a": 1}}}')
    return {"base": put(dev, "demo/base", base), "adapter": put(dev, "demo/adapter", adapter)}


def request(tmp_path: Path, **more) -> Request:
    given = {"adapter": Ref(text="demo/adapter", repo="demo/adapter"), "publish": "none", "options": FILES}
    return Request(**given | {"output": tmp_path / "merged"} | more)


def flip(path: Path, at: int = -1) -> None:
    """One bit of a file, behind a link or not, as a bad disk would: nothing else about it changes that can be set back."""
    path, before = path.resolve(), path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cached(hub, repo: str, name: str) -> Path:
    (found,) = (hub.cache_dir / f"models--{repo.replace('/', '--')}" / "snapshots").glob(f"*/{name}")
    return found


def subject(outcome: Outcome) -> dict[str, str]:
    assert outcome.report is not None
    return outcome.report.document.files


def told(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Note))


DAMAGE = [
    ("base", TOUCHED, -1),
    ("base", COPIED, -1),
    ("base", COPIED, 3),  # the header's length
    ("base", TOUCHED, 30),  # a letter of the header
    ("base", "LICENSE", 0),
    ("base", "config.json", 20),
    ("base", "model.safetensors.index.json", 30),
    ("adapter", "adapter_model.safetensors", -1),
    ("adapter", "adapter_config.json", 5),
    ("adapter", "tokenizer.json", 5),
]


@pytest.mark.parametrize(("role", "name", "at"), DAMAGE)
def test_a_flipped_bit_in_the_cache_is_noticed_and_the_file_fetched_again(role, name, at, hub, pair, tmp_path) -> None:
    right = subject(run(request(tmp_path, output=tmp_path / "first"), hub, silent))
    victim, events = cached(hub, f"demo/{role}", name), []
    content = victim.read_bytes()
    flip(victim, at)
    again = run(request(tmp_path), hub, events.append)
    assert again.status == "merged"
    assert subject(again) == right
    assert victim.read_bytes() == content
    assert f"{name} of demo/{role} was damaged in the cache" in told(events)


def test_when_everything_is_damaged_everything_is_fetched_once(hub, dev, pair, tmp_path) -> None:
    right = subject(run(request(tmp_path, output=tmp_path / "first"), hub, silent))
    for repo in ("demo/base", "demo/adapter"):
        for path in (hub.cache_dir / f"models--{repo.replace('/', '--')}" / "blobs").iterdir():
            flip(path)
    before, events = len(dev.requests), []
    assert subject(run(request(tmp_path), hub, events.append)) == right
    shards = [
        path for method, path, _ in dev.requests[before:] if method == "GET" and f"resolve/{pair['base']}" in path
    ]
    assert len([path for path in shards if path.endswith(TOUCHED)]) <= 2  # the header, and the file


def test_what_stays_damaged_is_refused_and_nothing_of_it_is_left(hub, dev, pair, tmp_path) -> None:
    shard = next((tmp_path / "devhub").rglob(f"objects/*/{sha256_of(tmp_path / 'base' / TOUCHED)[2:]}"))
    flip(shard)  # the Hub's own disk: a download without Xet is not checked by the client
    with pytest.raises(Damaged) as raised:
        run(request(tmp_path, publish="auto", target="demo/merged"), hub, silent)
    assert raised.value.exit_code == 5
    assert TOUCHED in raised.value.what
    assert not [path for path in tmp_path.iterdir() if "merged" in path.name]
    assert not HfApi(dev.url, dev.token).repo_exists("demo/merged")
    assert not list(hub.cache_dir.glob(f"models--demo--base/snapshots/*/{TOUCHED}"))
    assert not (hub.cache_dir / "models--demo--base" / "blobs" / sha256_of(tmp_path / "base" / TOUCHED)).exists()


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", [TOUCHED, COPIED])
def test_offline_a_damaged_file_is_named_and_removed(name: str, hub, dev, pair, tmp_path) -> None:
    run(request(tmp_path, output=tmp_path / "first"), hub, silent)
    victim = cached(hub, "demo/base", name)
    blob = victim.resolve()
    dev.close()
    assert run(request(tmp_path, output=tmp_path / "second"), hub, silent).status == "merged"
    flip(victim)
    events: list[Event] = []
    with pytest.raises(Outside, match=name):
        run(request(tmp_path), hub, events.append)
    assert f"{name} of demo/base was damaged in the cache" in told(events)
    assert not victim.is_symlink()
    assert not blob.exists()
    assert not (tmp_path / "merged").exists()


def test_a_name_that_is_damaged_in_a_header_refuses_no_merge(hub, pair, tmp_path) -> None:
    right = subject(run(request(tmp_path, output=tmp_path / "first"), hub, silent))
    victim = cached(hub, "demo/base", TOUCHED)
    flip(victim, victim.read_bytes().index(b"layer.0"))
    events: list[Event] = []
    assert subject(run(request(tmp_path), hub, events.append)) == right
    assert f"{TOUCHED} of demo/base was damaged in the cache" in told(events)


PROVEN = [
    ("demo/base", TOUCHED),
    ("demo/adapter", "adapter_model.safetensors"),
    *(("demo/merged", name) for name in (COPIED, "README.md", "verification.json")),
]


@pytest.mark.parametrize(("repo", "name"), PROVEN)
def test_a_proof_reads_no_damaged_file(repo: str, name: str, hub, pair, tmp_path) -> None:
    run(request(tmp_path, publish="auto", target="demo/merged"), hub, silent)
    merged = parse_ref("demo/merged")
    assert reverify(merged, None, (), FILES, hub, silent).verdict == "verified"
    victim, events = cached(hub, repo, name), []
    content = victim.read_bytes()
    flip(victim)
    assert reverify(merged, None, (), FILES, hub, events.append).verdict == "verified"
    assert victim.read_bytes() == content
    assert f"{name} of {repo} was damaged in the cache" in told(events)


def test_a_comparison_reads_no_damaged_file(hub, pair, tmp_path) -> None:
    one, other = parse_ref("demo/base"), parse_ref(str(tmp_path / "base"))
    right = compare_models(one, other, hub, silent)
    assert right["different"] == []
    flip(cached(hub, "demo/base", COPIED))
    assert compare_models(one, other, hub, silent) == right


def test_of_several_adapters_each_is_held_to_its_repo(hub, dev, pair, tmp_path) -> None:
    put(dev, "demo/other", write_adapter(tmp_path / "other"))
    two = {"more": (Ref(text="demo/other", repo="demo/other"),), "combination": Combination(kind="cat")}
    right = subject(run(request(tmp_path, output=tmp_path / "first", **two), hub, silent))
    flip(cached(hub, "demo/other", "adapter_model.safetensors"))
    assert subject(run(request(tmp_path, **two), hub, silent)) == right


# --- folders ------------------------------------------------------------------------------------------------------


def folders(tmp_path: Path, **more) -> Request:
    given = {name: Ref(text=f"./{name}", folder=tmp_path / name) for name in ("base", "adapter")}
    return request(tmp_path, **given | more)


@pytest.mark.parametrize("name", [TOUCHED, COPIED])
def test_a_remembered_hash_is_held_to_what_the_merge_reads(name: str, hub, pair, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hashes, "LARGE", 10)
    monkeypatch.setattr(hashes, "SETTLED", -1.0)
    run(folders(tmp_path, output=tmp_path / "first"), hub, silent)
    memory = hub.scratch / "hashes.json"
    known, right = json.loads(memory.read_bytes()), sha256_of(tmp_path / "base" / name)
    # The disk has changed a bit by itself: what is remembered is another file's hash.
    memory.write_text(json.dumps({key: "0" * 64 if value == right else value for key, value in known.items()}))
    with pytest.raises(Damaged, match=f"{name} of ./base does not hold the bytes"):
        run(folders(tmp_path), hub, silent)
    assert not (tmp_path / "merged").exists()
    assert "0" * 64 not in memory.read_text()  # the next run takes the file as it is
    assert run(folders(tmp_path), hub, silent).status == "merged"


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "adapter/tokenizer.json", "adapter/adapter_config.json",
                                  "base/LICENSE", f"base/{TOUCHED}", f"base/{COPIED}", "base/config.json"])  # fmt: skip
@pytest.mark.parametrize("when", ["merge", "verify"])
def test_a_file_that_changes_after_the_plan_is_noticed(name: str, when: str, hub, pair, tmp_path) -> None:
    done = []

    def change(event: Event) -> None:
        if getattr(event, "name", "") == when and not done:
            done.append(True)
            flip(tmp_path / name)

    with pytest.raises(Refused, match=rf"{Path(name).name} of ./\w+ is not the file that was planned for"):
        run(folders(tmp_path), hub, change)
    assert done
    assert not (tmp_path / "merged").exists()


def test_a_file_that_another_has_taken_the_place_of_is_noticed(hub, pair, tmp_path) -> None:
    victim, secret = tmp_path / "base" / "LICENSE", tmp_path / "secret"
    secret.write_text("hf_secret")

    def swap(event: Event) -> None:
        if getattr(event, "name", "") == "merge":
            victim.unlink()
            victim.symlink_to(secret)

    with pytest.raises(Refused, match=r"LICENSE of ./base is not the file"):
        run(folders(tmp_path), hub, swap)


def test_a_copy_of_a_file_that_has_changed_is_refused_at_once(hub, pair, tmp_path) -> None:
    given = folders(tmp_path)
    sources, victim = pin(given, hub, silent), tmp_path / "base" / "LICENSE"
    local = fetch(sources, {"base": ["LICENSE"]}, hub, silent)
    with pytest.raises(Refused, match="LICENSE"), holding(local.files) as keeper:  # noqa: PT012
        flip(victim)
        keeper.copy(victim, tmp_path / "copy")


def test_a_folder_of_the_hubs_cache_is_held_to_the_names_of_its_blobs(hub, pair, tmp_path) -> None:
    sources = pin(Request(adapter=Ref(text="demo/adapter", repo="demo/adapter")), hub, silent)
    local = fetch(
        sources, {"base": [TOUCHED, COPIED, "LICENSE"], "adapter": ["adapter_model.safetensors"]}, hub, silent
    )
    given = {"base": Ref(text="./cache", folder=local.base)}
    assert run(folders(tmp_path, **given, output=tmp_path / "first"), hub, silent).status == "merged"
    flip(local.base / TOUCHED)
    with pytest.raises(Damaged, match=f"{TOUCHED} of ./cache does not hold the bytes"):
        run(folders(tmp_path, **given), hub, silent)
    assert (local.base / TOUCHED).is_file()  # a folder that somebody named is not ours to clean
    adapter = parse_ref(str(tmp_path / "adapter"))
    with pytest.raises(Damaged, match=TOUCHED):  # a proof reads it at once
        reverify(parse_ref(str(tmp_path / "first")), given["base"], (adapter,), FILES, hub, silent)


def test_a_sparse_adapter_of_a_terabyte_is_refused_before_it_is_read(hub, pair, tmp_path) -> None:
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    os.truncate(weights, 1 << 40)
    began = time.monotonic()
    with pytest.raises(Refused, match="not a whole safetensors file"):
        run(folders(tmp_path), hub, silent)
    assert time.monotonic() - began < 5


def test_an_empty_list_of_files_that_the_client_was_given_once_does_not_last(dev, hub, pair) -> None:
    """The client asks for the list of a commit itself, once, and keeps it for good."""
    empty = Fault(path="/tree/", body="[]", status=200, headers={"Content-Type": "application/json"})
    dev.faults.add(empty)
    for _ in range(2):
        folder = hub.download("demo/adapter", pair["adapter"], ["adapter_config.json", "tokenizer.json"])
        assert (folder / "tokenizer.json").is_file()
    assert dev.faults.hits(empty) == 1
    listed = folder.parents[1] / "trees" / f"{pair['adapter']}.json"
    assert not listed.exists()
