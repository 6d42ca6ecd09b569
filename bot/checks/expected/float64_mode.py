"""PEFT's layers computed in float64, also where PEFT asks for float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bot.checks.expected.probed_methods import IN_FLOAT32, has_own_merge, reads_base
from bot.records import Json

BYTES = (torch.frombuffer, torch.asarray, Tensor.view)  # here a dtype says what bytes mean: files are read inside


class Float64Mode(TorchFunctionMode):
    """A request for float32 is a request for the wide type: PEFT takes it for steps that 16 bits would spoil."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.float:
            return args[0].double()
        if func in BYTES:
            return func(*args, **(kwargs or {}))
        wide = {torch.float32: torch.float64, torch.complex64: torch.complex128}
        changed = [wide.get(value, value) if isinstance(value, torch.dtype) else value for value in args]
        named = {
            name: wide.get(value, value) if isinstance(value, torch.dtype) else value
            for name, value in (kwargs or {}).items()
        }
        return func(*changed, **named)


@contextmanager
def float64_mode(mode: AbstractContextManager[Any] | None = None) -> Iterator[None]:
    """New tensors are float64 too. Not while layers are made: some draw numbers from a seed, in float32."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with mode or Float64Mode():
            yield
    finally:
        torch.set_default_dtype(default)


@contextmanager
def without_warnings() -> Iterator[None]:
    """PEFT's warnings are kept from the report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def loading(config: Json) -> AbstractContextManager[Any]:
    """The casts under which an adapter is to be put on a base, for layers as exact as float64 makes them."""
    return Float64Mode() if reads_base(config) and config.get("peft_type") not in IN_FLOAT32 else nullcontext()


def mend(tuned: nn.Module, wide: bool) -> None:
    """Make a PEFT model that was just loaded what it should be: see use_saved_projection.

    `wide`: PEFT's own layers compute in float64 from here on; the model's code, which the merged model shares, as it is.
    """
    if not wide:
        tuned.float()  # what `loading` has widened, beside a model that computes in float32
    for layer in tuned.modules():
        if has_own_merge(layer):
            use_saved_projection(layer)
            if wide and "dtype" in layer.__dict__:
                layer.__dict__["dtype"] = torch.float64
            if wide:
                layer.forward = _in_float64(layer.forward)


def use_saved_projection(layer: Any) -> None:
    """FRoD: U = W · V⁻ᵀ with unit columns, of the V that was saved; PEFT takes the V that it has found again, whose
    columns may have other signs."""
    if not hasattr(layer, "frod_U"):
        return
    with torch.no_grad():
        weight = layer.get_base_layer().weight.data.double()
        weight = weight.T if layer.fan_in_fan_out else weight
        for name in list(layer.frod_U):
            columns = torch.linalg.lstsq(layer.frod_V[name].double(), weight.T).solution.T
            layer.frod_U[name] = (columns / columns.norm(dim=0).clamp_min(1e-12)).to(layer.frod_U[name].dtype)


def _in_float64(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with float64_mode():
            return forward(*args, **kwargs)

    return run
