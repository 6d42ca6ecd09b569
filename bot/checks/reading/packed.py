"""A weight that is stored quantised, as the library that wrote its form dequantises it: one at a time, in float32.

What is read by rules of the verifier's own is held to the library, bit for bit, in tests; then neither it nor torch is imported.
The merger reads these forms with code of its own (`bot.formats`); nothing of that is used here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from bot.checks.reading.checkpoint import PackedWeight, TensorRef
from bot.records import Json

if TYPE_CHECKING:
    from torch import Tensor

    from bot.checks.reading.stored_numbers import Array


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

    def dense(self, packed: PackedWeight, slab: int) -> Array | Tensor:
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


def read_bytes(ref: TensorRef, slab: int | None = None) -> tuple[bytearray, tuple[int, ...]]:
    """(the bytes of a part, its shape); of several slabs, those of that one (without the first axis). Raises EOFError."""
    stored = ref.stored
    start, size, shape = stored.start, stored.stop - stored.start, stored.shape
    if slab is not None:
        size, shape = size // shape[0], shape[1:]
        start += slab * size
    with ref.path.open("rb") as opened:
        opened.seek(start)
        held = bytearray(opened.read(size))
    if len(held) != size:
        raise EOFError(f"{ref.path.name} ended at byte {start + len(held)}")
    return held, shape


def read_component(ref: TensorRef, slab: int | None = None) -> Tensor:
    """A part in its own dtype and shape; of several slabs, that one (without the first axis)."""
    import torch

    from bot.checks.reading.torch_dtypes import RAW

    buffer, shape = read_bytes(ref, slab)
    dtype = RAW[ref.stored.dtype]
    numbers = torch.frombuffer(buffer, dtype=torch.uint8).view(dtype) if buffer else torch.empty(0, dtype=dtype)
    return numbers.reshape(shape)
