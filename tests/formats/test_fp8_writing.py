"""FP8 outputs: the codes are compressed-tensors' own, plain transformers loads what was measured, FP8 bases keep their form."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from compressed_tensors.utils.match import match_name
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Quantize

from bot.formats.fp8 import writer_channel, writer_same
from bot.records import Json
from tests.formats.shelf import reader_of, rows, same, save, unpacked, values, written

KEY, SCALE = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight_scale"
E4M3 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def theirs(weight: torch.Tensor, **args: object) -> dict[str, torch.Tensor]:
    """What compressed-tensors itself makes of a float32 weight."""
    how = QuantizationArgs(num_bits=8, type="float", **args)
    if how.block_structure:
        high, wide = how.block_structure
        padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % wide, 0, -weight.shape[0] % high))
        seen = padded.reshape(-(-weight.shape[0] // high), high, -(-weight.shape[1] // wide), wide)
        low, top = seen.amin((1, 3)), seen.amax((1, 3))
    else:
        low, top = torch.aminmax(weight, dim=1, keepdim=True)
    scale, _ = calculate_qparams(low, top, how)
    inputs = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=how, input_activations=inputs)
    compressor = BaseCompressor.get_value_from_registry("float-quantized")
    return compressor.compress({"weight": weight, "weight_scale": scale}, scheme)


def equal_codes(ours: torch.Tensor, wanted: torch.Tensor) -> None:
    assert ours.dtype == wanted.dtype == E4M3
    assert torch.equal(ours.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("shape", [(96, 80), (1, 5), (300, 4099), (7, 1)], ids=str)
def test_rows_are_quantised_as_compressed_tensors_quantises_them(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape) * torch.logspace(-1, 1, shape[0])[:, None] + 1e-2
    weight[0] = 0  # a row of zeros has a scale too
    ours = written(writer_channel, KEY, weight)
    wanted = theirs(weight, strategy="channel", scale_dtype=torch.bfloat16)
    assert torch.equal(ours[SCALE], wanted["weight_scale"])
    equal_codes(ours[KEY], wanted["weight"])


def test_a_row_of_tiny_weights_has_a_scale_that_float16_has_too() -> None:
    weight = torch.randn(64, 128) * torch.logspace(-12, -2, 64)[:, None]
    ours = written(writer_channel, KEY, weight)
    scale = ours[SCALE]
    assert torch.equal(scale.half().float(), scale)
    assert torch.equal(scale.bfloat16().float(), scale)
    error = (ours[KEY].float() * scale - weight).abs().amax(1)
    assert (error <= torch.maximum(weight.abs().amax(1) / 16, scale[:, 0] * 2**-10)).all()


def test_the_config_is_one_that_compressed_tensors_reads() -> None:
    said = writer_channel.quantization_config({}, left=["model.layers.0.mlp.gate", "lm_head"])
    read = QuantizationConfig.model_validate(said)
    (group,) = read.config_groups.values()
    assert group.weights.strategy == "channel"
    assert group.input_activations.dynamic is True
    assert read.ignore == ["lm_head", "model.layers.0.mlp.gate"]


def test_stacked_experts_are_named_for_vllm() -> None:
    """It asks of the layers `….experts.0.gate_proj`, and would wait for their scales."""
    moe = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}
    read = QuantizationConfig.model_validate(writer_channel.quantization_config(moe, ["lm_head"]))
    assert any(match_name("model.layers.0.mlp.experts.0.gate_proj", one) for one in read.ignore)
    assert not any(match_name("model.layers.0.mlp.shared_experts.gate_proj", one) for one in read.ignore)
    dense = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    assert writer_channel.quantization_config(dense, ["lm_head"])["ignore"] == ["lm_head"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_plain_transformers_loads_exactly_what_was_measured(tmp_path: Path, dtype: str) -> None:
    """Both ways that transformers has, in every dtype: the scales are numbers of all three, stored as float32."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, dtype=dtype, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    tensors, exact = {}, {}
    for key, weight in model.state_dict().items():
        if key.endswith("proj.weight"):
            tensors |= written(writer_channel, key, weight.float())
            exact[key] = tensors[key].float() * tensors[f"{key}_scale"].float()
        else:
            tensors[key] = weight
    said: Json = {**config.to_dict(), "quantization_config": writer_channel.quantization_config({})}
    folder = save(tmp_path, tensors, said)
    for key, value in values(folder).items():
        same(value, exact.pop(key))  # our own reader reads what was written
        exact[key] = value
    tokens = torch.arange(12)[None]
    for how in (None, CompressedTensorsConfig(dequantize=True)):
        loaded = AutoModelForCausalLM.from_pretrained(folder, **({"quantization_config": how} if how else {}))
        with torch.no_grad():
            assert loaded(tokens).logits.isfinite().all()
        held = loaded.state_dict()
        for key, value in exact.items():
            same(held[key].float(), value.to(getattr(torch, dtype)).float())


