"""Four-bit and int8 outputs: what bitsandbytes itself would store, and what plain transformers loads."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import bitsandbytes.functional as F
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from bot import formats
from bot.errors import Refused
from bot.formats.bitsandbytes import double_quant, linears, simulated
from bot.records import Json, WriterChoice
from tests.formats.shelf import headers, reader_of, rows, save, unpacked, values, written
from tests.formats.test_bnb import DTYPES, SHAPES, alike, theirs, tiny

KEY = "model.layers.0.mlp.up_proj.weight"
NAMES = ("nf4", "fp4", "int8")
STATE = f"{KEY}.quant_state.bitsandbytes__"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def as_ours(weight: torch.Tensor, kind: str, size: int, double: bool) -> tuple[torch.Tensor, F.QuantState]:
    """bitsandbytes' quantize_4bit, with the mean of double quantisation as ours takes it."""
    codes, state = F.quantize_4bit(weight, blocksize=size, quant_type=kind, compress_statistics=False)
    if double:
        offset = torch.tensor(double_quant.mean(state.absmax.numpy()))
        state.absmax, state.state2 = F.quantize_blockwise(state.absmax - offset, blocksize=256)
        state.offset, state.nested = offset, True
    return codes, state


# --- simulated -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("size", [32, 64, 256, 4096])
def test_a_simulated_weight_is_what_bitsandbytes_makes_there_and_back(
    tmp_path: Path, size: int, kind: str, double: bool, dtype: torch.dtype
) -> None:
    said = {"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": double, "blocksize": size}
    for at, shape in enumerate([*SHAPES, (600, 700)]):
        weight = torch.randn(shape).to(dtype)
        wanted = theirs(*as_ours(weight, kind, size, double))
        assert_simulated(tmp_path / str(at), KEY, weight, said, "LlamaForCausalLM", wanted)


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("shape", [(64, 192), (96, 33), (33, 7), (640, 70)])
def test_a_simulated_conv1d_has_its_blocks_along_its_inputs(tmp_path: Path, shape: tuple[int, int], size: int) -> None:
    weight = torch.randn(shape).to(torch.bfloat16)
    wanted = theirs(*as_ours(weight.T.contiguous(), "nf4", size, True)).T.contiguous()
    key = "transformer.h.0.attn.c_attn.weight"
    assert_simulated(tmp_path, key, weight, {"blocksize": size}, "GPT2LMHeadModel", wanted)


def assert_simulated(
    folder: Path, key: str, weight: torch.Tensor, said: Json, model: str, wanted: torch.Tensor
) -> None:
    save(folder, {key: weight}, {"model_type": "gpt2" if "GPT2" in model else "llama", "architectures": [model]})
    config = json.loads((folder / "config.json").read_text())
    seen = simulated.unpack(headers(folder), config, simulated.settings_of(said))
    assert not seen.refusals
    alike(rows(seen.tensors[key], reader_of(folder)).numpy(), wanted)


@pytest.mark.parametrize(
    ("said", "config", "why"),
    [
        ({"load_in_8bit": True}, {"model_type": "llama"}, "four bits"),
        ({"bnb_4bit_quant_type": "af4"}, {"model_type": "llama"}, "af4"),
        ({"blocksize": 48}, {"model_type": "llama"}, "blocks of 48"),
        ({}, {"model_type": "nobody-knows"}, "nobody-knows"),
    ],
)
def test_what_cannot_be_simulated_is_refused(said: Json, config: Json, why: str) -> None:
    (refusal,) = simulated.unpack({}, config, simulated.settings_of(said)).refusals
    assert why in refusal.reason
    assert refusal.code == "simulate-nf4"


def test_a_model_loaded_in_four_bits_holds_what_is_simulated(tmp_path: Path) -> None:
    """Of a whole model, by transformers and bitsandbytes: which weights, and all of their numbers but for the mean's last bit."""
    for model_type in ("llama", "gpt2"):
        folder = tmp_path / model_type
        tiny(model_type).save_pretrained(folder)
        said = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**said))
        config = json.loads((folder / "config.json").read_text())
        seen = simulated.unpack(headers(folder), config, simulated.settings_of(said)).tensors
        packed = {key for key, tensor in seen.items() if tensor.packed}
        params = {key: one for key, one in loaded.named_parameters() if isinstance(one, bnb.nn.Params4bit)}
        assert packed == params.keys()
        for key, one in params.items():
            wanted = theirs(one.data, one.quant_state)
            found = rows(seen[key], reader_of(folder))
            torch.testing.assert_close(found, wanted.T if model_type == "gpt2" else wanted, rtol=3e-7, atol=0)


# --- written -------------------------------------------------------------------------------------------------------


