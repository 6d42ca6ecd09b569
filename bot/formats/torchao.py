"""torchao checkpoints as safetensors: integers one to a byte (Int8Tensor, IntxUnpackedToInt8Tensor) and e4m3 (Float8Tensor).

A weight `m.weight` is stored as `m._weight_qdata`, `m._weight_scale` and, of integers, `m._weight_zero_point`; values are
(code − zero) · scale in float32, as torchao's dequantize_affine computes them with float32 as its output. int4 weights packed for
a kernel (Int4Tensor and its kin), MX and NVFP4 are refused: on a CPU torchao itself cannot unpack them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bot.formats.base import ReadRange, Rows, Unpacked, quantization_of
from bot.formats.base import small_keys as small_keys
from bot.formats.logical_tensor import logical, rectangle, refused, unpacked
from bot.records import Json, Refusal, Stored

NAME = "torchao"
QDATA = "_qdata"
KINDS = {"I8": "int8", "F8_E4M3": "e4m3"}
FLOATS = ("F32", "BF16", "F16")
USED = ("scale", "zero_point")
LEFT = ("act_quant_scale", "act_quant_zero_point")  # of activations: of no use to a merge


def recognises(config: Json) -> bool:
    """Whether config.json says so."""
    return (quantization_of(config) or {}).get("quant_method") == NAME


def unpack(stored: Mapping[str, Stored], config: Json, small: Mapping[str, bytes]) -> Unpacked:
    """The model's own tensors: codes, scales and zero points as one."""
    kind = _kind((quantization_of(config) or {}).get("quant_type"))
    made: list[Stored | Refusal] = []
    for key, codes in stored.items():
        module, _, name = key.rpartition(".")
        if name.startswith("_") and name.endswith(QDATA):
            made.append(_weight(f"{module}.{name[1:].removesuffix(QDATA)}", codes, stored, kind))
    if not made:
        reason = f"The base's weights are stored by torchao ({kind}), but not as safetensors that name their parts."
        made.append(refused(reason))
    return unpacked(stored, made)


def opener(tensor: Stored, read: ReadRange) -> Rows:
    """A logical tensor, ready to be read."""
    from bot.formats.scale_grid import open_scale_grid, read_numbers

    assert tensor.packed is not None
    zero = dict(tensor.packed.parts).get("zero_point")
    return open_scale_grid(tensor, read, None if zero is None else read_numbers(zero, read))


def _kind(quant_type: Any) -> str:
    """The name of torchao's config class; older checkpoints have a string."""
    default = quant_type.get("default") if isinstance(quant_type, dict) else None
    return str(default.get("_type") if isinstance(default, dict) else quant_type)


def _weight(key: str, codes: Stored, stored: Mapping[str, Stored], kind: str) -> Stored | Refusal:
    prefix = codes.key.removesuffix("qdata")
    others = {name.removeprefix(prefix): part for name, part in stored.items() if name.startswith(prefix)}
    del others["qdata"]
    unknown = sorted(others.keys() - {*USED, *LEFT})
    if codes.dtype not in KINDS or unknown:
        what = f"together with {unknown[0]}" if unknown else f"as {codes.dtype}"
        return refused(f"{key} is stored by torchao's {kind} {what}, which is not read.", codes.key)
    scale, zero = others.get("scale"), others.get("zero_point")
    block = rectangle(*codes.shape, scale.shape, None) if scale and len(codes.shape) == 2 else None
    fits = zero is None or (zero.dtype in ("I8", *FLOATS) and scale and math.prod(zero.shape) == math.prod(scale.shape))
    if scale is None or scale.dtype not in FLOATS or block is None or not fits:
        return refused(f"{key} has no scales or zero points that fit it (torchao's {kind}).", codes.key)
    settings: dict[str, str | int | float | bool] = {
        "kind": KINDS[codes.dtype], "experts": 1, "rows": codes.shape[0], "columns": codes.shape[1], "high": block[0],
        "wide": block[1],
    }  # fmt: skip
    return logical(key, codes.shape, NAME, [("weight", codes), *sorted(others.items(), reverse=True)], settings)
