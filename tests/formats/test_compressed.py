"""compressed-tensors checkpoints are read as the package decompresses them, bit for bit, whatever it can pack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

from bot.records import Json
from tests.formats.shelf import same, save, unpacked, values

MODULE = "model.layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def scheme_of(form: str, targets: list[str] | None = None, **args: Any) -> QuantizationScheme:
    floats = args.get("type") == "float"
    inputs = {"num_bits": 8, "type": "float" if floats else "int", "strategy": "token", "dynamic": True}
    return QuantizationScheme(
        targets=targets or ["Linear"],
        weights=QuantizationArgs(**args),
        input_activations=None if form == "pack-quantized" else QuantizationArgs(**inputs),
        format=form,
    )


def config_of(form: str, *schemes: QuantizationScheme) -> Json:
    """config.json, written by the package."""
    groups = {f"group_{at}": scheme for at, scheme in enumerate(schemes)}
    whole = QuantizationConfig(config_groups=groups, format=form, quantization_status="compressed", ignore=["lm_head"])
    return {"model_type": "llama", "quantization_config": json.loads(whole.model_dump_json())}


def parameters(scheme: QuantizationScheme, weight: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A weight with scales and zero points for it, drawn at random where a calibration would find them."""
    args, (rows, columns) = scheme.weights, weight.shape
    assert args is not None
    shape = {
        "tensor": (1,), "channel": (rows, 1), "group": (rows, columns // (args.group_size or 1)),
        "block": tuple(-(-n // b) for n, b in zip(weight.shape, args.block_structure or (1, 1), strict=True)),
    }[str(args.strategy)]  # fmt: skip
    scale = (torch.rand(shape) * 0.02 + 0.003).to(dtype)
    found = {"weight": weight, "weight_scale": scale}
    if not args.symmetric:
        half = 1 << (args.num_bits - 1)
        found["weight_zero_point"] = torch.randint(-half, half, shape, dtype=torch.int8)
    return found


def check(folder: Path, scheme: QuantizationScheme, held: dict[str, torch.Tensor]) -> None:
    """Compress with the package, read with ours, and decompress with the package, with its scales as float32."""
    form = str(scheme.format)
    compressor = BaseCompressor.get_value_from_registry(form)
    packed = compressor.compress(held, scheme)
    said = config_of(form, scheme)
    tensors = {f"{MODULE}.{name}": tensor for name, tensor in packed.items()}
    ours = values(save(folder, {**tensors, "lm_head.weight": torch.ones(3, 3)}, said))
    assert list(ours) == [f"{MODULE}.weight"]
    wide = {**packed, "weight_scale": packed["weight_scale"].float()}
    same(ours[f"{MODULE}.weight"], compressor.decompress(wide, scheme)["weight"])
    # With 16-bit scales the package multiplies in 16 bits, which rounds the same product once.
    own = compressor.decompress(packed, scheme)["weight"]
    same(ours[f"{MODULE}.weight"].to(own.dtype).float(), own.float())


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group"])
@pytest.mark.parametrize("bits", [4, 8, 2, 3, 5, 6, 7, 1])
def test_packed_integers(tmp_path: Path, bits: int, strategy: str, symmetric: bool) -> None:
    size = 16 if strategy == "group" else None
    scheme = scheme_of("pack-quantized", num_bits=bits, strategy=strategy, group_size=size, symmetric=symmetric)
    for at, shape in enumerate([(24, 64), (17, 48), (12, 80)]):
        held = parameters(scheme, torch.randn(shape) * 0.05, torch.bfloat16 if at else torch.float32)
        check(tmp_path / str(at), scheme, held)


@pytest.mark.parametrize("strategy", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_packed_integers_whose_rows_end_inside_a_word(tmp_path: Path, bits: int, strategy: str) -> None:
    scheme = scheme_of("pack-quantized", num_bits=bits, strategy=strategy, symmetric=False)
    check(tmp_path, scheme, parameters(scheme, torch.randn(13, 45) * 0.05, torch.bfloat16))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group"])
@pytest.mark.parametrize("form", ["int-quantized", "naive-quantized"])
def test_integers_one_to_a_byte(tmp_path: Path, form: str, strategy: str, symmetric: bool) -> None:
    size = 16 if strategy == "group" else None
    scheme = scheme_of(form, num_bits=8, strategy=strategy, group_size=size, symmetric=symmetric)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        check(tmp_path / str(dtype), scheme, parameters(scheme, torch.randn(19, 48) * 0.05, dtype))


@pytest.mark.parametrize("shape", [(256, 128), (200, 140)], ids=str)
@pytest.mark.parametrize("strategy", ["tensor", "channel", "block"])
@pytest.mark.parametrize("form", ["float-quantized", "naive-quantized"])
def test_floats_of_eight_bits(tmp_path: Path, form: str, strategy: str, shape: tuple[int, int]) -> None:
    block = [128, 128] if strategy == "block" else None
    scheme = scheme_of(form, num_bits=8, type="float", strategy=strategy, block_structure=block)
    for dtype in (torch.float32, torch.bfloat16):
        check(tmp_path / str(dtype), scheme, parameters(scheme, torch.randn(shape) * 0.05, dtype))


def test_mixed_precision_takes_each_module_by_its_own_group(tmp_path: Path) -> None:
    four = scheme_of("pack-quantized", ["re:.*mlp.*"], num_bits=4, strategy="group", group_size=16)
    eight = scheme_of("float-quantized", ["Linear"], num_bits=8, type="float", strategy="channel")
    exact = scheme_of("int-quantized", ["model.layers.0.mlp.down_proj"], num_bits=8, strategy="channel")
    tensors, wanted = {}, {}
    for name, scheme in [("mlp.up_proj", four), ("self_attn.q_proj", eight), ("mlp.down_proj", exact)]:
        compressor = BaseCompressor.get_value_from_registry(str(scheme.format))
        packed = compressor.compress(parameters(scheme, torch.randn(24, 64) * 0.05, torch.float32), scheme)
        tensors |= {f"model.layers.0.{name}.{part}": tensor for part, tensor in packed.items()}
        wanted[f"model.layers.0.{name}.weight"] = compressor.decompress(packed, scheme)["weight"]
    ours = values(save(tmp_path, tensors, config_of("mixed-precision", eight, four, exact)))
    assert ours.keys() == wanted.keys()
    for key, value in wanted.items():
        same(ours[key], value)


def test_scales_of_activations_and_caches_go_with_their_module(tmp_path: Path) -> None:
    scheme = scheme_of("float-quantized", num_bits=8, type="float", strategy="channel")
    packed = BaseCompressor.get_value_from_registry("float-quantized").compress(
        parameters(scheme, torch.randn(24, 64) * 0.05, torch.float32), scheme
    )
    tensors = {f"{MODULE}.{name}": tensor for name, tensor in packed.items()}
    more = {f"{MODULE}.input_scale": torch.ones(1), "model.layers.0.self_attn.k_scale": torch.ones(1)}
    found = unpacked(save(tmp_path, tensors | more, config_of("float-quantized", scheme)))
    assert set(found.tensors) == {f"{MODULE}.weight"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized"),
        ({"format": "mxfp4-pack-quantized"}, "mxfp4-pack-quantized"),
        ({"format": "marlin-24"}, "marlin-24"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ({"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}}, "rotated"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "W4A16"),
        ({"config_groups": {"group_0": {"targets": ["re:.*mlp"], "weights": {"num_bits": 4}}}}, "no config group"),
        ({"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": "four"}}}}, "malformed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_read_is_refused_by_its_name(tmp_path: Path, change: Json, word: str) -> None:
    scheme = scheme_of("pack-quantized", num_bits=4, strategy="group", group_size=16)
    packed = BaseCompressor.get_value_from_registry("pack-quantized").compress(
        parameters(scheme, torch.randn(24, 64), torch.float32), scheme
    )
    said = config_of("pack-quantized", scheme)
    said["quantization_config"] |= change
    found = unpacked(save(tmp_path, {f"{MODULE}.{name}": tensor for name, tensor in packed.items()}, said))
    assert [refusal.code for refusal in found.refusals] == ["quantised-base"]
    assert word in found.refusals[0].reason


@pytest.mark.parametrize("lost", ["weight_scale", "weight_zero_point", "weight_shape"])
def test_a_part_that_is_missing_is_noticed(tmp_path: Path, lost: str) -> None:
    scheme = scheme_of("pack-quantized", num_bits=4, strategy="channel", symmetric=False)
    packed = BaseCompressor.get_value_from_registry("pack-quantized").compress(
        parameters(scheme, torch.randn(24, 64), torch.float32), scheme
    )
    del packed[lost]
    said = config_of("pack-quantized", scheme)
    (refusal,) = unpacked(
        save(tmp_path, {f"{MODULE}.{name}": tensor for name, tensor in packed.items()}, said)
    ).refusals
    assert MODULE in refusal.reason


def test_groups_say_the_shape_where_it_is_not_stored(tmp_path: Path) -> None:
    scheme = scheme_of("pack-quantized", num_bits=4, strategy="group", group_size=16)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    packed = compressor.compress(parameters(scheme, torch.randn(24, 48), torch.float32), scheme)
    wanted = compressor.decompress(packed, scheme)["weight"]
    del packed["weight_shape"]
    folder = save(tmp_path, {f"{MODULE}.{name}": t for name, t in packed.items()}, config_of("pack-quantized", scheme))
    same(values(folder)[f"{MODULE}.weight"], wanted)
