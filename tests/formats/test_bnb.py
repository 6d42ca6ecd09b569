"""bitsandbytes bases are read, and numbers are quantised, bit for bit as bitsandbytes does on a CPU."""

from __future__ import annotations

import copy
from pathlib import Path

import bitsandbytes.functional as F
import numpy as np
import pytest
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, LlamaConfig, PreTrainedModel
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

from bot import formats
from bot.formats.bitsandbytes import blockwise, double_quant
from bot.records import Json
from tests.formats.shelf import same, save, unpacked, values

KEY = "model.layers.0.mlp.up_proj.weight"
SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NF4: Json = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
SHAPES = [(64, 256), (5, 96), (7, 33), (1, 1), (3, 130), (300, 511)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def alike(ours: np.ndarray, theirs: torch.Tensor) -> None:
    """Bytes or float32, of equal bits."""
    assert ours.dtype == theirs.numpy().dtype
    np.testing.assert_array_equal(ours.view(np.uint8), theirs.contiguous().numpy().view(np.uint8))


def config(said: Json, model_type: str = "llama") -> Json:
    return {"model_type": model_type, "dtype": "bfloat16", "quantization_config": said}


def theirs(codes: torch.Tensor, state: F.QuantState) -> torch.Tensor:
    """bitsandbytes' numbers in float32. Its AVX512 kernel takes wrong blocks where a row is no multiple of their size, so
    that there its plain one is asked."""
    state = copy.copy(state)
    state.dtype = torch.float32
    if state.shape[-1] % state.blocksize == 0:
        return F.dequantize_4bit(codes, state)
    absmax = F.dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    plain = _dequantize_4bit_compute.__wrapped__
    return plain(codes.reshape(-1), absmax, state.code, state.blocksize, state.shape, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("size", SIZES)
def test_a_stored_weight_is_what_bitsandbytes_makes_of_it(
    tmp_path: Path, size: int, kind: str, double: bool, dtype: torch.dtype
) -> None:
    """Shapes that are ragged, odd and tiny among them; the quant state's dtype does not round the numbers again."""
    for at, shape in enumerate(SHAPES):
        weight = torch.randn(shape).to(dtype)
        codes, state = F.quantize_4bit(weight, blocksize=size, quant_type=kind, compress_statistics=double)
        tensors = {KEY: codes} | {f"{KEY}.{name}": one for name, one in state.as_dict(packed=True).items()}
        found = values(save(tmp_path / str(at), tensors, config(NF4 | {"bnb_4bit_quant_type": kind})))
        assert list(found) == [KEY]
        expected = theirs(codes, state)
        # fp4 has two codes for zero. The sign of the second one is that of bitsandbytes' kernel for this processor; ours has none.
        assert kind != "fp4" or not bool(found[KEY][found[KEY] == 0].signbit().any())
        same(found[KEY], expected + 0.0 if kind == "fp4" else expected)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32, torch.int8])
def test_bytes_may_be_stored_under_another_dtype(tmp_path: Path, storage: torch.dtype) -> None:
    codes, state = F.quantize_4bit(torch.randn(64, 128), quant_type="nf4", quant_storage=storage)
    tensors = {KEY: codes} | {f"{KEY}.{name}": one for name, one in state.as_dict(packed=True).items()}
    same(values(save(tmp_path, tensors, config(NF4)))[KEY], theirs(codes.view(torch.uint8), state))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("size", SIZES)
def test_numbers_are_quantised_as_bitsandbytes_does_it(size: int, kind: str, dtype: torch.dtype) -> None:
    """Codes, absmax, and what double quantisation makes of those by bitsandbytes' own mean. Ties and zeros among them."""
    ties = torch.tensor(np.resize(np.append(blockwise.KINDS[kind].bounds, 1).astype(np.float32), (64, 64)))
    ties[:, 0] = 1
    for weight in [*(torch.randn(shape) for shape in SHAPES), ties, torch.zeros(5, 77), torch.full((64, 256), 0.1)]:
        codes, state = F.quantize_4bit(weight.to(dtype), blocksize=size, quant_type=kind, compress_statistics=True)
        _, plain = F.quantize_4bit(weight.to(dtype), blocksize=size, quant_type=kind)
        numbers = weight.to(dtype).float().numpy().reshape(-1)
        absmax = blockwise.largest(numbers, size)
        alike(absmax, plain.absmax)
        found = blockwise.nearest_level_indices(numbers, absmax, size, blockwise.KINDS[kind])
        alike(blockwise.pack(found, blockwise.KINDS[kind]), codes.reshape(-1))
        inner, outer = double_quant.compress(absmax, np.float32(state.offset.item()))
        alike(inner, state.absmax)
        alike(outer, state.state2.absmax)


def test_the_tables_are_those_of_bitsandbytes() -> None:
    alike(double_quant.DYNAMIC, F.create_dynamic_map())
    for kind, table in blockwise.KINDS.items():
        alike(table.levels, F.get_4bit_type(kind, device="cpu"))


