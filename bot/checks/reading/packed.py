"""A weight that is stored quantised, as the library that wrote its form dequantises it: one at a time, in float32.

The merger reads these forms with code of its own (`bot.formats`); nothing of that is used here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from bot.checks.reading.checkpoint import Place
from bot.records import Json

# safetensors' names for what parts are stored as.
RAW = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """`parts`: the checkpoint's tensors by their role; `dtype`: as which a merge stores the weight; `dense`: its form's.

    A weight of several `slabs` (a stack of experts) is dequantised one at a time; `settings` are the form's own.
    """

    parts: Mapping[str, Place]
    shape: tuple[int, ...]
    dtype: str
    dense: Callable[[Packed, int], Tensor]
    slabs: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


class Form(Protocol):
    """A way to store weights, by the library that defines it. A module with these names is one."""

    NAME: str
    PACKAGE: str

    def recognises(self, said: Json) -> bool:
        """Whether this `quantization_config` is of the form."""

    def unpack(self, tensors: Mapping[str, Place], said: Json, config: Json, dtype: str) -> dict[str, Packed]:
        """The quantised weights by their plain keys. Raises ValueError for one that the form does not explain."""

    def extras(self, keys: Collection[str]) -> set[str]:
        """Tensors beside the weights that a plain model has no use for: scales of activations and caches."""

    def dense(self, packed: Packed, slab: int) -> Tensor:
        """One slab in float32, of the weight's own shape (less its first axis, where there are several slabs)."""

    def modules(self, model: Any, said: Json) -> list[str]:
        """The modules of a model without weights that a loader expects to be stored so. May change the model."""

    def name_of(self, packed: Packed) -> str:
        """What `--quantize` calls it; "" for what is read only."""

    def quantise(self, exact: Tensor, packed: Packed) -> dict[str, Tensor]:
        """What the library makes of a float32 weight, by role, with `packed`'s settings. Raises ValueError where
        these are not what they must be."""


class Shelf:
    """What was dequantised and is still in use, and the last one besides: parts of one tensor are compared one after
    the other, by several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._used: WeakValueDictionary[tuple[Packed, int], Tensor] = WeakValueDictionary()
        self._last: Tensor | None = None

    def take(self, packed: Packed, slab: int = 0) -> Tensor:
        """A slab as one row of float32."""
        with self._lock:
            found = self._used.get((packed, slab))
            if found is None:
                self._last = None  # before the next one is made
                dense = packed.dense(packed, slab)
                assert dense.dtype == torch.float32
                assert dense.numel() == math.prod(packed.shape) // packed.slabs
                found = self._used[packed, slab] = dense.reshape(-1)
            self._last = found
            return found

    def clear(self) -> None:
        """Let the last one go."""
        with self._lock:
            self._last = None


SHELF = Shelf()


def read_part(place: Place, slab: int | None = None) -> Tensor:
    """A part in its own dtype and shape; of several slabs, that one (without the first axis)."""
    stored, count = place.stored, 1
    start, size, shape = stored.start, stored.stop - stored.start, stored.shape
    if slab is not None:
        count = stored.shape[0]
        size, shape = size // count, stored.shape[1:]
        start += slab * size
    with place.path.open("rb") as opened:
        opened.seek(start)
        buffer = bytearray(opened.read(size))
    if len(buffer) != size:
        raise EOFError(f"{place.path.name} ended at byte {start + len(buffer)}")
    dtype = RAW[stored.dtype]
    found = torch.frombuffer(buffer, dtype=torch.uint8).view(dtype) if size else torch.empty(0, dtype=dtype)
    return found.reshape(shape)
