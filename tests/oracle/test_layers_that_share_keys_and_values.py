"""Gemma 4: towers of clipped linears, and layers that take the keys and values of an earlier one.

An older transformers made k_proj and v_proj in such layers, and never called them: adapters hold them, with B all zeros.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from bot.errors import Refused
from bot.events import silent
from bot.records import Report
from bot.report_document import InputPins, MergeFacts
from bot.verify import Subject, verify
from tests.factory import TEXT
from tests.steps import merge_folders, plan_folders

LAYERS = "model.language_model.layers"
CONFIG: dict[str, Any] = {
    "text_config": {
        **TEXT, "model_type": "gemma4_text", "num_hidden_layers": 4, "num_kv_shared_layers": 2, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 128, "global_head_dim": 16,
    },
    "vision_config": {
        "model_type": "gemma4_vision", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 8,
        "position_embedding_size": 64, "use_clipped_linears": True,
    },
    "audio_config": None, "image_token_id": 120, "video_token_id": 121, "audio_token_id": 122, "boi_token_id": 123,
    "eoi_token_id": 124,
}  # fmt: skip
TARGETS = {
    "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear": (32, 32),
    f"{LAYERS}.3.self_attn.q_proj": (64, 64),
    f"{LAYERS}.0.self_attn.k_proj": (32, 64),
}
UNUSED = {f"{LAYERS}.3.self_attn.k_proj": (32, 64), f"{LAYERS}.2.self_attn.v_proj": (32, 64)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma4") / "base"
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(AutoConfig.for_model("gemma4", **CONFIG))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("_min", "_max")):  # infinite until calibrated
                buffer.fill_(-100.0 if name.endswith("_min") else 100.0)
    model.save_pretrained(folder)
    return folder


def write(folder: Path, unused: float) -> dict[str, torch.Tensor]:
    """An adapter; B of the modules that are never called is filled with `unused`. The deltas, by module."""
    torch.manual_seed(3)
    tensors, deltas = {}, {}
    for module, (tall, wide) in {**TARGETS, **UNUSED}.items():
        a, b = torch.randn(4, wide), torch.randn(tall, 4) * 0.05
        b = torch.full_like(b, unused) if module in UNUSED else b
        tensors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        deltas[module] = 2 * (b.double() @ a.double())
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj.linear", "q_proj", "k_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return deltas


def prove(base: Path, adapter: Path, merged: Path) -> Report:
    inputs = {"base": {"repo": "o/b", "sha": "b" * 40}, "adapter": {"repo": "o/a", "sha": "a" * 40}, "recipe": "1"}
    subject = Subject(
        folder=merged, base=base, adapter=adapter, inputs=InputPins.of(inputs), recorded=None, merge=MergeFacts.of({}),
        dtype="auto", ours=True,
        level="weights", not_run=(), trust_remote_code=False,
    )  # fmt: skip
    return verify(subject, silent)


def test_keys_and_values_that_are_never_called_do_not_stand_in_the_way(base: Path, tmp_path: Path) -> None:
    deltas = write(tmp_path / "adapter", 0.0)
    assert any("never called" in note for note in plan_folders(base, tmp_path / "adapter").notes)
    merged = merge_folders(base, tmp_path / "adapter", tmp_path / "merged")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, merged))
    assert before.keys() == after.keys()
    changed = {key.removesuffix(".weight") for key in before if not torch.equal(before[key], after[key])}
    assert changed == TARGETS.keys()
    for module in TARGETS:
        key = f"{module}.weight"
        assert float((after[key].double() - before[key].double() - deltas[module]).abs().max()) < 1e-6
    report = prove(base, tmp_path / "adapter", merged)
    assert [one.why for one in report.findings if one.status == "fail"] == []


def test_a_checkpoint_that_still_holds_them_is_merged_too(base: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    (older / "config.json").write_bytes((base / "config.json").read_bytes())
    more = {f"{module}.weight": torch.randn(shape) for module, shape in UNUSED.items()}
    save_file({**load_file(base / "model.safetensors"), **more}, older / "model.safetensors", metadata={"format": "pt"})
    write(tmp_path / "adapter", 0.0)
    merged = merge_folders(older, tmp_path / "adapter", tmp_path / "merged")
    after = load_file(merged / "model.safetensors")
    assert all(torch.equal(after[key], value) for key, value in more.items())
    report = prove(older, tmp_path / "adapter", merged)
    assert [one.why for one in report.findings if one.status == "fail"] == []


def test_what_changes_such_a_layer_after_all_is_refused(base: Path, tmp_path: Path) -> None:
    write(tmp_path / "adapter", 0.1)
    with pytest.raises(Refused, match="shares another's keys and values"):
        merge_folders(base, tmp_path / "adapter", tmp_path / "merged")
    report = prove(base, tmp_path / "adapter", base)
    assert any("names no weight of the base" in one.why for one in report.findings if one.id == "method")
