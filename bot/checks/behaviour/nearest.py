"""Other ways to have merged, made in memory to be measured: rounded to nearest into another base, or quantised again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bot.checks.behaviour.control import replace_parameters
from bot.checks.elementwise.rounding import round_once

Requantize = Callable[[Tensor], Tensor]


def merge_to_nearest(model: nn.Module, dtype: torch.dtype, requantize: dict[str, Requantize]) -> None:
    """Turn the base model inside a PEFT model into the merge, in place, each number rounded once to `dtype`. Its adapters
    must be off. `requantize`: what becomes of a module's exact weight (float32, out × in) instead."""

    def remake(path: str, name: str, exact: Tensor, kept: torch.dtype) -> nn.Parameter:
        exact = exact.double()
        # bitsandbytes gives on a GPU what it gives on the processor but for the last bit: so all of it is done there.
        made = (
            requantize[path](exact.float().cpu())
            if name == "weight" and path in requantize
            else round_once(exact, dtype)
        )
        return nn.Parameter(made.to(exact.device, kept), requires_grad=False)

    replace_parameters(model, remake)


def quantised_again(model: Any, settings: dict[str, Any], skeleton: Any) -> dict[str, Requantize]:
    """For each module that bitsandbytes would convert: there and back. `skeleton`: the model without weights, to be spoilt."""
    from bot.checks.reading import bitsandbytes

    modules = dict(model.named_modules())
    requantize: dict[str, Requantize] = {}
    for name in bitsandbytes.modules(skeleton, settings):
        requantize[name] = bitsandbytes.there_and_back(settings)
        if name in modules and type(modules[name]).__name__ == "Conv1D":
            requantize[name] = _on_transposed(requantize[name])
    return requantize


def _on_transposed(requantize: Requantize) -> Requantize:
    return lambda weight: requantize(weight.T.contiguous()).T.contiguous()
