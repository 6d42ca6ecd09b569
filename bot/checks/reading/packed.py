"""A weight that is stored quantised, as the library that wrote its form dequantises it: one at a time, in float32.

The merger reads these forms with code of its own (`bot.formats`); nothing of that is used here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from bot.checks.reading.checkpoint import PackedWeight, TensorRef
from bot.records import Json

# safetensors' names for what components are stored as.
RAW = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


class Form(Protocol):
    """A way to store weights, by the library that defines it. A module with these names is one."""

    NAME: str
    PACKAGE: str

    def recognises(self, quantization: Json) -> bool:
        """Whether this `quantization_config` is of the form."""

    def unpack(
        self, tensors: Mapping[str, TensorRef], quantization: Json, config: Json, dtype: str
    ) -> dict[str, PackedWeight]:
        """The quantised weights by their plain keys. Raises ValueError for one that the form does not explain."""

    def extras(self, keys: Collection[str]) -> set[str]:
        """Tensors beside the weights that a plain model has no use for: scales of activations and caches."""

    def dense(self, packed: PackedWeight, slab: int) -> Tensor:
        """One slab in float32, of the weight's own shape (less its first axis, where there are several slabs)."""

    def modules(self, model: Any, quantization: Json) -> list[str]:
        """The modules of a model without weights that a loader expects to be stored so. May change the model."""

    def name_of(self, packed: PackedWeight) -> str:
        """What `--quantize` calls it; "" for what is read only."""

    def quantise(self, exact: Tensor, packed: PackedWeight) -> dict[str, Tensor]:
        """What the library makes of a float32 weight, by role, with `packed`'s settings. Raises ValueError where
        these are not what they must be."""


# What a form has in common with others: nothing beside its weights, and nothing that a merge writes.


def extras(keys: Collection[str]) -> set[str]:
    """Everything hangs on a weight."""
    return set()


def modules(model: Any, quantization: Json) -> list[str]:
    """Nothing is written in this form, or only back over a base that has it, which says where."""
    return []


def name_of(packed: PackedWeight) -> str:
    """Read only."""
    return ""


def read_component(ref: TensorRef, slab: int | None = None) -> Tensor:
    """A part in its own dtype and shape; of several slabs, that one (without the first axis)."""
    stored, count = ref.stored, 1
    start, size, shape = stored.start, stored.stop - stored.start, stored.shape
    if slab is not None:
        count = stored.shape[0]
        size, shape = size // count, stored.shape[1:]
        start += slab * size
    with ref.path.open("rb") as opened:
        opened.seek(start)
        buffer = bytearray(opened.read(size))
    if len(buffer) != size:
        raise EOFError(f"{ref.path.name} ended at byte {start + len(buffer)}")
    dtype = RAW[stored.dtype]
    numbers = torch.frombuffer(buffer, dtype=torch.uint8).view(dtype) if size else torch.empty(0, dtype=dtype)
    return numbers.reshape(shape)
