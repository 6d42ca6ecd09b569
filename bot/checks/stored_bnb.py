"""bitsandbytes' 4-bit and 8-bit weights, by bitsandbytes itself on the CPU, from the checkpoint's own tensors.

Never from a live module: a forward pass repacks `Linear4bit` in place on some processors. The dequantised numbers are
float32, whatever dtype the quantisation state names: that one is for computing, and would round a second time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from bot.checks.checkpoint import Place
from bot.checks.packed import Packed, read_part
from bot.checks.skeleton import IN_BY_OUT
from bot.records import Json

NAME = "bitsandbytes"
PACKAGE = "bitsandbytes"
KINDS = ("nf4", "fp4")
STATE = ".quant_state.bitsandbytes__"
CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")  # bitsandbytes keeps their weights out × in, the model in × out


def recognises(said: Json) -> bool:
    """Whether this `quantization_config` is bitsandbytes'."""
    method = said.get("quant_method")
    return method == NAME or (method is None and bool(said.get("load_in_4bit") or said.get("load_in_8bit")))


def unpack(tensors: Mapping[str, Place], said: Json, config: Json, dtype: str) -> dict[str, Packed]:
    """Weights with a quantisation state (4-bit) or with SCB (8-bit) beside them; the others are plain."""
    found = {}
    for key in tensors:
        module, _, name = key.rpartition(".")
        if any(f"{key}{STATE}{kind}" in tensors for kind in KINDS):
            found[key] = _four(key, tensors, config, dtype)
        elif name == "weight" and f"{module}.SCB" in tensors:
            found[key] = _eight(module, tensors, config, dtype)
    return found


def extras(keys: Collection[str]) -> set[str]:
    """bitsandbytes keeps nothing else."""
    return set()


def dense(packed: Packed, slab: int) -> Tensor:
    """bitsandbytes' own dequantisation."""
    from bitsandbytes import functional

    parts = {role: read_part(place) for role, place in packed.parts.items()}
    weight = parts.pop("weight")
    if packed.settings["bits"] == 8:
        value = functional.int8_vectorwise_dequant(weight, parts["SCB"])
    else:
        state = functional.QuantState.from_dict(parts, device=torch.device("cpu"))
        state.dtype = torch.float32
        value = functional.dequantize_4bit(weight.reshape(-1, 1), state)
    found: Tensor = value.T.contiguous() if packed.settings["turned"] else value
    return found


def _four(key: str, tensors: Mapping[str, Place], config: Json, dtype: str) -> Packed:
    from bitsandbytes.utils import unpack_tensor_to_dict

    own = f"{key}."
    parts = {"weight": tensors[key]} | {one.removeprefix(own): tensors[one] for one in tensors if one.startswith(own)}
    state = next(part for role, part in parts.items() if f".{role}".startswith(STATE))
    settings: dict[str, Any] = unpack_tensor_to_dict(read_part(state))
    shape = tuple(int(extent) for extent in settings["shape"])
    turned = _is_turned(key, config)
    return Packed(dense=dense, parts=parts, shape=shape[::-1] if turned else shape, dtype=dtype,
                  settings={"bits": 4, "turned": turned, **settings})  # fmt: skip


def _eight(module: str, tensors: Mapping[str, Place], config: Json, dtype: str) -> Packed:
    names = {role: f"{module}.{role}" for role in ("weight", "SCB", "weight_format")}
    parts = {role: tensors[key] for role, key in names.items() if key in tensors}
    weight, turned = parts["weight"].stored, _is_turned(names["weight"], config)
    if weight.dtype != "I8" or parts["SCB"].stored.shape != weight.shape[:1]:
        raise ValueError(f"{module} has SCB, and is not stored as int8.")
    shape = weight.shape[::-1] if turned else weight.shape
    return Packed(dense=dense, parts=parts, shape=shape, dtype=dtype, settings={"bits": 8, "turned": turned})


def _is_turned(key: str, config: Json) -> bool:
    return config.get("model_type") in IN_BY_OUT and key.split(".")[-2] in CONV1D