def stored(writer: Any, key: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a writer stores, safe for safetensors' loaders: float32 lies at multiples of four."""
    at = 0
    for _, dtype, shape in writer.parts(key, tuple(weight.shape)):
        width = 4 if dtype == "F32" else 1
        assert at % width == 0
        at += int(np.prod(shape, dtype=int)) * width
    assert writer.NAME == "int8" or at % 8 == 0
    found: dict[str, torch.Tensor] = written(writer, key, weight)
    return found


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_what_is_written_is_what_bitsandbytes_would_save(kind: str) -> None:
    for shape in [*SHAPES, (600, 700), (3, 400_000)]:
        weight = torch.randn(shape)
        codes, state = as_ours(weight, kind, 64, kind == "nf4")
        saved = state.as_dict(packed=True)
        found = stored(formats.WRITERS[kind], KEY, weight)
        assert found.keys() == {KEY} | {f"{KEY}.{name}" for name in saved}
        said = json.loads(bytes(found.pop(STATE + kind).numpy()))
        wanted = json.loads(bytes(saved.pop(f"quant_state.bitsandbytes__{kind}").numpy()))
        assert said == wanted | {"dtype": "bfloat16"}
        alike(found.pop(KEY).numpy(), codes)
        for name, one in saved.items():
            alike(found.pop(f"{KEY}.{name}").numpy(), one)


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_what_bitsandbytes_would_save(dtype: torch.dtype) -> None:
    for shape in [*SHAPES, (600, 700)]:
        weight = (torch.randn(shape) * torch.rand(shape[0], 1) * 8).to(dtype)
        weight[0] = 0
        codes, scale, _ = F.int8_vectorwise_quant(weight.to(torch.float16))
        found = stored(formats.WRITERS["int8"], KEY, weight.float())
        assert torch.equal(found[KEY][1:], codes[1:])
        assert not found[KEY][0].any()
        alike(found[KEY.replace(".weight", ".SCB")].numpy(), scale)
        assert found[KEY.replace(".weight", ".weight_format")].item() == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_conv1d_is_stored_transposed(tmp_path: Path, name: str) -> None:
    weight = torch.randn(96, 160)
    key = "transformer.h.0.attn.c_attn.weight"
    writer = formats.writer_for(WriterChoice(name=name, dtype="float16", transposed=True))
    found = stored(writer, key, weight)
    for part, one in stored(
        formats.writer_for(WriterChoice(name=name, dtype="float16")), key, weight.T.contiguous()
    ).items():
        assert torch.equal(found[part], one), part
    config = {"model_type": "gpt2", "quantization_config": writer.quantization_config({}, ())}
    read = values(save(tmp_path, found, config))[key]
    assert read.shape == weight.shape
    assert (read - weight).abs().max() < (0.03 if name == "int8" else 0.8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e6])
def test_numbers_that_cannot_be_held_are_refused(name: str, number: float) -> None:
    weight = torch.randn(70, 64)
    weight[69, 3] = number
    if number == 1e6 and name != "int8":
        stored(formats.WRITERS[name], KEY, weight)
        return
    with pytest.raises(Refused, match=KEY):
        stored(formats.WRITERS[name], KEY, weight)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_plain_transformers_loads_what_is_written(tmp_path: Path, model_type: str, name: str) -> None:
    """Its live weights are those that our reader gives, and its answers those of the dense model with these weights."""
    tiny(model_type, inner=192).save_pretrained(tmp_path / "plain")  # bitsandbytes' CPU forward wants multiples of 64
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    dense = load_file(tmp_path / "plain" / "model.safetensors")
    found = linears.find({key: tuple(one.shape) for key, one in dense.items()}, config)
    tensors = {key: one for key, one in dense.items() if key not in found.keys}
    for key, transposed in found.keys.items():
        writer = formats.writer_for(WriterChoice(name=name, transposed=transposed))
        tensors |= stored(writer, key, dense[key].float())
    said = formats.WRITERS[name].quantization_config(config, found.left(found.keys))
    save(tmp_path / "quantised", tensors, {**config, "quantization_config": said})

    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "quantised", output_loading_info=True)

    assert not any(report.values()), report
    ours = values(tmp_path / "quantised")
    assert ours.keys() == found.keys.keys()
    live = 0
    for key, one in loaded.named_parameters():
        if type(one) is torch.nn.Parameter:
            continue
        live += 1
        if name == "int8":
            wanted = F.int8_vectorwise_dequant(one.data, one.SCB)
        else:
            state = copy.copy(one.quant_state)
            wanted = theirs(one.data, state)
        alike(ours[key].numpy(), wanted.T.contiguous() if found.keys[key] else wanted)
    assert live == len(ours)
    with torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
        for key, weight in ours.items():
            reference.get_parameter(key).copy_(weight)
        words = torch.arange(24)[None]
        expected, answer = reference(words).logits, loaded(words).logits.float()
        assert (answer - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_quantised_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    weight = torch.randn(128, 192)
    for name in ("nf4", "fp4"):
        said = formats.WRITERS[name].quantization_config({"torch_dtype": "float16"}, ["lm_head"])
        assert said["bnb_4bit_compute_dtype"] == "float16"
        assert BitsAndBytesConfig.from_dict(said).quantization_method() == name
        folder = save(tmp_path / name, stored(formats.WRITERS[name], KEY, weight), {"quantization_config": said})
        assert not unpacked(folder).refusals
        alike(values(folder)[KEY].numpy(), theirs(*as_ours(weight, name, 64, name == "nf4")))
