"""Other ways to have merged, made in memory to be measured: rounded to nearest into another base, or quantised again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bot.checks.behaviour.adapted_weights import adapted
from bot.checks.behaviour.control import parameters
from bot.checks.elementwise.rounding import round_once

Again = Callable[[Tensor], Tensor]


def merge_to_nearest(model: nn.Module, dtype: torch.dtype, again: dict[str, Again]) -> None:
    """Turn the base model inside a PEFT model into the merge, in place, each number rounded once to `dtype`. Its adapters
    must be off. `again`: what becomes of a module's exact weight (float32, out × in) instead."""
    found = {(one.owner, one.name): one for one in adapted(model)}
    rounded: dict[Tensor, nn.Parameter] = {}
    with torch.no_grad():
        for path, owner, name, weight in list(parameters(model)):
            one = found.get((owner, name))
            if one is None and weight in rounded:
                setattr(owner, name, rounded[weight])  # tied weights stay tied
                continue
            exact = one.exact() if one is not None else weight.double()
            made = again[path](exact.float()) if name == "weight" and path in again else round_once(exact, dtype)
            fresh = nn.Parameter(made.to(weight.dtype), requires_grad=False)
            if one is None:
                rounded[weight] = fresh
            setattr(owner, name, fresh)


def quantised_again(model: Any, said: dict[str, Any], skeleton: Any) -> dict[str, Again]:
    """For each module that bitsandbytes would convert: there and back. `skeleton`: the model without weights, to be spoilt."""
    from bot.checks.reading import bitsandbytes

    modules = dict(model.named_modules())
    found: dict[str, Again] = {}
    for name in bitsandbytes.modules(skeleton, said):
        transposed = type(modules[name]).__name__ == "Conv1D" if name in modules else False
        found[name] = (
            _on_transposed(bitsandbytes.there_and_back(said)) if transposed else bitsandbytes.there_and_back(said)
        )
    return found


def _on_transposed(again: Again) -> Again:
    return lambda weight: again(weight.T.contiguous()).T.contiguous()
