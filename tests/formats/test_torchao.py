"""torchao checkpoints are read as torchao dequantises them; make_torchao.py recorded both."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from bot.records import Json
from tests.formats.shelf import save, unpacked, values

HERE = Path(__file__).parent / "torchao"
KEY = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("name", sorted(path.name for path in HERE.iterdir()))
def test_weights_are_torchaos(name: str) -> None:
    expected = json.loads((HERE / name / "expected.json").read_text())
    found = {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in values(HERE / name).items()}
    assert len(found) == 7
    assert found == expected
    assert not any("._weight" in key for key in unpacked(HERE / name).tensors)


def said(kind: str) -> Json:
    quant_type = {"default": {"_type": kind, "_version": 2, "_data": {}}}
    return {"quantization_config": {"quant_method": "torchao", "quant_type": quant_type}}


@pytest.mark.parametrize(
    ("kind", "qdata", "more"),
    [
        ("Int4WeightOnlyConfig", torch.zeros(8, 8, dtype=torch.uint8), {}),
        ("Int4WeightOnlyConfig", torch.zeros(8, 2, dtype=torch.int32), {}),
        ("Int8WeightOnlyConfig", torch.zeros(8, 16, dtype=torch.int8), {"act_pre_scale": torch.ones(16)}),
        ("Int8WeightOnlyConfig", torch.zeros(8, 16, dtype=torch.int8), {"zero_point": torch.ones(3, dtype=torch.int8)}),
    ],
)
def test_what_torchao_packs_for_a_kernel_is_refused(
    tmp_path: Path, kind: str, qdata: torch.Tensor, more: dict[str, torch.Tensor]
) -> None:
    parts = {"qdata": qdata, "scale": torch.ones(8, 1), **more}
    folder = save(tmp_path, {f"{KEY}._weight_{name}": part for name, part in parts.items()}, said(kind))
    (refusal,) = unpacked(folder).refusals
    assert kind in refusal.reason
    assert f"{KEY}.weight" in refusal.reason


def test_a_checkpoint_without_packed_weights_is_refused(tmp_path: Path) -> None:
    (refusal,) = unpacked(save(tmp_path, {f"{KEY}.weight": torch.ones(2, 2)}, said("Int8WeightOnlyConfig"))).refusals
    assert "Int8WeightOnlyConfig" in refusal.reason
    old: Json = {"quantization_config": {"quant_method": "torchao", "quant_type": "int4_weight_only"}}
    (refusal,) = unpacked(save(tmp_path / "old", {f"{KEY}.weight": torch.ones(2, 2)}, old)).refusals
    assert "int4_weight_only" in refusal.reason
