"""gpt-oss's experts are what transformers makes of them, in its orientation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from bot.records import Json
from tests.formats.shelf import same, save, unpacked, values

KEY = "model.layers.0.mlp.experts.gate_up_proj"
CONFIG: Json = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}


@pytest.mark.parametrize("shape", [(3, 10, 2), (1, 64, 1), (2, 5, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_those_of_transformers(tmp_path: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
    scales = torch.randint(1, 254, shape, dtype=torch.uint8)
    found = values(save(tmp_path, {f"{KEY}_blocks": blocks, f"{KEY}_scales": scales}, CONFIG))[KEY]
    same(found, convert_moe_packed_tensors(blocks, scales, dtype=dtype).float())
    assert torch.equal(found.bfloat16().float(), found), "every value is a bfloat16 number"


def test_the_ends_of_the_scale_are_exact(tmp_path: Path) -> None:
    """A byte of 0 is 2⁻¹²⁷; 254 and 255 reach beyond float32, to infinity, as they do in transformers."""
    blocks = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 1, 16)
    for byte in (0, 254, 255):
        scales = torch.full((1, 16, 1), byte, dtype=torch.uint8)
        folder = save(tmp_path / str(byte), {f"{KEY}_blocks": blocks, f"{KEY}_scales": scales}, CONFIG)
        theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        torch.testing.assert_close(values(folder)[KEY], theirs, rtol=0, atol=0, equal_nan=True)


def test_a_layout_that_is_not_gpt_osss_is_refused(tmp_path: Path) -> None:
    blocks, scales = torch.zeros(2, 4, 3, 16, dtype=torch.uint8), torch.zeros(2, 4, 2, dtype=torch.uint8)
    (refusal,) = unpacked(save(tmp_path, {f"{KEY}_blocks": blocks, f"{KEY}_scales": scales}, CONFIG)).refusals
    assert refusal.code == "quantised-base"
    assert f"{KEY}_blocks" in refusal.reason


def test_a_tiny_gpt_oss_is_what_transformers_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GptOssConfig(
        hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        vocab_size=128, num_local_experts=4, num_experts_per_tok=2, layer_types=["sliding_attention", "full_attention"],
        dtype="bfloat16", rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, initializer_range=0.02,
    )  # fmt: skip
    plain = GptOssForCausalLM(config).bfloat16().state_dict()
    tensors = dict(plain)
    for key in [key for key in plain if key.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, into, out = tensors.pop(key).shape
        tensors[f"{key}_blocks"] = torch.randint(0, 256, (experts, out, into // 32, 16), dtype=torch.uint8)
        tensors[f"{key}_scales"] = torch.randint(110, 124, (experts, out, into // 32), dtype=torch.uint8)
    said = {**config.to_dict(), "architectures": ["GptOssForCausalLM"], **CONFIG}
    folder = save(tmp_path, tensors, said)
    loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=Mxfp4Config(dequantize=True)).state_dict()
    ours = values(folder)
    assert len(ours) == 4
    for key, value in ours.items():
        same(value, loaded[key].float())
    assert set(unpacked(folder).tensors) == set(loaded), "and nothing else is in the checkpoint"
