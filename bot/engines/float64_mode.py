"""PEFT's arithmetic in float64: wherever its code asks for float32, it gets float64.

PEFT widens bfloat16 to float32 for the steps that need it (Cayley transforms, FFTs, SVDs). With float64 weights those
steps would be the only narrow ones, so that a request for float32 is read as what it means: the wide one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}
CASTS = {Tensor.float: torch.float64}


class _Wide(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in CASTS:
            return args[0].to(CASTS[func])
        wide = {name: WIDER.get(value, value) if _is_dtype(value) else value for name, value in (kwargs or {}).items()}
        return func(*(WIDER.get(value, value) if _is_dtype(value) else value for value in args), **wide)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, torch.dtype)


@contextmanager
def float64_casts() -> Iterator[None]:
    """Every cast to float32 goes to float64; new tensors keep torch's default, so that seeded ones stay what they are."""
    with _Wide():
        yield


@contextmanager
def float64_mode() -> Iterator[None]:
    """New tensors are float64 too: for arithmetic that draws nothing at random."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Wide():
            yield
    finally:
        torch.set_default_dtype(default)
