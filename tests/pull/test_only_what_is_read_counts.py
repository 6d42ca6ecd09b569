"""What a merge reads counts, and nothing else: not what a trainer keeps, not the same weights in another form."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bot.errors import Refused
from bot.events import Event, StepProgress
from bot.pull import fetch, hashes, pin
from bot.records import Ref, Request
from tests.pull.given import put, write_adapter, write_base

TRAINERS = (
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "training_args.bin",
    "trainer_state.json",
    "events.out.tfevents.1700000000.host.1.0",
    "runs/Nov01_host/events.out.tfevents.1",
    "checkpoint-500/adapter_model.safetensors",
    "checkpoint-500/adapter_config.json",
    "checkpoint-500/optimizer.pt",
    "global_step100/mp_rank_00_model_states.pt",
    "wandb/run-1/files/output.log",
    "train.py",
)
OTHER_FORMS = (
    "original/consolidated.00.pth",
    "consolidated.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
    "model-q4.gguf",
    "onnx/model.onnx",
    "onnx/model.onnx_data",
    "openvino/openvino_model.bin",
    "coreml/model.mlpackage/weights.bin",
    "another-model/model.safetensors",
    "another-model/config.json",
    "eval/results.json",
)


def add(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}" if name.endswith(".json") else os.urandom(5000))


def request(tmp_path: Path) -> Request:
    adapter, base = (Ref(text=f"./{name}", folder=tmp_path / name) for name in ("adapter", "base"))
    return Request(adapter=adapter, base=base)


def test_what_no_merge_reads_is_neither_in_a_folders_sha_nor_opened(hub, tmp_path, monkeypatch):
    base, adapter = write_base(tmp_path / "base", shards=2), write_adapter(tmp_path / "adapter")
    before = pin(request(tmp_path), hub, lambda event: None)
    add(base, OTHER_FORMS)
    add(adapter, TRAINERS)
    opened, real = [], hashes._sha256
    monkeypatch.setattr(hashes, "_sha256", lambda path, read: (opened.append(path.name), real(path, read))[1])
    said: list[Event] = []
    after = pin(request(tmp_path), hub, said.append)
    assert (after.base.sha, after.adapter.sha) == (before.base.sha, before.adapter.sha)
    assert sorted(opened) == sorted(
        [*(path.name for path in base.glob("model*.safetensors")), "adapter_model.safetensors"]
    )
    moved = [event for event in said if isinstance(event, StepProgress)]
    assert max(event.total or 0 for event in moved) < 5000


@pytest.mark.parametrize("name", ["tokenizer.json", "LICENSE", "chat_template.jinja", "generation_config.json"])
def test_what_is_copied_counts(hub, tmp_path, name):
    write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter")
    before = pin(request(tmp_path), hub, lambda event: None).adapter.sha
    add(adapter, (name,))
    (adapter / name).write_text("{}")
    assert pin(request(tmp_path), hub, lambda event: None).adapter.sha != before


def test_what_no_merge_reads_is_not_fetched_either(dev, hub, tmp_path):
    base, adapter = write_base(tmp_path / "base", shards=2), write_adapter(tmp_path / "adapter")
    add(base, OTHER_FORMS)
    add(adapter, TRAINERS)
    put(dev, "demo/base", base)
    put(dev, "demo/adapter", adapter)
    sources = pin(Request(adapter=Ref(text="demo/adapter", repo="demo/adapter")), hub, lambda event: None)
    local = fetch(sources, {"base": [h.file for h in sources.base.headers], "adapter": ["adapter_model.safetensors"]}, hub,
                  lambda event: None)  # fmt: skip
    kept = {path.relative_to(folder).as_posix() for folder in (local.base, local.adapter) for path in folder.rglob("*")}
    assert not kept & {*OTHER_FORMS, *TRAINERS}


def test_a_pickle_counts_only_where_it_is_the_adapter(hub, tmp_path):
    write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter")
    before = pin(request(tmp_path), hub, lambda event: None).adapter.sha
    add(adapter, ("adapter_model.bin",))
    assert pin(request(tmp_path), hub, lambda event: None).adapter.sha == before


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state_0.pth", "checkpoint-500", "runs", "best-checkpoint"])
def test_a_trainers_link_to_another_disk_is_not_followed(hub, tmp_path, name):
    write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter")
    before = pin(request(tmp_path), hub, lambda event: None).adapter.sha
    (tmp_path / "scratch").mkdir()
    for target in (tmp_path / "scratch", tmp_path / "gone"):
        (adapter / name).symlink_to(target)
        assert pin(request(tmp_path), hub, lambda event: None).adapter.sha == before
        (adapter / name).unlink()


@pytest.mark.parametrize("name", ["value_head.bin", "vit.safetensors", "tokenizer.json", "additional_chat_templates"])
def test_any_other_link_that_leads_out_is_refused(hub, tmp_path, name):
    write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter")
    (tmp_path / "elsewhere").write_text("{}")
    (adapter / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="leads out of the folder"):
        pin(request(tmp_path), hub, lambda event: None)
