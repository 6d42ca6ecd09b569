"""FP8 weights with scales for blocks, rows, experts or tensors, by transformers' own Fp8Dequantize in float32.

It does not take blocks that end outside the matrix; those are filled up with zeros first, and cut off afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from bot.checks.checkpoint import Place
from bot.checks.packed import Packed, read_part
from bot.records import Json

NAME = "FP8"
PACKAGE = "transformers"
METHODS = ("fp8", "mxfp8", "fbgemm_fp8")
MODELOPT = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO")
SCALES = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")  # they multiply, all of them
BESIDE = (
    "input_scale", "activation_scale", "input_scale_ub", "output_scale", "input_global_scale", "k_scale", "v_scale", "q_scale",
    "prob_output_scale", "k_zero_point", "v_zero_point", "input_zero_point", "qscale_act",
)  # fmt: skip


def recognises(said: Json) -> bool:
    """Whether this `quantization_config` says FP8."""
    method = said.get("quant_method")
    return method in METHODS or (method == "modelopt" and said.get("quant_algo") in MODELOPT)


def unpack(tensors: Mapping[str, Place], said: Json, config: Json, dtype: str) -> dict[str, Packed]:
    """Weights of eight bits with their scales; DeepSeek-V4's experts hold two e2m1 numbers in a byte."""
    found = {}
    for key, place in tensors.items():
        scale = _scale_of(key, tensors)
        if place.stored.dtype == "F8_E4M3" and scale is None:
            raise ValueError(f"{key} is stored in FP8, and has no scale.")
        if scale is None or place.stored.dtype not in ("F8_E4M3", "I8"):
            continue
        shape = place.stored.shape
        if place.stored.dtype == "I8":
            shape = (*shape[:-1], shape[-1] * 2)
        found[key] = Packed(dense=dense, parts={"weight": place, "scale": scale}, shape=shape, dtype=dtype,
                            slabs=shape[0] if len(shape) == 3 else 1, settings={"block": _block(said)})  # fmt: skip
    return found


def extras(keys: Collection[str]) -> set[str]:
    """Scales of activations and of caches."""
    return {key for key in keys if key.rpartition(".")[2].endswith(BESIDE)}


def dense(packed: Packed, slab: int) -> Tensor:
    """transformers' dequantisation of one matrix."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    several = packed.slabs > 1 or len(packed.shape) == 3
    weight = read_part(packed.parts["weight"], slab if several else None)
    grid = _grid(read_part(packed.parts["scale"]), packed, slab if several else None)
    rows, columns = packed.shape[-2:]
    filled = _filled(weight, grid, packed)
    found: Tensor = Fp8Dequantize(None)._dequantize_one(filled, grid, output_dtype=torch.float32)
    return found[:rows, :columns].contiguous()


def _grid(scale: Tensor, packed: Packed, slab: int | None) -> Tensor:
    """The scales of one matrix, rows × columns of blocks."""
    rows, columns = packed.shape[-2:]
    if slab is not None and scale.numel() > 1:
        scale = scale[slab]
    if scale.numel() == 1:
        return scale.reshape(1, 1)
    if scale.dim() == 4:  # modelopt keeps the axes inside the blocks
        scale = scale[:, 0, :, 0]
    if scale.dim() == 1:
        return scale.reshape(rows, 1)
    if slab is not None and scale.shape == (columns, 1) and rows != columns:  # fbgemm's experts are in × out
        return scale.reshape(1, columns)
    return scale


def _filled(weight: Tensor, grid: Tensor, packed: Packed) -> Tensor:
    """The matrix with zeros up to whole blocks, where the blocks configured end outside it."""
    rows, columns = packed.shape[-2:]
    block = packed.settings["block"]
    if block is None or (math.ceil(rows / block[0]), math.ceil(columns / block[1])) != tuple(grid.shape):
        return weight
    per_byte = columns // weight.shape[1]
    below = grid.shape[0] * block[0] - rows
    beside = (grid.shape[1] * block[1] - columns) // per_byte
    filled = torch.nn.functional.pad(weight.view(torch.uint8), (0, beside, 0, below))
    return filled.view(weight.dtype)


def _block(said: Json) -> tuple[int, int] | None:
    size = said.get("weight_block_size", (128, 128) if said.get("quant_method") == "fp8" else None)
    return (int(size[0]), int(size[1])) if size else None


def _scale_of(key: str, tensors: Mapping[str, Place]) -> Place | None:
    module, _, name = key.rpartition(".")
    names = [f"{module}.{one}" for one in SCALES] if name == "weight" else [f"{key}_scale_inv", f"{key}_scale"]
    return next((tensors[one] for one in names if one in tensors), None)
