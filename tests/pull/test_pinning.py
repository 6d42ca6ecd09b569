"""Inputs are pinned from headers and small files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.errors import NotFound
from bot.events import Note, silent
from bot.pull import fetch, parse_ref, pin
from bot.records import Ref, Request
from tests.pull.given import INDEX, hub_client, put, two_sentences, write_adapter, write_base


def asked(adapter: str, base: str | None = None) -> Request:
    return Request(adapter=parse_ref(adapter), base=parse_ref(base) if base else None)


def test_the_adapter_names_its_base(hub, pair):
    sources = pin(asked("demo/adapter"), hub, silent)
    assert (sources.adapter.sha, sources.base.sha) == (pair["adapter"], pair["base"])
    assert sources.base.repo == "demo/base"
    assert sorted(t.key for h in sources.base.headers for t in h.tensors) == [f"layer.{n}.weight" for n in range(4)]
    assert [h.file for h in sources.adapter.headers] == ["adapter_model.safetensors"]
    assert {"config.json", INDEX, "README.md"} == set(sources.base.texts)
    assert sources.base.card == {"license": "apache-2.0"}


def test_no_weight_is_downloaded_to_pin(dev, hub, pair, tmp_path):
    pin(asked("demo/adapter"), hub, silent)
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []


def test_a_token_never_reaches_the_second_origin(dev, hub, pair, monkeypatch):
    import httpx2

    sent = []
    original = httpx2.Client.send

    def send(self, request, **more):
        sent.append((request.url.port, "authorization" in request.headers))
        return original(self, request, **more)

    monkeypatch.setattr(httpx2.Client, "send", send)
    monkeypatch.setattr(httpx2.Client, "_send_single_request", _spy(httpx2.Client._send_single_request, sent))
    sources = pin(asked("demo/adapter"), hub, silent)
    fetch(sources, {"base": [h.file for h in sources.base.headers]}, hub, silent)
    storage = int(dev.cdn_url.rpartition(":")[2])
    assert [True for port, told in sent if port == storage]
    assert not [True for port, told in sent if port == storage and told]


def _spy(original, sent):
    def spy(self, request, *rest, **more):
        sent.append((request.url.port, "authorization" in request.headers))
        return original(self, request, *rest, **more)

    return spy


def test_a_large_header_is_read_with_a_second_request(dev, hub, tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    folder = write_base(tmp_path / "wide")
    tensors = {f"a.rather.long.name.for.a.tensor.{n:06}": np.zeros(1, "f4") for n in range(3000)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    put(dev, "demo/wide", folder)
    put(dev, "demo/adapter", write_adapter(tmp_path / "adapter"))
    sources = pin(asked("demo/adapter", "demo/wide"), hub, silent)
    assert len(sources.base.headers[0].raw) > 1 << 17
    assert len(sources.base.headers[0].tensors) == 3000


def test_the_config_may_name_the_bases_revision(dev, hub, pair, tmp_path):
    HfApi(dev.url, dev.token).create_tag("demo/base", tag="v1")
    write_base(tmp_path / "base", shards=1)
    put(dev, "demo/base", tmp_path / "base")
    put(dev, "demo/old", write_adapter(tmp_path / "old", revision="v1"))
    assert pin(asked("demo/old"), hub, silent).base.sha == pair["base"]
    assert pin(asked("demo/old", "demo/base"), hub, silent).base.sha != pair["base"]


def test_the_config_may_name_any_commit_of_main_and_any_branch(dev, hub, pair, tmp_path):
    write_base(tmp_path / "base", shards=1)
    new = put(dev, "demo/base", tmp_path / "base")
    api = HfApi(dev.url, dev.token)
    api.create_branch("demo/base", branch="half")
    for revision, sha in ((pair["base"], pair["base"]), ("half", new), ("main", new)):
        put(dev, f"demo/of-{revision[:4]}", write_adapter(tmp_path / revision, revision=revision))
        assert pin(asked(f"demo/of-{revision[:4]}"), hub, silent).base.sha == sha


def test_offline_it_is_said_that_nobody_vouches_for_a_revision(dev, pair, tmp_path):
    HfApi(dev.url, dev.token).create_tag("demo/base", tag="v1")
    put(dev, "demo/old", write_adapter(tmp_path / "old", revision="v1"))
    client_ = hub_client(dev, tmp_path)
    first = pin(asked("demo/old"), client_, silent)
    weights = {"base": [h.file for h in first.base.headers], "adapter": ["adapter_model.safetensors"]}
    fetch(first, weights, client_, silent)
    dev.close()
    said: list = []
    assert pin(asked("demo/old"), client_, said.append).base.sha == pair["base"]
    assert any("cannot be looked up" in getattr(one, "text", "") for one in said)


def test_a_missing_named_base_says_that_base_may_be_given(dev, hub, tmp_path):
    put(dev, "demo/lost", write_adapter(tmp_path / "lost", base="demo/gone"))
    with pytest.raises(NotFound) as caught:
        pin(asked("demo/lost"), hub, silent)
    two_sentences(caught.value, what="demo/gone does not exist", do="--base")


def test_the_adapters_tags_are_known(dev, hub, pair):
    HfApi(dev.url, dev.token).create_tag("demo/adapter", tag="v1.0")
    sources = pin(asked("demo/adapter"), hub, silent)
    assert sources.adapter.tags == ("v1.0",)


def test_a_tag_pins_its_commit(dev, hub, pair, tmp_path):
    HfApi(dev.url, dev.token).create_tag("demo/adapter", tag="v1.0")
    put(dev, "demo/adapter", write_adapter(tmp_path / "adapter", r=4))
    assert pin(asked("demo/adapter@v1.0"), hub, silent).adapter.sha == pair["adapter"]
    assert pin(asked("demo/adapter"), hub, silent).adapter.sha != pair["adapter"]


def test_private_and_gated_are_known(dev, hub, pair, tmp_path):
    put(dev, "demo/secret", write_adapter(tmp_path / "secret"), private=True)
    HfApi(dev.url, dev.token).update_repo_settings("demo/base", gated="manual")
    sources = pin(asked("demo/secret"), hub, silent)
    assert sources.adapter.private
    assert sources.base.gated == "manual"


def test_folders_are_pinned_by_their_content(hub, tmp_path):
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    first = pin(asked(str(adapter), str(base)), hub, silent)
    assert first.base.sha.startswith("sha256:")
    assert len(first.base.sha) == 71
    (base / "README.md").write_text("another card")
    (base / ".hidden").write_text("x")
    assert pin(asked(str(adapter), str(base)), hub, silent).base.sha == first.base.sha
    (base / "config.json").write_text(json.dumps({"model_type": "other"}))
    assert pin(asked(str(adapter), str(base)), hub, silent).base.sha != first.base.sha


def test_links_into_the_hubs_cache_are_not_hashed_again(hub, pair, tmp_path):
    sources = pin(asked("demo/adapter"), hub, silent)
    names = {"base": [h.file for h in sources.base.headers], "adapter": ["adapter_model.safetensors"]}
    local = fetch(sources, names, hub, silent)
    shard = local.base / sources.base.headers[0].file
    blob = shard.resolve()
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes())  # same bytes; the name is what says the sha256
    again = pin(asked(str(local.adapter), str(local.base)), hub, silent)
    known = {entry.name: entry.sha256 for entry in again.base.files}
    assert known[shard.name] == blob.name


def test_a_local_adapter_may_name_a_base_on_the_hub(hub, pair, tmp_path):
    adapter = write_adapter(tmp_path / "mine", base="demo/base")
    assert pin(asked(str(adapter)), hub, silent).base.sha == pair["base"]


def test_a_folder_that_looks_like_a_repo_is_pointed_out(hub, pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_adapter(tmp_path / "demo" / "adapter")
    notes = []
    pin(asked("demo/adapter"), hub, notes.append)
    assert [n.text for n in notes if isinstance(n, Note)] == [
        "demo/adapter is read from the folder of that name; write demo/adapter@main to mean the Hub."
    ]


def test_fetch_brings_exactly_what_is_named_and_counts_the_bytes(dev, hub, pair):
    sources = pin(asked("demo/adapter"), hub, silent)
    shard = sources.base.headers[1].file
    events = []
    local = fetch(sources, {"base": [shard], "adapter": ["adapter_model.safetensors"]}, hub, events.append)
    assert (local.base / shard).stat().st_size == sources.base.headers[1].file_size
    assert not (local.base / sources.base.headers[0].file).exists()
    moved = [e for e in events if type(e).__name__ == "StepProgress"]
    assert moved[-1].done == moved[-1].total > 0
    again = []
    fetch(sources, {"base": [shard], "adapter": ["adapter_model.safetensors"]}, hub, again.append)
    assert again == []
    assert {e.name for e in pin(asked("demo/adapter"), hub, silent).base.files if e.here} >= {shard, "config.json"}


def test_the_hubs_spelling_of_a_name_wins(hub, pair):
    sources = pin(asked("Demo/Adapter", "DEMO/base"), hub, silent)
    assert (sources.adapter.repo, sources.base.repo) == ("demo/adapter", "demo/base")


def test_a_hub_that_is_down_is_replaced_by_the_cache(dev, hub, pair, tmp_path):
    first = pin(asked("demo/adapter"), hub, silent)
    fetch(first, {"base": [h.file for h in first.base.headers], "adapter": ["adapter_model.safetensors"]}, hub, silent)
    dev.close()
    notes = []
    again = pin(asked("demo/adapter"), hub, notes.append)
    assert (again.adapter.sha, again.base.sha) == (first.adapter.sha, first.base.sha)
    assert again.base.headers == first.base.headers
    assert again.adapter.private  # unknown counts as private
    assert "cannot be reached" in notes[0].text


def test_two_tokens_read_and_write(dev, pair, tmp_path):
    put(dev, "demo/secret", write_adapter(tmp_path / "secret"), private=True)
    dev.create_user("eve")
    reader, writer = dev.create_token("demo", "read"), dev.create_token("eve", "write")
    hub = hub_client(dev, tmp_path, read_token=reader, write_token=writer)
    assert pin(asked("demo/secret"), hub, silent).adapter.repo == "demo/secret"
    assert hub.whoami().name == "eve"


def test_a_ref_made_by_hand_needs_no_text(hub, pair):
    request = Request(adapter=Ref(text="x", repo="demo/adapter", revision=pair["adapter"]))
    assert pin(request, hub, silent).adapter.sha == pair["adapter"]


def test_folder_names_are_never_part_of_a_pin(hub, tmp_path):
    one, two = write_adapter(tmp_path / "one"), write_adapter(tmp_path / "two")
    base = str(write_base(tmp_path / "base"))
    found = [pin(asked(str(folder), base), hub, silent).adapter for folder in (one, two)]
    assert found[0].sha == found[1].sha
    assert Path(found[0].ref.text).is_absolute()
