"""torchao's integers and floats of eight bits, as safetensors: (code − zero) · scale in float32, in numpy.

That is torchao's `dequantize_affine` with float32 as its output; torchao itself is not imported (it is built against one torch).
Tests hold this to numbers that torchao gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bot.checks.reading.checkpoint import PackedWeight, TensorRef
from bot.checks.reading.component_numbers import wide_component
from bot.checks.reading.packed import extras as extras
from bot.checks.reading.packed import modules as modules
from bot.checks.reading.packed import name_of as name_of
from bot.checks.reading.stored_numbers import Array
from bot.records import Json

if TYPE_CHECKING:
    from torch import Tensor

NAME = "torchao"
PACKAGE = "numpy"
QDATA, CODES = "_qdata", ("I8", "F8_E4M3")
ROLES = ("qdata", "scale", "zero_point")
BESIDE = ("act_quant_scale", "act_quant_zero_point")  # of activations


def recognises(quantization: Json) -> bool:
    """Whether this `quantization_config` is torchao's."""
    return quantization.get("quant_method") == NAME


def unpack(tensors: Mapping[str, TensorRef], quantization: Json, config: Json, dtype: str) -> dict[str, PackedWeight]:
    """`m._weight_qdata` with `m._weight_scale`, and a zero point where there is one."""
    packed = {}
    for key, ref in tensors.items():
        module, _, name = key.rpartition(".")
        if not (name.startswith("_") and name.endswith(QDATA)):
            continue
        front = key.removesuffix("qdata")
        components = {role: tensors[f"{front}{role}"] for role in (*ROLES, *BESIDE) if f"{front}{role}" in tensors}
        if ref.stored.dtype not in CODES or "scale" not in components or len(ref.stored.shape) != 2:
            raise ValueError(f"{key} is packed in a form of torchao that is not read.")
        weight = f"{module}.{name[1:].removesuffix(QDATA)}"
        packed[weight] = PackedWeight(dense=dense, components=components, shape=ref.stored.shape, dtype=dtype)
    return packed


def dense(packed: PackedWeight, slab: int) -> Array:
    """Rows and groups of columns under one scale each."""
    codes, scale = (wide_component(packed.components[role]) for role in ("qdata", "scale"))
    rows, columns = packed.shape
    scale_grid = scale if scale.ndim == 2 else scale.reshape(rows if scale.size > 1 else 1, -1)
    high, wide = rows // scale_grid.shape[0], columns // scale_grid.shape[1]
    if "zero_point" in packed.components:
        zero = wide_component(packed.components["zero_point"]).reshape(scale_grid.shape)
        codes = codes - _spread(zero, high, wide)
    value: Array = codes * _spread(scale_grid, high, wide)
    return value


def _spread(scale_grid: Array, high: int, wide: int) -> Array:
    return scale_grid.repeat(high, 0).repeat(wide, 1)


def quantise(exact: Tensor, packed: PackedWeight) -> dict[str, Tensor]:
    """Nothing is written in this form."""
    raise ValueError("it is stored by torchao, as which no merge is written")
