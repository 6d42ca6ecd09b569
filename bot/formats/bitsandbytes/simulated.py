"""A 16-bit base seen as bitsandbytes would have held it in four bits: the weights that an adapter trained with QLoRA saw.

Every weight that transformers' quantizer converts (linears.py) is quantised and dequantised, to float32, bit for bit as
bitsandbytes does it on a CPU. On CUDA, nf4 codes and absmax are the same; with double quantisation, about one absmax in a
thousand becomes a neighbouring code there. The numbers that are quantised are the stored ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bot.formats.base import ReadRange, Rows, Unpacked
from bot.formats.base import small_keys as small_keys
from bot.formats.bitsandbytes.four_bit import FLOATS, SIZES, TYPES
from bot.formats.bitsandbytes.linears import find
from bot.formats.logical_tensor import logical
from bot.records import Json, Refusal, Stored

NAME = "nf4-simulated"
SKIP = "llm_int8_skip_modules"


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """`kind`: nf4 or fp4; `double`: double quantisation; `size`: numbers in a block; `skip`: modules that stay as they are
    (None: those that transformers chooses). `problem`: why it cannot be done."""

    kind: str = "nf4"
    double: bool = True
    size: int = 64
    skip: tuple[str, ...] | None = None
    problem: str = ""

    def words(self) -> str:
        """For a sentence."""
        return f"bitsandbytes ({self.kind}{', double quantisation' if self.double else ''}, blocks of {self.size})"


def settings_of(fields: Mapping[str, Any]) -> SimulationSettings:
    """From a BitsAndBytesConfig's fields; what they do not say is as QLoRA has it (nf4, double quantisation).

    `llm_int8_skip_modules` may be a list or names with commas between them; `blocksize` is no field of theirs, but a number
    of bitsandbytes'. Fields that do not change the numbers (compute dtype, storage) are not looked at.
    """
    skip = fields.get(SKIP)
    names = skip.split(",") if isinstance(skip, str) else skip
    chosen = SimulationSettings(
        kind=str(fields.get("bnb_4bit_quant_type", "nf4")),
        double=bool(fields.get("bnb_4bit_use_double_quant", True)),
        size=fields.get("blocksize", 64),
        skip=None if names is None else tuple(str(name).strip() for name in names),
    )
    problem = ""
    if fields.get("load_in_8bit") or fields.get("load_in_4bit") is False:
        problem = "The quantization config does not load in four bits."
    elif chosen.kind not in TYPES:
        problem = f"bitsandbytes has no four-bit type {chosen.kind}."
    elif chosen.size not in SIZES:
        problem = f"bitsandbytes has no blocks of {chosen.size}."
    return replace(chosen, problem=problem)


def recognises(config: Json) -> bool:
    """Never: this is a way to see a plain base."""
    return False


def unpack(stored: Mapping[str, Stored], config: Json, settings: Any) -> Unpacked:
    """The base's tensors: logical ones for what would be converted, the others as they are."""
    shapes = {key: tensor.shape for key, tensor in stored.items() if tensor.dtype in FLOATS}
    linears = find(shapes, config, settings.skip)
    problem = settings.problem
    if not problem and not linears.known:
        name = config.get("model_type") or "a model without a model_type"
        problem = f"Which weights of {name} bitsandbytes would quantise is not known."
    if not problem and linears.mixed:
        problem = f"transformers rearranges {next(iter(linears.mixed))} before bitsandbytes would quantise it."
    if problem:
        remedy = "Merge into the base as it is stored: --base-weights stored."
        refusal = Refusal(code="simulate-nf4", reason=problem, remedy=remedy)
        return Unpacked(tensors=dict(stored), refusals=(refusal,))
    tensors = dict(stored)
    for key, transposed in linears.keys.items():
        how = {
            "quant_type": settings.kind,
            "double": settings.double,
            "blocksize": settings.size,
            "transposed": transposed,
        }
        tensors[key] = logical(key, stored[key].shape, NAME, [("weight", stored[key])], how)
    return Unpacked(tensors=tensors)


def opener(tensor: Stored, read: ReadRange) -> Rows:
    """A logical tensor, ready to be read."""
    from bot.formats.bitsandbytes.simulated_rows import open_simulated

    return open_simulated(tensor, read)
