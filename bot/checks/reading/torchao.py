"""torchao's integers and floats of eight bits, as safetensors: (code − zero) · scale in float32, by torch.

That is torchao's `dequantize_affine` with float32 as its output; torchao itself is not imported (it is built against one torch).
Tests hold this to numbers that torchao gave.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bot.checks.reading.checkpoint import PackedWeight, TensorRef
from bot.checks.reading.packed import extras as extras
from bot.checks.reading.packed import modules as modules
from bot.checks.reading.packed import name_of as name_of
from bot.checks.reading.packed import read_component
from bot.records import Json

NAME = "torchao"
PACKAGE = "torch"
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


def dense(packed: PackedWeight, slab: int) -> Tensor:
    """Rows and groups of columns under one scale each."""
    codes, scale = (read_component(packed.components[role]).float() for role in ("qdata", "scale"))
    rows, columns = packed.shape
    scale_grid = scale if scale.dim() == 2 else scale.reshape(rows if scale.numel() > 1 else 1, -1)
    high, wide = rows // scale_grid.shape[0], columns // scale_grid.shape[1]
    if "zero_point" in packed.components:
        zero = read_component(packed.components["zero_point"]).float().reshape(scale_grid.shape)
        codes = codes - _spread(zero, high, wide)
    return codes * _spread(scale_grid, high, wide)


def _spread(scale_grid: Tensor, high: int, wide: int) -> Tensor:
    return scale_grid.repeat_interleave(high, 0).repeat_interleave(wide, 1)


def quantise(exact: Tensor, packed: PackedWeight) -> dict[str, Tensor]:
    """Nothing is written in this form."""
    raise ValueError("it is stored by torchao, as which no merge is written")
