"""bitsandbytes' 4-bit and 8-bit weights, from the checkpoint's own tensors: read by its rules in numpy, written by itself.

Tests hold what is read to bitsandbytes' own dequantisation on the CPU, bit for bit (of fp4's two zeros, whose sign depends on its
kernel, but for that). Never from a live module: a forward pass repacks `Linear4bit` in place on some processors. The numbers are
float32, whatever dtype the quantisation state names: that one is for computing, and would round a second time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bot.checks.reading.checkpoint import PackedWeight, TensorRef
from bot.checks.reading.component_numbers import component, wide_component
from bot.checks.reading.model_skeleton import IN_BY_OUT
from bot.checks.reading.packed import extras as extras
from bot.checks.reading.stored_numbers import Array
from bot.records import Json

if TYPE_CHECKING:
    from torch import Tensor

NAME = "bitsandbytes"
PACKAGE = "bitsandbytes"
KINDS = ("nf4", "fp4")
FIELDS = (
    "load_in_8bit", "load_in_4bit", "llm_int8_threshold", "llm_int8_skip_modules", "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight", "bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
    "bnb_4bit_quant_storage",
)  # fmt: skip
STATE = ".quant_state.bitsandbytes__"
# What the sixteen codes mean, of a block whose largest number is 1: quantiles of the normal distribution (Dettmers et al. 2023,
# appendix E), and a float of one sign, two bits of exponent and one behind the point.
MEANINGS = {
    "nf4": (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
            -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
            0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    "fp4": tuple(size / 12 for size in (0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3)),
}  # fmt: skip
BY_127 = np.float32(7.874015718698502e-3)
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


def dense(packed: PackedWeight, slab: int) -> Array:
    """Codes times their block's largest number, or their row's by 127ths."""
    value = _of_eight(packed) if packed.settings["bits"] == 8 else _of_four(packed)
    return np.ascontiguousarray(value.T) if packed.settings["transposed"] else value


def _of_eight(packed: PackedWeight) -> Array:
    codes, scale = (wide_component(packed.components[role]) for role in ("weight", "SCB"))
    value: Array = codes * scale.reshape(-1, 1) * BY_127
    return value


def _of_four(packed: PackedWeight) -> Array:
    """Two codes in a byte, the first one in its upper half; the last block of all may be shorter."""
    settings, components = packed.settings, packed.components
    shape = tuple(int(extent) for extent in settings["shape"])
    count, size = int(np.prod(shape)), int(settings["blocksize"])
    meaning = np.array(MEANINGS[settings["quant_type"]], dtype=np.float32)
    pairs = np.stack([meaning.repeat(16), np.tile(meaning, 16)], axis=1)
    values = pairs[component(components["weight"]).reshape(-1).view(np.uint8)].reshape(-1)[:count]
    largest = _largest_of_blocks(packed)
    whole = count // size * size
    values[:whole].reshape(-1, size)[:] *= largest[: whole // size, None]
    values[whole:] *= largest[whole // size :]
    return values.reshape(shape)


def _largest_of_blocks(packed: PackedWeight) -> Array:
    """As stored, or (double quantisation) by its own codes, blocks of them, and what was taken off."""
    settings, components = packed.settings, packed.components
    stored = component(components["absmax"])
    if "nested_absmax" not in components:
        return wide_component(components["absmax"]).reshape(-1)
    meaning, outer = (wide_component(components[role]).reshape(-1) for role in ("nested_quant_map", "nested_absmax"))
    codes = meaning[stored.reshape(-1)]
    value: Array = codes * outer.repeat(int(settings["nested_blocksize"]))[: codes.size] + np.float32(
        settings["nested_offset"]
    )
    return value


def modules(model: Any, quantization: Json) -> list[str]:
    """Those that transformers' quantizer turns into bitsandbytes' own."""
    from bot.checks.reading.bitsandbytes_cpu import library

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
    import torch

    from bot.checks.reading.bitsandbytes_cpu import exact_mean, is_a_mean, library, quantised

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
    from bot.checks.reading.bitsandbytes_cpu import dequantised, library, quantised
    from bot.checks.reading.bitsandbytes_settings import BLOCK

    functional = library()
    if settings.get("load_in_8bit"):
        return lambda weight: functional.int8_vectorwise_dequant(*functional.int8_vectorwise_quant(weight.half())[:2])
    kind, double = str(settings.get("bnb_4bit_quant_type", "fp4")), bool(settings.get("bnb_4bit_use_double_quant"))
    return lambda weight: dequantised(*quantised(weight, kind, double, settings.get("blocksize", BLOCK)))


def _four(key: str, tensors: Mapping[str, TensorRef], config: Json, dtype: str) -> PackedWeight:
    own = f"{key}."
    states = {name.removeprefix(own): ref for name, ref in tensors.items() if name.startswith(own)}
    components = {"weight": tensors[key], **states}
    state = next(ref for role, ref in components.items() if f".{role}".startswith(STATE))
    settings: dict[str, Any] = json.loads(component(state).tobytes())
    if settings["quant_type"] not in KINDS or settings["blocksize"] < 1 or state.stored.dtype != "U8":
        raise ValueError(f"{key} has a state of another kind.")
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
    if "weight_format" in components and int(component(components["weight_format"]).flatten()[0]):
        raise ValueError(f"{module} is stored in an order made for one kind of GPU.")
    shape = weight.shape[::-1] if transposed else weight.shape
    settings = {"bits": 8, "transposed": transposed}
    return PackedWeight(dense=dense, components=components, shape=shape, dtype=dtype, settings=settings)


def _transposed(key: str, config: Json) -> bool:
    return config.get("model_type") in IN_BY_OUT and key.split(".")[-2] in CONV1D
