"""Inputs that must not be merged are refused by name, with a way out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

from bot.errors import NotFound, Refused
from bot.events import silent
from bot.pull import fetch, parse_ref, pin
from bot.records import Options, Request
from tests.pull.given import INDEX, put, two_sentences, write_adapter, write_base


def refused(hub, adapter, base=None, error=Refused, **options):
    request = Request(
        adapter=parse_ref(str(adapter)), base=parse_ref(str(base)) if base else None, options=Options(**options)
    )
    with pytest.raises(error) as caught:
        pin(request, hub, silent)
    return caught.value


@pytest.mark.parametrize(
    "named",
    ["/etc", "../../secrets", "./base", "https://evil.example/base", "a/b/c", "C:\\base", "file:///x", "~/base"],
)
def test_an_adapter_from_the_hub_never_names_a_path_or_a_url(dev, hub, pair, tmp_path, named):
    dev.site.checks_cards = False  # the Hub has such cards from before it looked at them
    put(dev, "demo/sly", write_adapter(tmp_path / "sly", base=named))
    two_sentences(refused(hub, "demo/sly"), what="is not a Hub repo's name", do="--base")


@pytest.mark.parametrize("named", [None, "", 3])
def test_an_adapter_that_names_no_base_needs_one(hub, tmp_path, named):
    adapter = write_adapter(tmp_path / "a", base_model_name_or_path=named)
    two_sentences(refused(hub, adapter), what="names no base model", do="--base")


@pytest.mark.parametrize("there", [True, False])
def test_an_adapter_in_a_folder_names_no_path_either(hub, tmp_path, there):
    """A clone of somebody's repo is a folder too: followed, its path would publish what lies there."""
    base = write_base(tmp_path / "base") if there else Path("/home/somebody/models/llama")
    adapter = write_adapter(tmp_path / "a", base=str(base))
    two_sentences(refused(hub, adapter), what="is not a Hub repo's name", do="--base ./folder")


@pytest.mark.parametrize("by_sha", [False, True])
def test_a_pull_requests_commit_is_not_the_bases(dev, hub, pair, tmp_path, by_sha):
    """Anybody may have proposed it; a person can name it."""
    api = HfApi(dev.url, dev.token)
    proposed = api.upload_file(
        path_or_fileobj=b"{}", path_in_repo="generation_config.json", repo_id="demo/base", create_pr=True
    )
    revision = proposed.oid if by_sha else proposed.pr_revision
    put(dev, "demo/sly", write_adapter(tmp_path / "sly", revision=revision))
    two_sentences(refused(hub, "demo/sly"), what="anybody may have proposed it", do=f"--base demo/base@{revision}")
    trusted = Request(adapter=parse_ref("demo/sly"), base=parse_ref(f"demo/base@{revision}"))
    assert pin(trusted, hub, silent).base.sha == proposed.oid


@pytest.mark.parametrize("revision", ["../main", "a b", 3, ["main"]])
def test_a_revision_that_cannot_be_one_is_not_taken_for_main(hub, pair, tmp_path, revision):
    adapter = write_adapter(tmp_path / "a", revision=revision)
    two_sentences(refused(hub, adapter), what="cannot be one", do="--base")


@pytest.mark.parametrize(
    "shard", ["/etc/passwd", "../x.safetensors", "a/../../x.safetensors", "model.bin", "a\\b.safetensors", ""]
)
def test_an_index_that_leaves_its_folder_is_refused(hub, tmp_path, shard):
    base = write_base(tmp_path / "base", shards=2)
    (base / INDEX).write_text(json.dumps({"weight_map": {"layer.0.weight": shard}}))
    two_sentences(
        refused(hub, write_adapter(tmp_path / "a"), base), what="no safetensors file inside", do="another base"
    )


def test_a_missing_shard_is_refused(hub, tmp_path):
    base = write_base(tmp_path / "base", shards=2)
    (base / "model-00002-of-00002.safetensors").unlink()
    error = refused(hub, write_adapter(tmp_path / "a"), base)
    two_sentences(error, what="lacks 1 of the 2 shards", do="another revision")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '"x"'])
