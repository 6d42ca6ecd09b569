"""A device that is not the processor, on machines without one: what is computed there is computed by the processor, and numbers of
both in one operation are refused, as CUDA refuses them.

Its tensors say that they are on torch's `meta`, the one other device of every build. What stands in for them is inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "meta"


class There(Tensor):
    """A tensor on the device."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=NAME
        )  # fmt: skip
        made.here = here
        return made

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """Without the device, torch would give this tensor other numbers and not what stands in for it."""
        return There(self.here.detach())

    @data.setter
    def data(self, value: There) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.here = value.here

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(operation, args, kwargs or {})


class Mode(TorchDispatchMode):
    """Has what is made on the device, or brought to it, be There."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(operation, args, kwargs or {})


def computed(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation, by the processor. Raises RuntimeError where its numbers are on two devices."""
    args, kwargs = tree_map(_empty_there, (args, kwargs))
    flat = tree_flatten((args, kwargs))[0]
    tensors = [value for value in flat if isinstance(value, Tensor)]
    there = any(isinstance(value, There) for value in tensors)
    if there and any(not isinstance(value, There) and value.dim() for value in tensors) and not moves(operation):
        raise RuntimeError(f"Expected all tensors to be on the same device: {operation}")
    for wanted in (value for value in flat if isinstance(value, torch.device)):
        there = wanted.type == NAME
    inner_args, inner_kwargs = tree_map(_here, (args, kwargs))
    made = operation(*inner_args, **inner_kwargs)
    if operation._schema.is_mutable and args and isinstance(args[0], Tensor):
        return args[0]
    return tree_map(lambda value: There(value) if there and isinstance(value, Tensor) else value, made)


def _empty_there(value: Any) -> Any:
    """torch.tensor([]) on the device, which goes around every mode, as There."""
    bare = isinstance(value, Tensor) and not isinstance(value, There) and value.is_meta and not value.numel()
    return There(torch.empty(value.shape, dtype=value.dtype)) if bare else value


def _here(value: Any) -> Any:
    return value.here if isinstance(value, There) else torch.device("cpu") if isinstance(value, torch.device) else value


def moves(operation: Any) -> bool:
    """Whether an operation copies from one device to the other."""
    return "copy" in str(operation)


@contextmanager
def device() -> Iterator[str]:
    """For as long as the block runs, in this thread, there is such a device, which torch calls by the name that is given. As on any,
    nothing is computed there for training."""
    with Mode(), torch.inference_mode():
        yield NAME
