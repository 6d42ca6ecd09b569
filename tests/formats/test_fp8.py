"""FP8 bases are read as transformers and compressed-tensors read them, and as DeepSeek's kernels index their blocks."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, _dequantize_fp8_weight

from bot import formats
from bot.records import Json
from tests.formats.shelf import same, save, unpacked, values

E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
KEY, SCALE = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight_scale_inv"
BLOCKS: Json = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def codes(*shape: int) -> torch.Tensor:
    """All e4m3 numbers but NaN."""
    found = torch.randint(0, 256, shape, dtype=torch.uint8)
    found[(found & 0x7F) == 0x7F] = 3
    return found.view(E4M3)


def scales(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    if dtype == torch.uint8:
        return torch.randint(110, 130, shape, dtype=torch.uint8)
    return (torch.rand(shape) * 1e-2 + 1e-4).to(dtype)


def config(said: Json) -> Json:
    return {"model_type": "llama", "dtype": "bfloat16", "quantization_config": said}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, E8M0, torch.uint8])
@pytest.mark.parametrize("shape", [(256, 384), (128, 128), (64, 256), (96, 80)])
def test_blocks_are_those_of_transformers(tmp_path: Path, shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, scale = codes(*shape), scales(*(math.ceil(n / 128) for n in shape), dtype=dtype)
    theirs = Fp8Dequantize(SimpleNamespace())._dequantize_one(weight, scale, torch.float32)
    same(values(save(tmp_path, {KEY: weight, SCALE: scale}, config(BLOCKS)))[KEY], theirs)


@pytest.mark.parametrize("shape", [(192, 200), (130, 384), (384, 129), (257, 255)])
def test_a_ragged_edge_has_blocks_of_its_own(tmp_path: Path, shape: tuple[int, int]) -> None:
    """transformers' own backward pass indexes so; its Fp8Dequantize raises, or takes 192 rows for two blocks of 96."""
    weight, scale = codes(*shape), scales(*(math.ceil(n / 128) for n in shape))
    wanted = _dequantize_fp8_weight(weight, scale, [128, 128], torch.float32)
    same(values(save(tmp_path, {KEY: weight, SCALE: scale}, config(BLOCKS)))[KEY], wanted)


def test_a_grid_that_is_not_the_configured_one_divides_the_weight(tmp_path: Path) -> None:
    """MXFP8: rows of 32, with bytes for exponents."""
    weight, scale = codes(48, 96), scales(48, 3, dtype=torch.uint8)
    theirs = Fp8Dequantize(SimpleNamespace())._dequantize_one(weight, scale, torch.float32)
    said = {"quant_method": "mxfp8", "weight_block_size": [1, 32]}
    same(values(save(tmp_path / "a", {KEY: weight, SCALE: scale}, config(said)))[KEY], theirs)
    same(values(save(tmp_path / "b", {KEY: weight, SCALE: scale}, config(BLOCKS)))[KEY], theirs)


def test_experts_of_four_bits_in_an_fp8_checkpoint(tmp_path: Path) -> None:
    """DeepSeek-V4: two e2m1 numbers in an int8, a scale for 32 of them, under `.scale`."""
    key = "layers.0.ffn.experts.3.w1"
    weight = torch.randint(-128, 128, (48, 64), dtype=torch.int8)
    scale = torch.randint(110, 130, (48, 4), dtype=torch.uint8).view(E8M0)
    theirs = Fp8Dequantize(SimpleNamespace())._dequantize_one(weight, scale, torch.float32)
    same(
        values(save(tmp_path, {f"{key}.weight": weight, f"{key}.scale": scale}, config(BLOCKS)))[f"{key}.weight"],
        theirs,
    )


