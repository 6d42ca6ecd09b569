"""bitsandbytes' four-bit checkpoints (nf4, fp4), as transformers saves them.

Background `X.weight` (bytes; the dtype it is stored under does not matter) stand `X.weight.absmax`, `.quant_map`,
`.quant_state.bitsandbytes__nf4` or `__fp4` (JSON), and with double quantisation `.nested_absmax` and `.nested_quant_map`.
Values are those of bitsandbytes' dequantize_4bit in float32, whatever dtype the quant state names (that would round a second
time). As there, `quant_map` is not used: the type says which levels there are. A Conv1D is stored transposed, as out × in; it is
seen as the plain checkpoint has it, in × out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

from bot.checkpoint.families import ModelFamily, family_of
from bot.formats.base import ReadRange, Rows, Unpacked, quantization_of
from bot.formats.logical_tensor import logical, refused, unpacked
from bot.records import Json, Refusal, Stored

NAME = "bnb4"
TYPES = ("nf4", "fp4")
STATE = ".quant_state.bitsandbytes__"
SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # of a block, in bitsandbytes
FLOATS = ("F32", "BF16", "F16")


def recognises(config: Json) -> bool:
    """Whether config.json says so."""
    return says(config, "load_in_4bit")


def says(config: Json, flag: str) -> bool:
    """Whether the quantization_config is bitsandbytes', with this flag set. The oldest name no method."""
    quantization = quantization_of(config) or {}
    known = quantization.get("quant_method", "bitsandbytes") in ("bitsandbytes", None)
    return known and bool(quantization.get(flag, quantization.get(f"_{flag}")))


def small_keys(keys: Iterable[str]) -> list[str]:
    """The quant states: less than 200 bytes of JSON each."""
    return [key for key in keys if key.endswith(tuple(STATE + name for name in TYPES))]


def unpack(stored: Mapping[str, Stored], config: Json, small: Mapping[str, bytes]) -> Unpacked:
    """The model's own tensors: every weight with its statistics as one."""
    family = family_of(config)
    made: list[Stored | Refusal] = []
    states = {key.rpartition(STATE)[0]: key for key in small_keys(stored)}
    for key, state in states.items():
        made.append(_weight(key, state, stored, small.get(state, b""), stored_transposed(key, family)))
    for tensor in stored.values():
        packed = tensor.dtype in ("U8", "I8") and tensor.shape[1:] == (1,) and tensor.key.endswith(".weight")
        if packed and tensor.key not in states:
            made.append(refused(f"{tensor.key} is stored in four bits without a quant state.", tensor.key))
    return unpacked(stored, made)


def opener(tensor: Stored, read: ReadRange) -> Rows:
    """A logical tensor, ready to be read."""
    from bot.formats.bitsandbytes.four_bit_rows import open_stored

    return open_stored(tensor, read)


def stored_transposed(key: str, family: ModelFamily) -> bool:
    """Whether this is a Conv1D's weight, which transformers transposes before bitsandbytes quantises it."""
    return bool(family.conv1d) and family.is_conv1d(family.conversions.route(key).targets[0])


def _weight(key: str, state: str, stored: Mapping[str, Stored], content: bytes, transposed: bool) -> Stored | Refusal:
    quant_state = _parsed(content)
    main = stored.get(key)
    wrong = "has no weight" if main is None else "has no quant state that could be read" if quant_state is None else ""
    if main is None or quant_state is None:
        return refused(f"{key} {wrong}.", state)
    shape, size = quant_state["shape"], quant_state["blocksize"]
    settings: dict[str, str | int | float | bool] = {
        "quant_type": state.rpartition("__")[2], "blocksize": size, "transposed": transposed, "nested_blocksize": 0, "offset": 0.0,
    }  # fmt: skip
    if "nested_offset" in quant_state:
        settings |= {"nested_blocksize": quant_state["nested_blocksize"], "offset": float(quant_state["nested_offset"])}
    parts = {"weight": main, "absmax": stored.get(f"{key}.absmax")}
    if "nested_offset" in quant_state:
        parts |= {name: stored.get(f"{key}.{name}") for name in ("nested_absmax", "nested_quant_map")}
    lacks = [name for name, part in parts.items() if part is None]
    if lacks:
        return refused(f"{key} has no {lacks[0]}, without which it cannot be dequantised.", key, state)
    known = {name: part for name, part in parts.items() if part is not None}
    if not _fits(known, math.prod(shape), size, quant_state.get("nested_blocksize", 0)):
        return refused(f"{key}'s tensors do not have the sizes that its quant state says.", key, state)
    rest = {"quant_map": stored.get(f"{key}.quant_map"), "quant_state": stored[state]}
    every = [*known.items(), *((name, part) for name, part in rest.items() if part is not None)]
    logical_shape = tuple(reversed(shape)) if transposed else tuple(shape)
    return logical(key, logical_shape, NAME, every, settings)


def _parsed(content: bytes) -> Json | None:
    """The quant state, if it is one: its numbers are what they must be."""
    try:
        state = json.loads(content)
        offset = state.get("nested_offset", 0.0)
        fine = state["quant_type"] in TYPES and state["blocksize"] in SIZES and math.isfinite(offset)
        fine = fine and len(state["shape"]) == 2 and all(isinstance(size, int) and size > 0 for size in state["shape"])
        if "nested_offset" in state:
            fine = fine and state["nested_dtype"] == "float32" and state["nested_blocksize"] > 0
        return state if fine else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _fits(parts: Mapping[str, Stored], count: int, size: int, nested_size: int) -> bool:
    blocks = math.ceil(count / size)
    fits = parts["weight"].stop - parts["weight"].start == math.ceil(count / 2)
    fits = fits and math.prod(parts["absmax"].shape) == blocks
    if "nested_absmax" not in parts:
        return fits and parts["absmax"].dtype in FLOATS
    outer, levels = parts["nested_absmax"], parts["nested_quant_map"]
    fits = fits and parts["absmax"].dtype == "U8" and outer.dtype in FLOATS and levels.dtype in FLOATS
    return fits and math.prod(outer.shape) == math.ceil(blocks / nested_size) and levels.shape == (256,)
