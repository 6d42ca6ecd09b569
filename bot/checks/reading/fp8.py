"""FP8 weights with scales for blocks, rows, experts or tensors: code · scale in float32, in numpy.

Tests hold that to transformers' own Fp8Dequantize, bit for bit; it does not take blocks that end outside the matrix, of which
they fill up with zeros what they give it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bot.checks.reading.checkpoint import PackedWeight, TensorRef
from bot.checks.reading.component_numbers import E2M1, component, powers, wide_component
from bot.checks.reading.packed import modules as modules
from bot.checks.reading.packed import read_component
from bot.checks.reading.stored_numbers import Array
from bot.records import Json

if TYPE_CHECKING:
    from torch import Tensor, dtype

NAME = "FP8"
PACKAGE = "torch"
METHODS = ("fp8", "mxfp8", "fbgemm_fp8")
MODELOPT = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO")
SCALES = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")  # they multiply, all of them
BESIDE = (
    "input_scale", "activation_scale", "input_scale_ub", "output_scale", "input_global_scale", "k_scale", "v_scale", "q_scale",
    "prob_output_scale", "k_zero_point", "v_zero_point", "input_zero_point", "qscale_act",
)  # fmt: skip


def recognises(quantization: Json) -> bool:
    """Whether this `quantization_config` says FP8."""
    method = quantization.get("quant_method")
    return method in METHODS or (method == "modelopt" and quantization.get("quant_algo") in MODELOPT)


def unpack(tensors: Mapping[str, TensorRef], quantization: Json, config: Json, dtype: str) -> dict[str, PackedWeight]:
    """Weights of eight bits with their scales; DeepSeek-V4's experts hold two e2m1 numbers in a byte."""
    packed = {}
    for key, ref in tensors.items():
        scale = _scale_of(key, tensors)
        if ref.stored.dtype == "F8_E4M3" and scale is None:
            raise ValueError(f"{key} is stored in FP8, and has no scale.")
        if scale is None or ref.stored.dtype not in ("F8_E4M3", "I8"):
            continue
        shape = ref.stored.shape
        if ref.stored.dtype == "I8":
            shape = (*shape[:-1], shape[-1] * 2)
        packed[key] = PackedWeight(dense=dense, components={"weight": ref, "scale": scale}, shape=shape, dtype=dtype,
                            slabs=shape[0] if len(shape) == 3 else 1, settings={"block": _block(quantization)})  # fmt: skip
    return packed


def extras(keys: Collection[str]) -> set[str]:
    """Scales of activations and of caches."""
    return {key for key in keys if key.rpartition(".")[2].endswith(BESIDE)}


def dense(packed: PackedWeight, slab: int) -> Array:
    """One matrix: each number times the scale of the block that it lies in, also of one that ends outside."""
    of_slab = slab if packed.slabs > 1 or len(packed.shape) == 3 else None
    weight, scale = packed.components["weight"], packed.components["scale"]
    if weight.stored.dtype == "I8":
        bytes_ = component(weight, of_slab).view(np.uint8)
        numbers = np.stack([E2M1[bytes_ & 15], E2M1[bytes_ >> 4]], axis=-1).reshape(packed.shape[-2:])
    else:
        numbers = wide_component(weight, of_slab)
    scales = powers(component(scale)) if scale.stored.dtype == "U8" else wide_component(scale)
    scale_grid = _grid_of(scales, packed, of_slab)
    high, wide = _high_and_wide(scale_grid.shape, packed.shape[-2:], packed.settings["block"])
    rows, columns = packed.shape[-2:]
    if high * scale_grid.shape[0] < rows or wide * scale_grid.shape[1] < columns:
        raise ValueError(f"{weight.stored.key} of {packed.shape} has scales of {scale.stored.shape}.")
    spread = scale_grid.repeat(high, 0)[:rows].repeat(wide, 1)[:, :columns]
    value: Array = numbers * spread
    return value


def _grid_of(scale: Array, packed: PackedWeight, slab: int | None) -> Array:
    """The scales of one matrix, rows × columns of blocks."""
    rows, columns = packed.shape[-2:]
    if slab is not None and scale.size > 1:
        scale = scale[slab]
    if scale.size == 1:
        return scale.reshape(1, 1)
    if scale.ndim == 4:  # modelopt keeps the axes inside the blocks
        scale = scale[:, 0, :, 0]
    if scale.ndim == 1:
        return scale.reshape(rows, 1)
    if slab is not None and scale.shape == (columns, 1) and rows != columns:  # fbgemm's experts are in × out
        return scale.reshape(1, columns)
    return scale


