"""A 16-bit base as bitsandbytes would have held it in four bits: quantised and dequantised by bitsandbytes itself.

Which weights: those of the modules that transformers' own quantizer converts, on a model without weights. What of it depends
on the machine is one number for each weight, the mean of its blocks' largest values that double quantisation takes off:
bitsandbytes sums them in float32, in an order that changes with the threads. Here it is their exact sum, divided and rounded
once, which lies within that variation.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bot.checks.checkpoint import FLOATS, Checkpoint
from bot.checks.packed import Packed, read_part
from bot.checks.skeleton import BUILD_ERRORS, Skeleton, build, model_class
from bot.checks.stored import logical
from bot.checks.subject import Subject
from bot.errors import Refused
from bot.records import Json

# QLoRA's settings, where none are given (Dettmers et al. 2023).
USUAL = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
BLOCK = 64  # bitsandbytes' block of four-bit numbers, and of their largest values
OUTER = 256


def as_simulated(base: Checkpoint, subject: Subject) -> Checkpoint:
    """The base with every weight that bitsandbytes would convert as it would have it. Raises Refused where the model
    cannot be built: then nobody can say which those are."""
    settings = {**USUAL, **subject.quantization}
    converted = converted_keys(base, subject.base, settings, subject.trust_remote_code)
    tensors = dict(base.tensors)
    for key, turned in converted.items():
        place = tensors[key]
        packed = Packed(dense=dense, parts={"weight": place}, shape=place.stored.shape, dtype=place.stored.dtype,
                        settings={"turned": turned, **settings})  # fmt: skip
        tensors[key] = logical(key, packed, place)
    return replace(base, tensors=tensors, dense=base.main)


def converted_keys(base: Checkpoint, folder: Path, settings: Json, trust: bool) -> dict[str, bool]:
    """{key: whether it is a Conv1D's, stored the other way round} of the weights that transformers would give to
    bitsandbytes. Raises Refused."""
    from bot.checks.case import read_json

    try:
        chosen = model_class(read_json(folder / "config.json") or {}, trust)
        plain, model = build(folder, chosen, trust), build(folder, chosen, trust)
        modules = converted_modules(model, settings)
    except BUILD_ERRORS as error:
        what = f"Which weights bitsandbytes would quantise cannot be said: the model cannot be built ({error})."
        raise Refused(what, remedy="Merge into the base as it is stored: --base-weights stored.") from error
    skeleton = Skeleton(plain, {key: place.stored.shape for key, place in base.tensors.items()})
    found = {}
    for name in modules:
        traced = skeleton.traces.get(f"{name}.weight")
        turned = type(skeleton.modules[name]).__name__ == "Conv1D"
        if traced is None or traced.plain is None:
            what = f"bitsandbytes would quantise {name}, which the base does not store as one tensor."
            raise Refused(what, remedy="Merge into the base as it is stored: --base-weights stored.")
        if base.tensors[traced.plain].stored.dtype in FLOATS - {"F64"}:
            found[traced.plain] = turned
    return found


def converted_modules(model: Any, settings: Json) -> list[str]:
    """The modules of a model without weights that transformers' quantizer turns into bitsandbytes' own. Changes the model."""
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

    said = BitsAndBytesConfig.from_dict({key: value for key, value in settings.items() if key != "quant_method"})
    kind = Bnb8BitHfQuantizer if said.load_in_8bit else Bnb4BitHfQuantizer
    before = {name: type(module) for name, module in model.named_modules()}
    kind(said, pre_quantized=False)._process_model_before_weight_loading(model, device_map=None)
    return [
        name for name, module in model.named_modules() if type(module) is not before[name] and hasattr(module, "weight")
    ]


def dense(packed: Packed, slab: int) -> Tensor:
    """There and back, in float32 out."""
    weight = read_part(packed.parts["weight"])
    weight = weight.T.contiguous() if packed.settings["turned"] else weight
    there, state = quantised(
        weight, packed.settings["bnb_4bit_quant_type"], packed.settings["bnb_4bit_use_double_quant"]
    )
    found = dequantised(there, state)
    return found.T.contiguous() if packed.settings["turned"] else found


def quantised(
    weight: Tensor, kind: str, double: bool, size: int = BLOCK, offset: Tensor | None = None
) -> tuple[Tensor, Any]:
    """bitsandbytes' quantize_4bit on the CPU, with the mean of double quantisation as above, or as given."""
    from bitsandbytes import functional

    codes, state = functional.quantize_4bit(weight, blocksize=size, quant_type=kind, compress_statistics=False)
    if double:
        offset = exact_mean(state.absmax) if offset is None else offset
        absmax, outer = functional.quantize_blockwise(state.absmax - offset, blocksize=OUTER)
        state = functional.QuantState(absmax=absmax, shape=state.shape, dtype=state.dtype, blocksize=size, code=state.code,
                                      quant_type=kind, offset=offset, state2=outer)  # fmt: skip
    return codes, state


def dequantised(codes: Tensor, state: Any) -> Tensor:
    """bitsandbytes' dequantize_4bit, in float32 whatever the state was made from."""
    from bitsandbytes import functional

    state.dtype = torch.float32
    found: Tensor = functional.dequantize_4bit(codes, state)
    return found


def exact_mean(absmax: Tensor) -> Tensor:
    """The mean of float32 numbers, rounded once to float32 (the sum exactly: math.fsum)."""
    return torch.tensor(math.fsum(absmax.tolist()) / absmax.numel(), dtype=torch.float64).to(torch.float32)
