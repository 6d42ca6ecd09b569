"""A row for each layer and module: how large the delta is, and how much of it was kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bot.checks.elementwise.delta_rows import delta_rows
from bot.checks.elementwise.tally import Tally
from bot.events import silent
from bot.report_document import InputPins, MergeFacts
from bot.verify import Subject, verify
from tests.factory import save_adapter, save_base
from tests.steps import merge_folders


@dataclass(frozen=True)
class Touched:
    """Of an Expected what is asked here."""

    touched: bool = True


def tally(key: str, *, power: float = 1.0, size: float = 4.0, kept: float = 1.0, touched: bool = True) -> Tally:
    wanted: Any = Touched(touched)
    return Tally(key=key, wanted=wanted, power=power, size=size, kept=kept)


def names(*keys: str) -> list[tuple[int | None, str]]:
    return [(row["layer"], row["module"]) for row in delta_rows(map(tally, keys))]


def test_a_module_is_called_by_its_name_in_the_layer() -> None:
    assert names("model.layers.3.self_attn.q_proj.weight", "model.layers.10.self_attn.q_proj.weight") == [
        (3, "self_attn.q_proj"),
        (10, "self_attn.q_proj"),
    ]
    assert names("transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.bias") == [
        (0, "attn.c_attn"),
        (0, "attn.c_attn.bias"),
    ]


def test_what_is_in_no_layer_comes_last_and_keeps_its_name() -> None:
    keys = ("lm_head.weight", "classifier.0.weight", "model.layers.0.mlp.up_proj.weight")
    assert names(*keys) == [(0, "mlp.up_proj"), (None, "classifier.0"), (None, "lm_head")]


def test_two_stacks_of_layers_are_told_apart_by_what_tells_them_apart() -> None:
    assert names(
        "encoder.block.0.layer.0.SelfAttention.q.weight", "decoder.block.0.layer.0.SelfAttention.q.weight"
    ) == [
        (0, "decoder.layer.0.SelfAttention.q"),
        (0, "encoder.layer.0.SelfAttention.q"),
    ]
    assert names("model.visual.blocks.0.attn.qkv.weight", "model.language_model.layers.0.mlp.up_proj.weight") == [
        (0, "language_model.layers.mlp.up_proj"),
        (0, "visual.blocks.attn.qkv"),
    ]


def test_the_experts_of_a_layer_are_one_row() -> None:
    keys = [f"model.layers.2.mlp.experts.{number}.w1.weight" for number in range(160)]
    tallies = [tally(key, power=number + 1, size=100.0, kept=0.5) for number, key in enumerate(keys)]
    (row,) = delta_rows(tallies)
    assert (row["layer"], row["module"], row["tensors"]) == (2, "mlp.experts.w1", 160)
    assert row["relative"] == pytest.approx((sum(range(1, 161)) / 16000) ** 0.5)
    assert row["retention"] == pytest.approx(80 / sum(range(1, 161)))


def test_what_was_not_touched_or_has_nothing_to_be_compared_with_has_no_row() -> None:
    assert delta_rows([tally("a.0.b.weight", touched=False), tally("a.1.b.weight", power=0.0, size=0.0)]) == []


def test_what_cannot_be_divided_is_none() -> None:
    zero_base, zero_delta = tally("a.0.b.weight", size=0.0), tally("a.1.b.weight", power=0.0, kept=0.0)
    first, second = delta_rows([zero_base, zero_delta])
    assert (first["relative"], first["retention"]) == (None, 1.0)
    assert (second["relative"], second["retention"]) == (0.0, None)


def test_the_order_of_the_tallies_changes_no_digit() -> None:
    tallies = [tally(f"a.0.experts.{number}.b", power=0.1 * number, size=1 / (number + 3)) for number in range(60)]
    assert delta_rows(tallies) == delta_rows(tallies[::-1])


def test_the_rows_are_what_the_files_say(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    adapter = save_adapter(base, "llama", tmp_path / "adapter")
    merged = merge_folders(base, adapter, tmp_path / "merged")
    subject = Subject(
        folder=merged, base=base, adapter=adapter, inputs=InputPins.of({}), recorded=None, merge=MergeFacts.of({}),
        dtype="auto", ours=True, level="weights", not_run=(), trust_remote_code=False,
    )  # fmt: skip
    rows = verify(subject, silent).document.delta
    before, after = load_file(base / "model.safetensors"), load_file(merged / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    assert rows
    for row in rows:
        name = f"model.layers.{row['layer']}.{row['module']}"
        a, b = (factors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
        weight, delta = before[f"{name}.weight"].double(), scaling(adapter) * b @ a
        moved = after[f"{name}.weight"].double() - weight
        assert row["relative"] == pytest.approx(float(delta.norm() / weight.norm()))
        assert row["retention"] == pytest.approx(float((moved * delta).sum() / (delta * delta).sum()))


def scaling(adapter: Path) -> float:
    config = json.loads((adapter / "adapter_config.json").read_text())
    return float(torch.tensor(config["lora_alpha"] / config["r"]))