def name_of(packed: PackedWeight) -> str:
    """Only the base's own form is written."""
    return "same"


def quantise(exact: Tensor, packed: PackedWeight) -> dict[str, Tensor]:
    """Codes are e4m3(w ÷ scale), saturated; scales max |w| ÷ 448 of their block, rounded to their dtype: for float32 what
    compressed-tensors' block strategy gives. Exponents alone are rounded up, and zeros have the scale 1."""
    import torch

    scale = read_component(packed.components["scale"])
    codes, scales = [], []
    for slab in range(packed.slabs):
        matrix = exact[slab] if len(packed.shape) == 3 else exact
        scale_grid = _scale_grid(scale, packed, slab if len(packed.shape) == 3 else None)
        high, wide = _high_and_wide(scale_grid.shape, matrix.shape, packed.settings["block"])
        rounded = rounded_scales(_largest(matrix, scale_grid.shape, high, wide), scale.dtype)
        rows, columns = matrix.shape
        spread = rounded.float().repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
        codes.append(e4m3(matrix / spread))
        scales.append(rounded)
    weight = torch.stack(codes) if len(packed.shape) == 3 else codes[0]
    return {"weight": weight, "scale": torch.stack(scales).reshape(scale.shape)}


def e4m3(values: Tensor) -> Tensor:
    """Saturated: what lies outside becomes ± 448."""
    import torch

    return values.clamp(-448, 448).to(torch.float8_e4m3fn)


def rounded_scales(largest: Tensor, kind: dtype) -> Tensor:
    """max ÷ 448 in a scale's dtype."""
    import torch

    exact = torch.where(largest == 0, torch.ones(()), (largest / 448).clamp(min=2.0**-126))
    if kind in (torch.float8_e8m0fnu, torch.uint8):
        mantissa, exponent = torch.frexp(exact)
        power = exponent - (mantissa == 0.5).to(exponent.dtype)
        byte = (power + 127).clamp(0, 254).to(torch.uint8)
        return byte if kind == torch.uint8 else byte.view(torch.float8_e8m0fnu)
    rounded = exact.to(kind)
    return rounded.clamp(min=2.0**-24) if kind == torch.float16 else rounded


def _high_and_wide(scale_grid: Sequence[int], shape: Sequence[int], block: tuple[int, int] | None) -> tuple[int, int]:
    rows, columns = shape
    if block and (math.ceil(rows / block[0]), math.ceil(columns / block[1])) == tuple(scale_grid):
        return block
    return rows // scale_grid[0], columns // scale_grid[1]


def _largest(matrix: Tensor, scale_grid: Sequence[int], high: int, wide: int) -> Tensor:
    import torch

    below, beside = scale_grid[0] * high - matrix.shape[0], scale_grid[1] * wide - matrix.shape[1]
    filled = torch.nn.functional.pad(matrix.abs(), (0, beside, 0, below))
    return filled.reshape(scale_grid[0], high, scale_grid[1], wide).amax(dim=(1, 3))


def _scale_grid(scale: Tensor, packed: PackedWeight, slab: int | None) -> Tensor:
    """`_grid_of` in torch, whose dtypes it keeps."""
    import torch

    at = np.arange(scale.numel()).reshape(tuple(scale.shape))
    return scale.reshape(-1)[torch.from_numpy(np.ascontiguousarray(_grid_of(at, packed, slab)))]


def _block(quantization: Json) -> tuple[int, int] | None:
    size = quantization.get("weight_block_size", (128, 128) if quantization.get("quant_method") == "fp8" else None)
    return (int(size[0]), int(size[1])) if size else None


def _scale_of(key: str, tensors: Mapping[str, TensorRef]) -> TensorRef | None:
    module, _, name = key.rpartition(".")
    names = [f"{module}.{scale}" for scale in SCALES] if name == "weight" else [f"{key}_scale_inv", f"{key}_scale"]
    return next((tensors[scale] for scale in names if scale in tensors), None)
