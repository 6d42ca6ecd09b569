"""bitsandbytes' 4-bit and 8-bit weights, by bitsandbytes itself on the CPU, from the checkpoint's own tensors.

Never from a live module: a forward pass repacks `Linear4bit` in place on some processors. The dequantised numbers are
float32, whatever dtype the quantisation state names: that one is for computing, and would round a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bot.checks.reading.bitsandbytes_cpu import BLOCK, dequantised, exact_mean, is_a_mean, library, quantised
from bot.checks.reading.checkpoint import PackedWeight, TensorRef
from bot.checks.reading.model_skeleton import IN_BY_OUT
from bot.checks.reading.packed import extras as extras
from bot.checks.reading.packed import read_component
from bot.records import Json

NAME = "bitsandbytes"
PACKAGE = "bitsandbytes"
KINDS = ("nf4", "fp4")
FIELDS = (
    "load_in_8bit", "load_in_4bit", "llm_int8_threshold", "llm_int8_skip_modules", "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight", "bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
    "bnb_4bit_quant_storage",
)  # fmt: skip
STATE = ".quant_state.bitsandbytes__"
CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")  # bitsandbytes keeps their weights out × in, the model in × out


def recognises(quantization: Json) -> bool:
    """Whether this `quantization_config` is bitsandbytes'."""
    method = quantization.get("quant_method")
    return method == NAME or (method is None and any(quantization.get(f"load_in_{bits}bit") for bits in (4, 8)))


def unpack(tensors: Mapping[str, TensorRef], quantization: Json, config: Json, dtype: str) -> dict[str, PackedWeight]:
    """Weights with a quantisation state (4-bit) or with SCB (8-bit) beside them; the others are plain."""
    packed = {}
    for key in tensors:
        module, _, name = key.rpartition(".")
        if any(f"{key}{STATE}{kind}" in tensors for kind in KINDS):
            packed[key] = _four(key, tensors, config, dtype)
        elif name == "weight" and f"{module}.SCB" in tensors:
            packed[key] = _eight(module, tensors, config, dtype)
    return packed


def dense(packed: PackedWeight, slab: int) -> Tensor:
    """bitsandbytes' own dequantisation."""
    functional = library()
    components = {role: read_component(ref) for role, ref in packed.components.items()}
    weight = components.pop("weight")
    if packed.settings["bits"] == 8:
        value = functional.int8_vectorwise_dequant(weight, components["SCB"])
    else:
        value = dequantised(weight, functional.QuantState.from_dict(components, device=torch.device("cpu")))
    result: Tensor = value.T.contiguous() if packed.settings["transposed"] else value
    return result


def modules(model: Any, quantization: Json) -> list[str]:
    """Those that transformers' quantizer turns into bitsandbytes' own."""
    library()
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

    config = BitsAndBytesConfig.from_dict({key: value for key, value in quantization.items() if key in FIELDS})
    kind = Bnb8BitHfQuantizer if config.load_in_8bit else Bnb4BitHfQuantizer
    before = {name: type(module) for name, module in model.named_modules()}
    kind(config, pre_quantized=False)._process_model_before_weight_loading(model, device_map=None)
    return [name for name, module in model.named_modules() if type(module) is not before[name]]


def name_of(packed: PackedWeight) -> str:
    """nf4, fp4 or int8."""
    return "int8" if packed.settings["bits"] == 8 else str(packed.settings["quant_type"])


def quantise(exact: Tensor, packed: PackedWeight) -> dict[str, Tensor]:
    """bitsandbytes' own codes and scales. Its 8 bits are of float16 numbers: it rounds to those first."""
    functional = library()
    settings = packed.settings
    exact = exact.T.contiguous() if settings["transposed"] else exact
    if settings["bits"] == 8:
        codes, scale, _ = functional.int8_vectorwise_quant(exact.half())
        codes[scale == 0] = 0  # nothing but zeros: 0 ÷ 0 there
        return {"weight": codes, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    kind, size, double = settings["quant_type"], settings["blocksize"], "nested_offset" in settings
    _, plain = quantised(exact, kind, False, size)
    offset = float(settings["nested_offset"]) if double else 0.0
    if double and not is_a_mean(offset, plain.absmax):
        raise ValueError(f"its nested_offset is {offset}, and the mean is {float(exact_mean(plain.absmax))}")
    codes, state = quantised(exact, kind, double, size, torch.tensor(offset) if double else None)
    state.dtype = getattr(torch, settings["dtype"])  # what the state computes in is its writer's choice
    components: dict[str, Tensor] = {"weight": codes, **state.as_dict(packed=True)}
    return components


def there_and_back(settings: Json) -> Callable[[Tensor], Tensor]:
    """float32 weights quantised as BitsAndBytesConfig's fields say, and dequantised."""
    functional = library()
    if settings.get("load_in_8bit"):
        return lambda weight: functional.int8_vectorwise_dequant(*functional.int8_vectorwise_quant(weight.half())[:2])
    kind, double = str(settings.get("bnb_4bit_quant_type", "fp4")), bool(settings.get("bnb_4bit_use_double_quant"))
    return lambda weight: dequantised(*quantised(weight, kind, double, settings.get("blocksize", BLOCK)))


def _four(key: str, tensors: Mapping[str, TensorRef], config: Json, dtype: str) -> PackedWeight:
    library()
    from bitsandbytes.utils import unpack_tensor_to_dict

    own = f"{key}."
    states = {name.removeprefix(own): ref for name, ref in tensors.items() if name.startswith(own)}
    components = {"weight": tensors[key], **states}
    state = next(ref for role, ref in components.items() if f".{role}".startswith(STATE))
    settings: dict[str, Any] = unpack_tensor_to_dict(read_component(state))
    shape = tuple(int(extent) for extent in settings["shape"])
    transposed = _transposed(key, config)
    return PackedWeight(dense=dense, components=components, shape=shape[::-1] if transposed else shape, dtype=dtype,
                  settings={"bits": 4, "transposed": transposed, **settings})  # fmt: skip


def _eight(module: str, tensors: Mapping[str, TensorRef], config: Json, dtype: str) -> PackedWeight:
    names = {role: f"{module}.{role}" for role in ("weight", "SCB", "weight_format")}
    components = {role: tensors[key] for role, key in names.items() if key in tensors}
    weight, transposed = components["weight"].stored, _transposed(names["weight"], config)
    if weight.dtype != "I8" or components["SCB"].stored.shape != weight.shape[:1]:
        raise ValueError(f"{module} has SCB, and is not stored as int8.")
    if "weight_format" in components and int(read_component(components["weight_format"]).flatten()[0]):
        raise ValueError(f"{module} is stored in an order made for one kind of GPU.")
    shape = weight.shape[::-1] if transposed else weight.shape
    settings = {"bits": 8, "transposed": transposed}
    return PackedWeight(dense=dense, components=components, shape=shape, dtype=dtype, settings=settings)


def _transposed(key: str, config: Json) -> bool:
    return config.get("model_type") in IN_BY_OUT and key.split(".")[-2] in CONV1D
