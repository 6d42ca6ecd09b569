"""The merger's reader and the verifier's, which share no code, give the same bits for every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bot.checks.reading.checkpoint import read_checkpoint
from bot.checks.reading.quantised import as_model
from tests.faults import quantised
from tests.formats.shelf import same, save, unpacked, values

KEY = "model.layers.0.self_attn.q_proj.weight"
E4M3 = torch.float8_e4m3fn


def agree(folder: Path) -> None:
    ours = values(folder)
    model = as_model(read_checkpoint(folder), json.loads((folder / "config.json").read_text()), "base")
    theirs = {key: place.packed.slab() for key, place in model.tensors.items() if place.packed}
    assert ours.keys() == theirs.keys()
    assert unpacked(folder).tensors.keys() == model.tensors.keys()
    for key, place in model.tensors.items():
        if place.packed:
            whole = torch.cat([place.packed.slab(slab) for slab in range(place.packed.slabs)])
            same(ours[key], whole.view(place.stored.shape))


@pytest.mark.parametrize("name", quantised.FORMS)
def test_of_tiny_models(tmp_path: Path, name: str) -> None:
    agree(quantised.build(name, tmp_path).base)


def codes(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(E4M3)


BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {
    "blocks": (BLOCKS, {KEY: codes(256, 384), f"{KEY}_scale_inv": torch.rand(2, 3)}),
    "ragged blocks": (BLOCKS, {KEY: codes(200, 300), f"{KEY}_scale_inv": torch.rand(2, 3)}),
    "bfloat16 scales": (BLOCKS, {KEY: codes(128, 256), f"{KEY}_scale_inv": torch.rand(1, 2).bfloat16()}),
    "exponents": (
        BLOCKS, {KEY: codes(128, 256), f"{KEY}_scale_inv": torch.tensor([[0.25, 2.0]]).to(torch.float8_e8m0fnu)},
    ),
    "bytes of exponents": (
        {"quant_method": "mxfp8"},
        {KEY: codes(64, 64), f"{KEY}_scale_inv": torch.randint(110, 130, (64, 2), dtype=torch.uint8)},
    ),
    "one scale": ({"quant_method": "fp8"}, {KEY: codes(48, 80), f"{KEY}_scale": torch.tensor(0.03)}),
    "rows": ({"quant_method": "fbgemm_fp8"}, {KEY: codes(48, 80), f"{KEY}_scale": torch.rand(48, 1)}),
    "a row of scales": ({"quant_method": "fbgemm_fp8"}, {KEY: codes(48, 80), f"{KEY}_scale": torch.rand(48)}),
    "modelopt": (
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        {KEY: codes(48, 80), f"{KEY}_scale": torch.tensor(0.02), KEY.replace("weight", "input_scale"): torch.ones(1)},
    ),
    "modelopt blocks": (
        {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"},
        {KEY: codes(256, 128), f"{KEY}_scale": torch.rand(2, 1, 1, 1)},
    ),
    "experts": (
        BLOCKS,
        {"m.experts.down_proj": codes(3, 256, 128), "m.experts.down_proj_scale_inv": torch.rand(3, 2, 1)},
    ),
    "experts, ragged": (
        BLOCKS,
        {"m.experts.down_proj": codes(3, 200, 100), "m.experts.down_proj_scale_inv": torch.rand(3, 2, 1)},
    ),
    "experts, one scale each": (
        {"quant_method": "fp8"},
        {"m.experts.down_proj": codes(3, 20, 10), "m.experts.down_proj_scale": torch.rand(3, 1, 1)},
    ),
    "fbgemm experts": (
        {"quant_method": "fbgemm_fp8"},
        {
            "m.experts.gate_up_proj": codes(3, 20, 12), "m.experts.gate_up_proj_scale": torch.rand(3, 1, 12),
            "m.experts.down_proj": codes(3, 6, 20), "m.experts.down_proj_scale": torch.rand(3, 20, 1),
        },
    ),
    "two numbers in a byte": (
        BLOCKS,
        {
            KEY: torch.randint(-128, 128, (64, 32), dtype=torch.int8),
            KEY.replace("weight", "scale"): torch.randint(110, 130, (64, 2), dtype=torch.uint8).view(torch.float8_e8m0fnu),
        },
    ),
    "mxfp4": (
        {"quant_method": "mxfp4"},
        {
            "m.experts.down_proj_blocks": torch.randint(0, 256, (3, 20, 2, 16), dtype=torch.uint8),
            "m.experts.down_proj_scales": torch.randint(100, 140, (3, 20, 2), dtype=torch.uint8),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_of_published_layouts(tmp_path: Path, name: str) -> None:
    said, tensors = LAYOUTS[name]
    agree(
        save(tmp_path, {**tensors, "norm.weight": torch.ones(3)}, {"model_type": "llama", "quantization_config": said})
    )
