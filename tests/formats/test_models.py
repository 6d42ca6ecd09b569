"""Whole tiny models in the layouts that are published, loaded by plain transformers: parameter by parameter the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig, FineGrainedFP8Config

from bot.records import Json
from tests.formats.shelf import same, save, unpacked, values

SIZES: Json = {
    "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128,
}  # fmt: skip
MODELS: dict[str, Json] = {
    "llama": {},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
        "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
        "num_key_value_heads": 4,
    },
}  # fmt: skip
BLOCK = (32, 16)


def published(kind: str, folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """The config, and the weights under the names that checkpoints have (experts one by one)."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **MODELS[kind]}, dtype="bfloat16", tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config).bfloat16()
    model.save_pretrained(folder)
    from safetensors.torch import load_file

    return model.config, load_file(folder / "model.safetensors")


def quantised(key: str) -> bool:
    return bool(re.search(r"_proj(_with_mqa)?\.weight$|q_[ab]_proj\.weight$|kv_b_proj\.weight$", key))


def compare(loaded: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> None:
    """Our values under the checkpoint's keys are the loaded model's, once they are rounded to its dtype; experts stand fused."""
    for key, value in ours.items():
        found = re.fullmatch(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight", key)
        if found is None:
            theirs = loaded.pop(key)
        else:
            module, expert, name = found[1], int(found[2]), found[3]
            stack = loaded[f"{module}.{'down_proj' if name == 'down' else 'gate_up_proj'}"][expert]
            half = len(stack) // 2
            theirs = {"gate": stack[:half], "up": stack[half:], "down": stack}[name]
        assert theirs.dtype == torch.bfloat16
        same(value.bfloat16().float(), theirs.float())


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MODELS)
def test_block_scaled_fp8(tmp_path: Path, kind: str, scale_dtype: torch.dtype) -> None:
    config, plain = published(kind, tmp_path / "plain")
    tensors = {}
    for key, weight in plain.items():
        if not quantised(key):
            tensors[key] = weight
            continue
        grid = [n // b for n, b in zip(weight.shape, BLOCK, strict=True)]
        scale = (torch.rand(grid) * 1e-3 + 1e-4).to(scale_dtype)
        tensors[key] = (torch.randn(weight.shape) * 100).clamp(-448, 448).to(torch.float8_e4m3fn)
        tensors[f"{key}_scale_inv"] = scale
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)}
    folder = save(tmp_path / "fp8", tensors, {**config.to_dict(), "quantization_config": said})
    how = FineGrainedFP8Config(dequantize=True, weight_block_size=BLOCK)
    loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how).state_dict()
    ours = values(folder)
    assert len(ours) == sum(quantised(key) for key in plain) > 8
    compare(dict(loaded), ours)
    assert set(unpacked(folder).tensors) == set(plain)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("preset", ["W4A16", "W4A16_ASYM", "W8A8", "FP8_DYNAMIC"])
def test_compressed_tensors(tmp_path: Path, kind: str, preset: str) -> None:
    import json

    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    from tests.formats.test_compressed import parameters

    scheme = preset_name_to_scheme(preset, ["Linear"])
    assert scheme.weights is not None
    if scheme.weights.group_size:
        scheme.weights.group_size = 16
    forms = {"W4A16": "pack-quantized", "W4A16_ASYM": "pack-quantized", "W8A8": "int-quantized"}
    form = forms.get(preset, "float-quantized")
    config, plain = published(kind, tmp_path / "plain")
    tensors = {}
    for key, weight in plain.items():
        if not quantised(key):
            tensors[key] = weight
            continue
        packed = BaseCompressor.get_value_from_registry(form).compress(
            parameters(scheme, weight.float(), torch.bfloat16), scheme
        )
        tensors |= {key.removesuffix("weight") + name: tensor for name, tensor in packed.items()}
    whole = QuantizationConfig(
        config_groups={"group_0": scheme}, format=form, quantization_status="compressed", ignore=["lm_head"]
    )
    said = {**config.to_dict(), "quantization_config": json.loads(whole.model_dump_json())}
    folder = save(tmp_path / "packed", tensors, said)
    how = CompressedTensorsConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how).state_dict()
    ours = values(folder)
    assert len(ours) == sum(quantised(key) for key in plain)
    compare(dict(loaded), ours)
    assert set(unpacked(folder).tensors) == set(plain)