def own(folder: Path, key: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    tensor = unpacked(folder).tensors[key]
    assert writer_same.writes(tensor)
    writer = writer_same.SameFp8Writer(tensor=tensor)
    assert writer.applies(key, tuple(weight.shape))
    return written(writer, key, weight)


def base(folder: Path, shape: tuple[int, ...], scale: torch.Tensor, name: str, said: Json) -> Path:
    tensors = {KEY: torch.zeros(shape, dtype=E4M3), KEY.replace("weight", name): scale}
    return save(folder, tensors, {"quantization_config": said})


BLOCKS: Json = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize("shape", [(256, 384), (200, 300), (64, 64), (1000, 2100)], ids=str)
def test_blocks_are_quantised_as_compressed_tensors_quantises_them(tmp_path: Path, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape) * 0.05
    scale = torch.ones(math.ceil(shape[0] / 128), math.ceil(shape[1] / 128))
    ours = own(base(tmp_path, shape, scale, "weight_scale_inv", BLOCKS), KEY, weight)
    wanted = theirs(weight, strategy="block", block_structure=[128, 128])
    assert torch.equal(ours[f"{KEY}_scale_inv"], wanted["weight_scale"])
    equal_codes(ours[KEY], wanted["weight"])


def test_blocks_differ_from_transformers_own_by_single_steps(tmp_path: Path) -> None:
    weight = torch.randn(256, 384) * 0.05
    ours = own(base(tmp_path, (256, 384), torch.ones(2, 3), "weight_scale_inv", BLOCKS), KEY, weight)
    quantizer = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=(128, 128), scale_fmt="float"))
    others = Fp8Quantize(quantizer)._quantize_one(KEY, weight)
    torch.testing.assert_close(ours[f"{KEY}_scale_inv"], others[f"{KEY}_scale_inv"], rtol=2**-22, atol=0)
    steps = (ours[KEY].view(torch.uint8).int() - others[KEY].view(torch.uint8).int()).abs()
    assert steps.max() <= 1
    assert (steps > 0).float().mean() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu, torch.uint8])
@pytest.mark.parametrize(
    ("scale", "said"),
    [((2, 3), BLOCKS), ((), {"quant_method": "fp8"}), ((200,), {"quant_method": "fp8"}), ((200, 1), {"quant_method": "fbgemm_fp8"})],
    ids=["blocks", "tensor", "rows", "channels"],
)  # fmt: skip
def test_every_form_comes_back_as_it_was(
    tmp_path: Path, scale: tuple[int, ...], said: Json, dtype: torch.dtype
) -> None:
    """Same keys, dtypes and shapes; an error of half a step at most; and quantising the result again changes nothing."""
    weight = torch.randn(200, 300) * 0.05
    weight[:128, :128] = 0
    one = torch.ones(scale).to(dtype) if dtype != torch.uint8 else torch.full(scale, 127, dtype=dtype)
    name = "weight_scale_inv" if said is BLOCKS else "weight_scale"
    folder = base(tmp_path / "base", (200, 300), one, name, said)
    ours = own(folder, KEY, weight)
    found = save(tmp_path / "out", ours, {"quantization_config": said})
    stored = {key: (tensor.dtype, tensor.shape) for key, tensor in ours.items()}
    assert stored == {KEY: (E4M3, (200, 300)), KEY.replace("weight", name): (dtype, scale)}
    back = values(found)[KEY]
    assert ((back - weight).abs() <= weight.abs() / 16 + weight.abs().max() / 448 * 2**-9).all()
    again = save(tmp_path / "again", own(found, KEY, back), {"quantization_config": said})
    same(values(again)[KEY], back)


def test_a_tensor_too_large_to_be_held_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bot.formats.fp8 import encoding

    weight = torch.randn(200, 300) * 0.05
    folder = base(tmp_path, (200, 300), torch.ones(()), "weight_scale", {"quant_method": "fp8"})
    whole = own(folder, KEY, weight)
    monkeypatch.setattr(encoding, "TWICE", 1000)
    monkeypatch.setattr(encoding, "STRIP", 900)
    pieces = own(folder, KEY, weight)
    for key, tensor in whole.items():
        assert torch.equal(pieces[key].float(), tensor.float())


def test_stacks_of_experts_keep_their_form(tmp_path: Path) -> None:
    key = "model.layers.0.mlp.experts.down_proj"
    weight = torch.randn(3, 200, 260) * 0.05
    tensors = {key: torch.zeros(3, 200, 260, dtype=E4M3), f"{key}_scale_inv": torch.ones(3, 2, 3)}
    folder = save(tmp_path / "base", tensors, {"quantization_config": BLOCKS})
    ours = own(folder, key, weight)
    for expert in range(3):
        wanted = theirs(weight[expert], strategy="block", block_structure=[128, 128])
        assert torch.equal(ours[f"{key}_scale_inv"][expert], wanted["weight_scale"])
        equal_codes(ours[key][expert], wanted["weight"])
    found = save(tmp_path / "out", ours, {"quantization_config": BLOCKS})
    assert rows(unpacked(found).tensors[key], reader_of(found)).shape == weight.shape
