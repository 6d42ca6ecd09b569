"""gpt-oss's experts in MXFP4, by transformers' own conversion in float32: experts × in × out, one expert at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from bot.checks.reading.checkpoint import Place
from bot.checks.reading.packed import Packed, read_part
from bot.records import Json

NAME = "MXFP4"
PACKAGE = "transformers"


def recognises(said: Json) -> bool:
    """Whether this `quantization_config` says MXFP4."""
    return said.get("quant_method") == "mxfp4"


def unpack(tensors: Mapping[str, Place], said: Json, config: Json, dtype: str) -> dict[str, Packed]:
    """`…_blocks` (experts × out × groups × 16 bytes) with `…_scales`."""
    found = {}
    for key, place in tensors.items():
        if not key.endswith("_blocks"):
            continue
        name = key.removesuffix("_blocks")
        experts, out, groups, size = place.stored.shape
        parts = {"blocks": place, "scales": tensors[f"{name}_scales"]}
        found[name] = Packed(
            dense=dense, parts=parts, shape=(experts, groups * size * 2, out), dtype=dtype, slabs=experts
        )
    return found


def extras(keys: Collection[str]) -> set[str]:
    """Nothing else is kept."""
    return set()


def dense(packed: Packed, slab: int) -> Tensor:
    """transformers' conversion of one expert."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = (read_part(packed.parts[role], slab)[None] for role in ("blocks", "scales"))
    found: Tensor = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    return found[0]


def modules(model: Any, said: Json) -> list[str]:
    """Nothing is written in this form."""
    return []


def name_of(packed: Packed) -> str:
    """Read only."""
    return ""


def quantise(exact: Tensor, packed: Packed) -> dict[str, Tensor]:
    """Nothing is written in this form."""
    raise ValueError("it is stored as MXFP4, which no merge writes")