def test_the_mean_of_double_quantisation_is_within_its_own_variation_of_one_to_many_threads() -> None:
    """torch's depends on threads and processor; ours is the exact one's nearest but for the last bit of a float64 sum."""
    for count in (1, 3, 1000, 65_537, 1_000_003):
        absmax = torch.rand(count) * 3 + 0.1
        ours, exact = double_quant.mean(absmax.numpy()), absmax.double().mean().item()
        assert abs(float(ours) - exact) <= np.spacing(ours)
        assert abs(float(ours) - absmax.mean().item()) <= 4 * np.spacing(ours)
    shuffled = absmax.numpy()[np.random.default_rng(0).permutation(count)]
    assert double_quant.mean(shuffled) == ours


def tiny(model_type: str, inner: int = 160) -> PreTrainedModel:
    if model_type == "gpt2":
        made = GPT2Config(vocab_size=64, n_positions=32, n_embd=64, n_layer=2, n_head=4)
    else:
        made = LlamaConfig(
            vocab_size=64, hidden_size=64, intermediate_size=inner, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=False,
        )  # fmt: skip
    return AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)


SAID = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "stored as bfloat16": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "bfloat16"},
    "int8": {"load_in_8bit": True},
    "skipped": {"load_in_4bit": True, "llm_int8_skip_modules": ["lm_head", "o_proj", "c_proj"]},
}


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_model_that_transformers_saves_is_read(tmp_path: Path, model_type: str, said: str) -> None:
    """Every tensor of the plain checkpoint, in its name, its shape (a Conv1D's too) and its order within the file."""
    model = tiny(model_type)
    model.save_pretrained(tmp_path / "plain")
    quantised = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=BitsAndBytesConfig(**SAID[said])
    )
    quantised.save_pretrained(tmp_path / "quantised")
    found = values(tmp_path / "quantised")
    plain = unpacked(tmp_path / "plain").tensors
    assert {name: one.shape for name, one in unpacked(tmp_path / "quantised").tensors.items()} == {
        name: one.shape for name, one in plain.items()
    }
    transposed = model_type == "gpt2"
    packed = 0
    for name, parameter in quantised.named_parameters():
        if type(parameter) is torch.nn.Parameter:
            continue
        packed += 1
        if said == "int8":
            wanted = dequantize_bnb_weight(parameter, quantised.get_submodule(name.rpartition(".")[0]).state)
        else:
            wanted = theirs(parameter.data.view(torch.uint8), parameter.quant_state)
        same(found[name], wanted.T if transposed else wanted)
    assert packed == len(found) >= 4


def test_int8_is_multiplied_in_bitsandbytes_order(tmp_path: Path) -> None:
    codes = torch.randint(-127, 128, (33, 70), dtype=torch.int8)
    scale = torch.rand(33) * 3 + 1e-3
    module = KEY.removesuffix(".weight")
    tensors = {KEY: codes, f"{module}.SCB": scale, f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    found = values(save(tmp_path, tensors, config({"quant_method": "bitsandbytes", "load_in_8bit": True})))
    same(found[KEY], F.int8_vectorwise_dequant(codes, scale))


BROKEN = {
    "no absmax": lambda tensors: tensors.pop(f"{KEY}.absmax"),
    "no levels": lambda tensors: tensors.pop(f"{KEY}.nested_quant_map"),
    "no state": lambda tensors: tensors.pop(f"{KEY}.quant_state.bitsandbytes__nf4"),
    "short weight": lambda tensors: tensors.update({KEY: tensors[KEY][:-1]}),
    "odd absmax": lambda tensors: tensors.update({f"{KEY}.absmax": tensors[f"{KEY}.absmax"][:-1]}),
    "no JSON": lambda tensors: tensors.update(
        {f"{KEY}.quant_state.bitsandbytes__nf4": torch.tensor([1, 2], dtype=torch.uint8)}
    ),
    "absmax not quantised": lambda tensors: tensors.update({f"{KEY}.absmax": tensors[f"{KEY}.absmax"].float()}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_weight_that_lacks_something_is_refused_by_its_name(tmp_path: Path, what: str) -> None:
    codes, state = F.quantize_4bit(torch.randn(64, 128), quant_type="nf4", compress_statistics=True)
    tensors = {KEY: codes} | {f"{KEY}.{name}": one for name, one in state.as_dict(packed=True).items()}
    BROKEN[what](tensors)
    (refusal,) = unpacked(save(tmp_path, tensors, config(NF4))).refusals
    assert KEY in refusal.reason
    assert "base-weights original" in refusal.remedy


def test_int8_in_the_order_of_an_old_gpu_is_refused(tmp_path: Path) -> None:
    module = KEY.removesuffix(".weight")
    codes = torch.zeros(32, 32, dtype=torch.int8)
    tensors = {
        KEY: codes,
        f"{module}.SCB": torch.ones(32),
        f"{module}.weight_format": torch.tensor(2, dtype=torch.uint8),
    }
    said = config({"quant_method": "bitsandbytes", "load_in_8bit": True})
    (refusal,) = unpacked(save(tmp_path, tensors, said)).refusals
    assert "weight_format" in refusal.reason
    assert formats.int8.recognises(said)
    assert not formats.four_bit.recognises(said)