@pytest.mark.parametrize("shape", [(4, 256, 384), (3, 128, 200), (2, 384, 64)])
def test_stacks_of_experts(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    experts, out, into = shape
    key = "model.layers.0.mlp.experts.down_proj"
    weight, scale = codes(*shape), scales(experts, math.ceil(out / 128), math.ceil(into / 128))
    wanted = _dequantize_fp8_weight(weight, scale, [128, 128], torch.float32)
    same(values(save(tmp_path, {key: weight, f"{key}_scale_inv": scale}, config(BLOCKS)))[key], wanted)


def test_halves_of_a_stack_with_an_unknown_seam_are_refused(tmp_path: Path) -> None:
    key = "model.layers.0.mlp.experts.gate_up_proj"
    folder = save(tmp_path, {key: codes(2, 192, 128), f"{key}_scale_inv": scales(2, 2, 1)}, config(BLOCKS))
    (refusal,) = unpacked(folder).refusals
    assert key in refusal.reason


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (96,), (96, 1)])
def test_one_scale_for_the_tensor_or_for_each_row(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    """AutoFP8 and static fp8; the scales of activations go with their weight."""
    weight, scale = codes(96, 80), scales(*shape)
    module = KEY.removesuffix(".weight")
    said = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    tensors = {
        KEY: weight,
        f"{module}.{name}": scale,
        f"{module}.input_scale": scales(1),
        f"{module}.bias": torch.ones(96),
    }
    folder = save(tmp_path, tensors, config(said))
    same(values(folder)[KEY], weight.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(())))
    assert set(unpacked(folder).tensors) == {KEY, f"{module}.bias"}


@pytest.mark.parametrize(
    ("algorithm", "shape"), [("FP8", ()), ("FP8_PER_CHANNEL_PER_TOKEN", (256,)), ("FP8_PB_WO", (2, 1, 3, 1))]
)
def test_modelopts_kinds(tmp_path: Path, algorithm: str, shape: tuple[int, ...]) -> None:
    weight, scale, module = codes(256, 384), scales(*shape), "model.layers.0.self_attn.k_proj"
    said = {"quant_method": "modelopt", "quant_algo": algorithm, "producer": {"name": "modelopt"}}
    tensors = {f"{module}.weight": weight, f"{module}.weight_scale": scale, f"{module}.k_scale": scales(1)}
    wide = scale.reshape(2, 3).repeat_interleave(128, 0).repeat_interleave(128, 1) if len(shape) == 4 else None
    wanted = weight.float() * (scale.reshape(-1, 1) if wide is None else wide)
    same(values(save(tmp_path, tensors, config(said)))[f"{module}.weight"], wanted)


def test_fbgemms_layers_and_llama_4s_experts(tmp_path: Path) -> None:
    """FbgemmFp8Linear: out × 1. FbgemmFp8Llama4TextExperts: one for each output, in two shapes."""
    experts = "language_model.model.layers.0.feed_forward.experts"
    gate, down = codes(3, 48, 64), codes(3, 32, 48)
    gate_scale, down_scale = scales(3, 1, 64), scales(3, 48, 1)
    weight, scale = codes(96, 80), scales(96, 1)
    tensors = {
        KEY: weight, KEY + "_scale": scale,
        f"{experts}.gate_up_proj": gate, f"{experts}.gate_up_proj_scale": gate_scale,
        f"{experts}.down_proj": down, f"{experts}.down_proj_scale": down_scale,
    }  # fmt: skip
    found = values(save(tmp_path, tensors, config({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0})))
    same(found[KEY], weight.float() * scale)
    same(found[f"{experts}.gate_up_proj"], gate.float() * gate_scale)
    same(found[f"{experts}.down_proj"], down.float() * down_scale.transpose(1, 2))


def test_an_embedding_of_eight_bits(tmp_path: Path) -> None:
    key = "model.embed_tokens.weight"
    weight, scale = codes(100, 64), scales(1)
    said = {**BLOCKS, "modules_to_convert": ["embed_tokens"]}
    same(values(save(tmp_path, {key: weight, f"{key}_scale": scale}, config(said)))[key], weight.float() * scale)


@pytest.mark.parametrize(
    "tensors",
    [
        {KEY: codes(8, 8)},
        {KEY: codes(8, 8), SCALE: scales(3, 1)},
        {KEY: codes(8, 8), SCALE: torch.ones(1, 1, dtype=torch.int32)},
        {KEY: codes(8, 8).view(torch.float8_e5m2), SCALE: scales(1, 1)},
        {KEY: codes(2, 2, 8, 8), SCALE: scales(1, 1)},
    ],
    ids=["no scale", "a scale that does not fit", "a scale of integers", "e5m2", "four axes"],
)
def test_what_nobody_knows_how_to_read_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    (refusal,) = unpacked(save(tmp_path, tensors, config(BLOCKS))).refusals
    assert refusal.code == "quantised-base"
    assert KEY in refusal.reason


def test_a_text_configs_quantization_is_found() -> None:
    assert formats.quantization_of({"text_config": {"quantization_config": BLOCKS}}) == BLOCKS
