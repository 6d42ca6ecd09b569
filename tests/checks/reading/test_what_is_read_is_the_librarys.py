"""What the verifier reads of a quantised weight without torch is what the library that defines the form reads, bit for bit."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes import functional
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from bot.checks.reading.bitsandbytes_cpu import dequantised, quantised
from bot.checks.reading.checkpoint import PackedWeight, TensorRef, read_checkpoint
from bot.checks.reading.component_numbers import E4M3, E8M0
from bot.checks.reading.packed import read_component
from bot.checks.reading.quantised import as_model
from tests.faults import quantised as quantised_models
from tests.faults.test_plain_names_are_the_models import VERIFY
from tests.formats.test_two_readings_agree import LAYOUTS

KEY = "m.weight"
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
FP8 = [name for name, (said, _) in LAYOUTS.items() if said["quant_method"] != "mxfp4"]


def read(folder: Path, tensors: dict[str, torch.Tensor], said: dict[str, object]) -> dict[str, TensorRef]:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return as_model(read_checkpoint(folder), {"model_type": "llama", "quantization_config": said}, "base").tensors


def same(own: np.ndarray, library: torch.Tensor) -> None:
    np.testing.assert_array_equal(own.view(np.uint32), library.contiguous().reshape(-1).numpy().view(np.uint32))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(
    ("shape", "size"), [((8, 128), 64), ((3, 50), 64), ((5, 7), 64), ((40, 512), 128), ((300, 64), 64)]
)
def test_four_bits(tmp_path: Path, kind: str, double: bool, shape: tuple[int, int], size: int) -> None:
    torch.manual_seed(0)
    codes, state = quantised(torch.randn(shape), kind, double, size)
    codes = torch.randint(0, 256, codes.shape, dtype=torch.uint8)  # every pair of codes
    stored = {KEY: codes, **{f"{KEY}.{name}": value for name, value in state.as_dict(packed=True).items()}}
    packed = read(tmp_path, stored, BNB)[KEY].packed
    assert packed is not None
    again = functional.QuantState.from_dict(state.as_dict(packed=True), device=torch.device("cpu"))
    # fp4 has two codes for zero, and the sign of the second one is the kernel's: + 0 makes both positive.
    same(packed.numbers() + np.float32(0), dequantised(codes, again) + 0)


def test_eight_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    codes, scale = torch.randint(-128, 128, (64, 256), dtype=torch.int8), torch.rand(64) * 3
    packed = read(tmp_path, {KEY: codes, "m.SCB": scale}, {"quant_method": "bitsandbytes", "load_in_8bit": True})[
        KEY
    ].packed
    assert packed is not None
    same(packed.numbers(), functional.int8_vectorwise_dequant(codes, scale))


@pytest.mark.parametrize("name", FP8)
def test_fp8(tmp_path: Path, name: str) -> None:
    said, tensors = LAYOUTS[name]
    for key, ref in read(tmp_path, tensors, said).items():
        if ref.packed is not None:
            for slab in range(ref.packed.slabs):
                same(ref.packed.numbers(slab), by_transformers(ref.packed, slab, said.get("weight_block_size")))
        else:
            assert key in tensors


def by_transformers(packed: PackedWeight, slab: int, block: list[int] | None) -> torch.Tensor:
    """Its own dequantisation of one matrix, filled up with zeros to whole blocks, which it asks for."""
    of_slab = slab if len(packed.shape) == 3 else None
    weight = read_component(packed.components["weight"], of_slab)
    scale = read_component(packed.components["scale"])
    rows, columns = packed.shape[-2:]
    scale = scale[slab] if of_slab is not None and scale.numel() > 1 else scale
    scale = scale[:, 0, :, 0] if scale.dim() == 4 else scale.reshape(rows, 1) if scale.shape == (rows,) else scale
    scale = scale.reshape(1, 1) if scale.numel() == 1 else scale
    if of_slab is not None and scale.shape == (columns, 1) and rows != columns:
        scale = scale.reshape(1, columns)
    grid = tuple(scale.shape)
    if block and (math.ceil(rows / block[0]), math.ceil(columns / block[1])) == grid and weight.dtype != torch.int8:
        below, beside = grid[0] * block[0] - rows, grid[1] * block[1] - columns
        weight = torch.nn.functional.pad(weight.view(torch.uint8), (0, beside, 0, below)).view(weight.dtype)
    made = Fp8Dequantize(None)._dequantize_one(weight, scale, output_dtype=torch.float32)
    return made[:rows, :columns]


def test_floats_of_eight_bits() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    for table, dtype in ((E4M3, torch.float8_e4m3fn), (E8M0, torch.float8_e8m0fnu)):
        np.testing.assert_array_equal(table, every.view(dtype).float().numpy())


def test_scales_that_do_not_divide_a_matrix_are_refused(tmp_path: Path) -> None:
    tensors = {KEY: torch.ones(10, 10).to(torch.float8_e4m3fn), f"{KEY}_scale_inv": torch.ones(3, 2)}
    packed = read(tmp_path, tensors, {"quant_method": "fp8"})[KEY].packed
    assert packed is not None
    with pytest.raises(ValueError, match=r"has scales of \(3, 2\)"):
        packed.numbers()


@pytest.mark.parametrize("name", ["nf4", "fp4", "int8", "fp8", "compressed"])
def test_the_level_weights_imports_no_torch(tmp_path: Path, name: str) -> None:
    one = quantised_models.build(name, tmp_path)
    folders = map(str, (one.base, one.adapter, one.merged))
    done = subprocess.run([sys.executable, "-c", VERIFY, *folders], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["verified"]
    assert json.loads((one.base / "config.json").read_text())["quantization_config"]


def test_mxfp4(tmp_path: Path) -> None:
    """Every byte under every scale, the one that float32 has no number for included."""
    blocks = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, 256, 1, 1)
    scales = torch.arange(256, dtype=torch.uint8).reshape(1, 256, 1).repeat(2, 1, 16)
    scales[1] = scales[1].flip(0)
    key = "m.experts.down_proj"
    ref = read(tmp_path, {f"{key}_blocks": blocks, f"{key}_scales": scales}, {"quant_method": "mxfp4"})[key]
    assert ref.packed is not None
    for expert in range(2):
        theirs = convert_moe_packed_tensors(blocks[[expert]], scales[[expert]], dtype=torch.float32)[0]
        assert ref.packed.shape[1:] == tuple(theirs.shape)
        same(ref.packed.numbers(expert), theirs)


def test_an_mxfp4_base_is_merged_and_proven_without_torch(tmp_path: Path) -> None:
    from tests.formats.test_mxfp4_same import ON_EXPERTS, make

    made = make(tmp_path, ON_EXPERTS)
    given = [
        "merge",
        str(made.adapter),
        "--base",
        str(made.base),
        "--output",
        str(tmp_path / "merged"),
        "--quantize",
        "none",
    ]
    program = (
        f"import sys; from bot.cli import _guarded; print(_guarded({[*given, '--verify', 'weights', '--quiet']!r}), "
    )
    program += "*(name for name in ('torch', 'transformers') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "0", (done.stdout, done.stderr)
