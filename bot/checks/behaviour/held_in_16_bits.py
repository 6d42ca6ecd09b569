"""Models whose weights stay in memory as they are stored, in 16 bits, and are widened to float32 one module at a time, while it
runs: half the memory, and no time to make it ready. What is computed is what the same model in float32 computes.

That holds where modules are given float32 and read no weight but their own. What does otherwise is noticed (NotInFloat32), and the
model is to be loaded in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SLICE = 1 << 22  # weights of a head that are widened at once: 16 MB, which the next slice reuses
NARROW = (torch.bfloat16, torch.float16)


class NotInFloat32(Exception):
    """This model does not run so."""


def widen(model: nn.Module) -> None:
    """Have every module with weights in 16 bits compute in float32, in place. Raises NotInFloat32."""
    for name, buffer in model.named_buffers():
        if buffer.dtype in NARROW:  # which the same model in float32 would have in full
            raise NotInFloat32(f"{name} is a buffer in 16 bits")
    for module in model.modules():
        names = [name for name, weight in module.named_parameters(recurse=False) if weight.dtype in NARROW]
        if names:
            module.forward = _InFloat32(module, module.forward, names)


@contextmanager
def kept_wide(module: nn.Module) -> Iterator[None]:
    """For as long as the block runs, a module that `widen` was given keeps its weights in float32."""
    names = module.forward._names if isinstance(module.forward, _InFloat32) else []
    with _wide(module, names):
        yield


@contextmanager
def _wide(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    held = {name: module._parameters[name] for name in names}
    try:
        for name, weight in held.items():
            assert weight is not None
            module._parameters[name] = nn.Parameter(weight.float(), requires_grad=False)
        yield
    finally:
        module._parameters.update(held)


class _InFloat32:
    """The forward of a module that holds these parameters in 16 bits, or has them put in by functional_call in any width."""

    def __init__(self, module: nn.Module, forward: Any, names: list[str]) -> None:
        self._module, self._forward, self._names = module, forward, names

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.dtype in NARROW:
                raise NotInFloat32(f"a {type(self._module).__name__} is given 16 bits")
        if type(self._module) is nn.Embedding:  # the rows in use, not the whole
            return self._forward(*args, **kwargs).float()
        if (
            type(self._module) is nn.Linear
            and self._module.weight.numel() > 4 * SLICE
            and len(args) == 1
            and not kwargs
        ):
            return self._by_slices(args[0])
        with _wide(self._module, self._names):
            return self._forward(*args, **kwargs)

    def _by_slices(self, hidden: Tensor) -> Tensor:
        """A head: some tokens of the vocabulary at a time."""
        weight, bias = self._module.weight, self._module.bias
        assert isinstance(weight, Tensor)
        count = weight.shape[0]
        output = hidden.new_empty((*hidden.shape[:-1], count))
        step = max(1, SLICE // weight.shape[1])
        for low in range(0, count, step):
            rows = slice(low, low + step)
            added = bias[rows].float() if isinstance(bias, Tensor) else None
            output[..., rows] = nn.functional.linear(hidden, weight[rows].float(), added)
        return output
