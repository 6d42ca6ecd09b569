"""gpt-oss's experts in MXFP4, by transformers' own conversion in float32: experts × in × out, one expert at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bot.checks.reading.checkpoint import PackedWeight, TensorRef
from bot.checks.reading.packed import extras as extras
from bot.checks.reading.packed import modules as modules
from bot.checks.reading.packed import name_of as name_of
from bot.checks.reading.packed import read_component
from bot.records import Json

NAME = "MXFP4"
PACKAGE = "transformers"


def recognises(quantization: Json) -> bool:
    """Whether this `quantization_config` says MXFP4."""
    return quantization.get("quant_method") == "mxfp4"


def unpack(tensors: Mapping[str, TensorRef], quantization: Json, config: Json, dtype: str) -> dict[str, PackedWeight]:
    """`…_blocks` (experts × out × groups × 16 bytes) with `…_scales`."""
    packed = {}
    for key, ref in tensors.items():
        if not key.endswith("_blocks"):
            continue
        name = key.removesuffix("_blocks")
        experts, out, groups, size = ref.stored.shape
        components = {"blocks": ref, "scales": tensors[f"{name}_scales"]}
        shape = (experts, groups * size * 2, out)
        packed[name] = PackedWeight(dense=dense, components=components, shape=shape, dtype=dtype, slabs=experts)
    return packed


def dense(packed: PackedWeight, slab: int) -> Tensor:
    """transformers' conversion of one expert."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = (read_component(packed.components[role], slab)[None] for role in ("blocks", "scales"))
    experts: Tensor = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    return experts[0]


def quantise(exact: Tensor, packed: PackedWeight) -> dict[str, Tensor]:
    """Nothing is written in this form."""
    raise ValueError("it is stored as MXFP4, which no merge writes")
