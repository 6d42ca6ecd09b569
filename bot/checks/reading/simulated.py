"""A 16-bit base as bitsandbytes would have held it in four bits: quantised and dequantised by bitsandbytes itself.

Which weights: those of the modules that transformers' own quantizer converts, on a model without weights.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from bot.checks.reading import bitsandbytes
from bot.checks.reading.bitsandbytes_cpu import BLOCK, OUTER, dequantised, quantised
from bot.checks.reading.checkpoint import Checkpoint
from bot.checks.reading.packed import Packed, read_part
from bot.checks.reading.quantised import logical
from bot.checks.reading.quantised_modules import converted
from bot.checks.subject import Subject
from bot.records import Json

SKIP = "llm_int8_skip_modules"
# QLoRA's settings, where none are given (Dettmers et al. 2023).
USUAL = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


def as_simulated(base: Checkpoint, subject: Subject) -> Checkpoint:
    """The base with every weight that bitsandbytes would convert as it would have it. Raises Refused where the model
    cannot be built: then nobody can say which those are."""
    settings = settings_of(subject.quantization)
    found = converted(base, subject.base, partial(bitsandbytes.modules, said=settings))
    tensors = dict(base.tensors)
    for key, turned in found.items():
        place = tensors[key]
        packed = Packed(dense=dense, parts={"weight": place}, shape=place.stored.shape, dtype=place.stored.dtype,
                        settings={"turned": turned, "held": held(place.elements, settings), **settings})  # fmt: skip
        tensors[key] = logical(key, packed, place)
    return replace(base, tensors=tensors, dense=base.main)


def settings_of(said: Json) -> Json:
    """BitsAndBytesConfig's fields; names of modules may stand in one string, with commas between them."""
    skip = said.get(SKIP)
    names = [one.strip() for one in skip.split(",")] if isinstance(skip, str) else skip
    return {**USUAL, **said, SKIP: names}


def held(numbers: int, said: Json) -> int:
    """The bytes that bitsandbytes would take for so many numbers: half a byte each, and one absmax for each block."""
    blocks = -(-numbers // int(said.get("blocksize", BLOCK)))
    return -(-numbers // 2) + (blocks + 4 * -(-blocks // OUTER) if said["bnb_4bit_use_double_quant"] else 4 * blocks)


def dense(packed: Packed, slab: int) -> Tensor:
    """There and back, in float32."""
    weight, said = read_part(packed.parts["weight"]), packed.settings
    weight = weight.T.contiguous() if said["turned"] else weight
    kind, double, size = said["bnb_4bit_quant_type"], said["bnb_4bit_use_double_quant"], said.get("blocksize", BLOCK)
    found = dequantised(*quantised(weight, kind, double, size))
    return found.T.contiguous() if said["turned"] else found