def test_a_config_that_is_not_a_json_object_is_refused(hub, tmp_path, text):
    base = write_base(tmp_path / "base")
    (base / "config.json").write_text(text)
    two_sentences(refused(hub, write_adapter(tmp_path / "a"), base), what="config.json", do="Repair the file")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"x": 1}}, {"weight_map": []}])
def test_an_index_without_a_map_is_refused(hub, tmp_path, index):
    base = write_base(tmp_path / "base", shards=2)
    (base / INDEX).write_text(json.dumps(index))
    two_sentences(refused(hub, write_adapter(tmp_path / "a"), base), what="no weight_map", do="Repair")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_base_of_pickles_is_refused_whatever_is_allowed(hub, tmp_path, name):
    base = write_base(tmp_path / "base")
    (base / "model.safetensors").rename(base / name)
    error = refused(hub, write_adapter(tmp_path / "a"), base, allow_pickle=True)
    two_sentences(error, what="are pickles", do="refs/pr/N")


def test_a_base_in_another_format_is_refused(hub, tmp_path):
    base = write_base(tmp_path / "base")
    (base / "model.safetensors").rename(base / "model.gguf")
    two_sentences(refused(hub, write_adapter(tmp_path / "a"), base), what="it holds model.gguf", do="safetensors")


def test_two_weight_files_without_an_index_are_refused(hub, tmp_path):
    base = write_base(tmp_path / "base")
    (base / "model.safetensors").rename(base / "one.safetensors")
    (base / "two.safetensors").write_bytes((base / "one.safetensors").read_bytes())
    two_sentences(
        refused(hub, write_adapter(tmp_path / "a"), base),
        what="holds one.safetensors, but neither",
        do="name a revision",
    )


def test_a_weight_file_that_transformers_would_not_load_is_refused(hub, tmp_path):
    """Merging it would end in a folder that cannot be proven to load."""
    base = write_base(tmp_path / "base")
    (base / "model.safetensors").rename(base / "weights.safetensors")
    two_sentences(refused(hub, write_adapter(tmp_path / "a"), base), what="holds weights.safetensors", do="Rename it")


def test_swapped_arguments_are_recognised(hub, tmp_path):
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "a")
    two_sentences(refused(hub, base, adapter), what="no adapter_config.json", do="the adapter comes first")


def test_a_base_that_is_an_adapter_is_refused(hub, tmp_path):
    one, two = write_adapter(tmp_path / "one"), write_adapter(tmp_path / "two")
    two_sentences(refused(hub, one, two), what="is itself an adapter", do="Merge that adapter")


def test_a_base_without_config_is_refused(hub, tmp_path):
    base = write_base(tmp_path / "base")
    (base / "config.json").unlink()
    two_sentences(refused(hub, write_adapter(tmp_path / "a"), base), what="no config.json", do="--base")


def test_an_adapter_in_a_subfolder_is_pointed_to(hub, tmp_path):
    write_adapter(tmp_path / "run" / "checkpoint-10")
    two_sentences(refused(hub, tmp_path / "run"), what="no adapter_config.json", do="/run/checkpoint-10.")


def test_an_adapter_without_weights_is_refused(hub, tmp_path):
    adapter = write_adapter(tmp_path / "a")
    (adapter / "adapter_model.safetensors").unlink()
    error = refused(hub, adapter, write_base(tmp_path / "base"))
    two_sentences(error, what="adapter_model.safetensors and adapter_model.bin", do="saved whole")


def test_git_lfs_pointers_are_refused(hub, tmp_path):
    adapter = write_adapter(tmp_path / "a")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
    (adapter / "adapter_model.safetensors").write_text(pointer)
    two_sentences(refused(hub, adapter), what="git-lfs pointers", do="git lfs pull")


