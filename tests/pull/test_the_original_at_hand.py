"""The 16-bit model behind a quantised base is compared with where all of it lies in the cache; it is never fetched for that."""

from __future__ import annotations

import json
from pathlib import Path

from bot.devhub import DevHub
from bot.events import silent
from bot.hub import Hub
from bot.pull import original_at_hand, pin
from bot.records import Ref, Request
from tests.pull.given import CONFIG, put, write_adapter, write_base

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def quantised(folder: Path) -> Path:
    write_base(folder)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": FP8}))
    (folder / "README.md").write_text("---\nbase_model: demo/base\nbase_model_relation: quantized\n---\n")
    return folder


def test_it_is_found_once_every_weight_of_it_is_here(hub: Hub, dev: DevHub, pair: dict[str, str], tmp_path: Path):
    base = Ref(text="base", folder=quantised(tmp_path / "fp8"))
    adapter = Ref(text="adapter", folder=write_adapter(tmp_path / "own"))
    found = pin(Request(adapter=adapter, base=base), hub, silent).base
    assert original_at_hand(found, hub) is None, "nothing of it is in the cache"
    pinned = hub.pin("demo/base")
    names = [entry.name for entry in pinned.files]
    hub.download("demo/base", pinned.sha, [name for name in names if not name.endswith("2-of-00002.safetensors")])
    assert original_at_hand(found, hub) is None, "one shard is missing"
    folder = hub.download("demo/base", pinned.sha, names)
    assert original_at_hand(found, hub) == folder


def test_a_plain_base_has_none(hub: Hub, pair: dict[str, str]):
    request = Request(adapter=Ref(text="a", repo="demo/adapter"), base=Ref(text="b", repo="demo/base"))
    assert original_at_hand(pin(request, hub, silent).base, hub) is None


def test_a_parent_that_is_quantised_too_is_no_original(hub: Hub, dev: DevHub, pair: dict[str, str], tmp_path: Path):
    put(dev, "demo/base", quantised(tmp_path / "again"))
    pinned = hub.pin("demo/base")
    hub.download("demo/base", pinned.sha, [entry.name for entry in pinned.files])
    base = Ref(text="base", folder=quantised(tmp_path / "fp8"))
    adapter = Ref(text="adapter", folder=write_adapter(tmp_path / "own"))
    assert original_at_hand(pin(Request(adapter=adapter, base=base), hub, silent).base, hub) is None
