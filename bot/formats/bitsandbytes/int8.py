"""bitsandbytes' int8 checkpoints (LLM.int8()), as transformers saves them: `X.weight` (I8), `X.SCB`, `X.weight_format`.

Values are (code · SCB) · float32(1/127) in float32, as bitsandbytes' int8_vectorwise_dequant multiplies them; SCB is the
absmax of the weight's output. A Conv1D is stored transposed, as out × in; it is seen as the plain checkpoint has it, in × out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bot.checkpoint.families import family_of
from bot.formats.base import ReadRange, Rows, Unpacked
from bot.formats.bitsandbytes.four_bit import FLOATS, says, stored_transposed
from bot.formats.logical_tensor import logical, refused, unpacked
from bot.records import Json, Refusal, Stored

NAME = "bnb8"
BY_ROW = (b"", b"\0")  # the other formats, of 2023 and before, are reordered for one kind of GPU each


def recognises(config: Json) -> bool:
    """Whether config.json says so."""
    return says(config, "load_in_8bit")


def small_keys(keys: Iterable[str]) -> list[str]:
    """One byte each: in which order the weight is stored."""
    return [key for key in keys if key.endswith(".weight_format")]


def unpack(stored: Mapping[str, Stored], config: Json, small: Mapping[str, bytes]) -> Unpacked:
    """The model's own tensors: every weight with its scales as one."""
    family = family_of(config)
    packed = [tensor for key, tensor in stored.items() if tensor.dtype == "I8" and key.endswith(".weight")]
    return unpacked(
        stored, (_weight(tensor, stored, small, stored_transposed(tensor.key, family)) for tensor in packed)
    )


def opener(tensor: Stored, read: ReadRange) -> Rows:
    """A logical tensor, ready to be read."""
    from bot.formats.bitsandbytes.int8_rows import open_stored

    return open_stored(tensor, read)


def _weight(
    main: Stored, stored: Mapping[str, Stored], small: Mapping[str, bytes], transposed: bool
) -> Stored | Refusal:
    module = main.key.removesuffix(".weight")
    scale, form = stored.get(f"{module}.SCB"), stored.get(f"{module}.weight_format")
    if len(main.shape) != 2 or scale is None or scale.dtype not in FLOATS or scale.shape != main.shape[:1]:
        return refused(f"{main.key} is stored in int8 without a scale (SCB) for each of its outputs.", main.key)
    if small.get(f"{module}.weight_format", b"") not in BY_ROW:
        return refused(f"{main.key} is stored in an order made for one kind of GPU (weight_format).", main.key)
    parts = [("weight", main), ("scale", scale)] + ([("format", form)] if form else [])
    shape = (main.shape[1], main.shape[0]) if transposed else main.shape
    return logical(main.key, shape, NAME, parts, {"transposed": transposed})