def test_git_lfs_pointers_of_files_that_no_merge_reads_are_left_alone(hub, tmp_path):
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "a")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
    unread = [
        base / "original/consolidated.00.pth", base / "consolidated.safetensors", base / "pytorch_model.bin",
        base / "model-Q4_K_M.gguf", base / "onnx/model.onnx", adapter / "checkpoint-10/optimizer.pt", adapter / "loss.png",
    ]  # fmt: skip
    for path in unread:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pointer)
    request = Request(adapter=parse_ref(str(adapter)), base=parse_ref(str(base)))
    assert [header.file for header in pin(request, hub, silent).base.headers] == ["model.safetensors"]
    for name in ("tokenizer.json", "config.json", "2_Dense/model.safetensors"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(pointer)
        two_sentences(refused(hub, adapter, base), what="git-lfs pointers", do="git lfs pull")
        (base / name).unlink()
        write_base(base)


def test_a_truncated_weight_file_is_refused(dev, hub, pair, tmp_path):
    adapter = write_adapter(tmp_path / "a")
    whole = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(whole[:-10])
    put(dev, "demo/cut", adapter)
    two_sentences(refused(hub, "demo/cut"), what="not a whole safetensors file", do="another revision")


def test_a_folder_that_does_not_exist_is_not_found(hub, tmp_path):
    two_sentences(refused(hub, f"{tmp_path}/nowhere", error=NotFound), what="does not exist", do="owner/name")


def _pickled(adapter):
    tensors = {"base_model.model.layer.0.lora_A.weight": torch.ones(2, 8)}
    tensors["base_model.model.layer.0.lora_B.weight"] = torch.ones(2, 8).t()  # not contiguous
    torch.save(tensors, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    return adapter


def test_a_pickled_adapter_is_refused_by_default(hub, tmp_path):
    two_sentences(refused(hub, _pickled(write_adapter(tmp_path / "a"))), what="a pickle", do="--allow-pickle")


@pytest.mark.parametrize("remote", [True, False])
def test_an_allowed_pickle_becomes_safetensors(dev, hub, pair, tmp_path, remote):
    adapter = _pickled(write_adapter(tmp_path / "a"))
    if remote:
        put(dev, "demo/pickled", adapter)
    ref = parse_ref("demo/pickled" if remote else str(adapter))
    sources = pin(Request(adapter=ref, options=Options(allow_pickle=True)), hub, silent)
    assert [t.shape for t in sources.adapter.headers[0].tensors] == [(2, 8), (8, 2)]
    local = fetch(sources, {"adapter": ["adapter_model.safetensors"]}, hub, silent)
    assert (local.adapter / "adapter_model.safetensors").stat().st_size == sources.adapter.headers[0].file_size
    assert (local.adapter / "adapter_config.json").is_file()
    assert not adapter.joinpath("adapter_model.safetensors").exists()


def test_a_conversion_that_was_damaged_since_is_made_again(hub, tmp_path):
    adapter = _pickled(write_adapter(tmp_path / "a"))
    asked = Request(
        adapter=parse_ref(str(adapter)),
        base=parse_ref(str(write_base(tmp_path / "b"))),
        options=Options(allow_pickle=True),
    )
    sources = pin(asked, hub, silent)
    made = fetch(sources, {"adapter": ["adapter_model.safetensors"]}, hub, silent).adapter / "adapter_model.safetensors"
    content = made.read_bytes()
    made.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert pin(asked, hub, silent).adapter.files == sources.adapter.files
    assert made.read_bytes() == content


def test_a_pickle_that_is_damaged_in_the_cache_is_fetched_again_before_it_is_read(dev, hub, pair, tmp_path):
    put(dev, "demo/pickled", _pickled(write_adapter(tmp_path / "a")))
    pickle = hub.download("demo/pickled", hub.pin("demo/pickled").sha, ["adapter_model.bin"]) / "adapter_model.bin"
    content = pickle.read_bytes()
    pickle.resolve().write_bytes(content[:-200] + bytes([content[-200] ^ 1]) + content[-199:])
    sources = pin(Request(adapter=parse_ref("demo/pickled"), options=Options(allow_pickle=True)), hub, silent)
    assert [t.shape for t in sources.adapter.headers[0].tensors] == [(2, 8), (8, 2)]
    assert pickle.read_bytes() == content


class Evil:
    def __reduce__(self):
        return (print, ("this ran",))


def test_an_allowed_pickle_still_runs_no_code(hub, tmp_path, capfd):
    adapter = write_adapter(tmp_path / "a")
    (adapter / "adapter_model.safetensors").unlink()
    with (adapter / "adapter_model.bin").open("wb") as opened:
        pickle.dump({"x": Evil()}, opened)
    error = refused(hub, adapter, write_base(tmp_path / "base"), allow_pickle=True)
    two_sentences(error, what="cannot be read safely", do="Save the adapter again")
    assert "this ran" not in capfd.readouterr().out
