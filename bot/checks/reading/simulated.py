"""A 16-bit base as bitsandbytes would have held it in four bits: quantised and dequantised by bitsandbytes itself.

Which weights: those of the modules that transformers' own quantizer converts, on a model without weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from bot.checks.reading import bitsandbytes
from bot.checks.reading.bitsandbytes_cpu import dequantised, quantised
from bot.checks.reading.bitsandbytes_settings import BLOCK, held, settings_of
from bot.checks.reading.checkpoint import FLOATS, Checkpoint, PackedWeight, SlabCache
from bot.checks.reading.folders import read_json
from bot.checks.reading.model_skeleton import BUILD_ERRORS, NEEDS_CODE, Skeleton, build, model_class
from bot.checks.reading.packed import read_component
from bot.checks.reading.quantised import logical_tensor
from bot.checks.subject import Subject
from bot.errors import Refused

REMEDY = "Merge into the base as it is stored, and store the result as plain numbers."


def as_simulated(base: Checkpoint, subject: Subject, cache: SlabCache) -> Checkpoint:
    """The base with every weight that bitsandbytes would convert as it would have it. Raises Refused where the model
    cannot be built: then nobody can say which those are."""
    settings = settings_of(subject.quantization)
    quantised_weights = converted(base, subject.base, partial(bitsandbytes.modules, quantization=settings))
    tensors = dict(base.tensors)
    for key, transposed in quantised_weights.items():
        ref = tensors[key]
        packed = PackedWeight(dense=dense, components={"weight": ref}, shape=ref.stored.shape, dtype=ref.stored.dtype, cache=cache,
                        settings={"transposed": transposed, "held": held(ref.elements, settings), **settings})  # fmt: skip
        tensors[key] = logical_tensor(key, packed, ref)
    return replace(base, tensors=tensors, dense=base.main)


def dense(packed: PackedWeight, slab: int) -> Tensor:
    """There and back, in float32."""
    weight, settings = read_component(packed.components["weight"]), packed.settings
    weight = weight.T.contiguous() if settings["transposed"] else weight
    kind, double_quant = settings["bnb_4bit_quant_type"], settings["bnb_4bit_use_double_quant"]
    result = dequantised(*quantised(weight, kind, double_quant, settings.get("blocksize", BLOCK)))
    return result.T.contiguous() if settings["transposed"] else result


def converted(checkpoint: Checkpoint, folder: Path, modules: Callable[[Any], list[str]]) -> dict[str, bool]:
    """{key: whether it is a Conv1D's, which is quantised transposed}. `modules` may change the model it is given.

    Raises Refused where the model cannot be built, or where a module's weight is not one stored tensor.
    """
    try:
        chosen = model_class(read_json(folder / "config.json") or {})
        if chosen is None:
            raise ImportError(NEEDS_CODE)
        plain = build(folder, chosen)
        names = modules(build(folder, chosen))
    except BUILD_ERRORS as error:
        what = f"Which weights are quantised cannot be said: the model cannot be built ({error})."
        raise Refused(what, remedy=REMEDY) from error
    skeleton = Skeleton(plain, {key: ref.stored.shape for key, ref in checkpoint.tensors.items()})
    converted_weights = {}
    for name in names:
        symbolic = skeleton.symbolic.get(f"{name}.weight")
        if symbolic is None or symbolic.plain is None:
            raise Refused(f"{name} is quantised on loading, and is not stored as one tensor.", remedy=REMEDY)
        if checkpoint.tensors[symbolic.plain].stored.dtype in FLOATS - {"F64"}:
            converted_weights[symbolic.plain] = type(skeleton.modules[name]).__name__ == "Conv1D"
    return converted_weights
