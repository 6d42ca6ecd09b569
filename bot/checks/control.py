"""The control: an independent, correct merge whose only fault is one *stochastic* rounding to the storage dtype.

Its delta is PEFT's own, in float64. Rounding up or down at random has twice the variance of rounding to nearest (ulp²/6
against ulp²/12), so that a correct merge lies half as far from the unmerged model as the control does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bot.checks.rounding import round_stochastically

CHUNK = 1 << 17  # elements that are rounded at once
DRAWS = 4  # controls for a small model, whose outputs have too few degrees of freedom to trust a single draw
SMALL = 1 << 26  # merged weights; above this one draw is as good, and no second copy of the weights is held
Replaced = list[tuple[nn.Module, str, nn.Parameter]]


def controls(model: nn.Module, job: dict[str, Any]) -> Iterator[int]:
    """Turn the model into one control after the other, in place; yields how many layers have an adapter.

    The weights of the last control stay. Where the merge changes the dtype, every other floating-point parameter is
    rounded too.
    """
    layers = [module for module in model.modules() if hasattr(module, "get_delta_weight") and hasattr(module, "lora_A")]
    size = sum(layer.get_base_layer().weight.numel() for layer in layers)  # type: ignore[operator]
    draws = DRAWS if size <= SMALL else 1
    generator = torch.Generator().manual_seed(0)
    for draw in range(draws):
        replaced = _round_all(model, layers, job, generator, keep=draw < draws - 1)
        yield len(layers)
        for owner, name, original in replaced:
            setattr(owner, name, original)


def _round_all(
    model: nn.Module, layers: list[Any], job: dict[str, Any], generator: torch.Generator, keep: bool
) -> Replaced:
    """New parameters throughout, never new values: a weight tied to a merged one keeps its own. Returns the old ones."""
    dtype: torch.dtype = getattr(torch, job["storage"])
    deltas = {layer.get_base_layer(): layer for layer in layers}
    rounded: dict[Tensor, nn.Parameter] = {}
    replaced: Replaced = []
    with torch.no_grad():
        for owner, name, weight in list(_parameters(model)):
            layer = deltas.get(owner) if name == "weight" else None
            if layer is not None:
                fresh = _rounded(weight, _delta(layer), dtype, generator)
            elif job["cast_all"] and weight in rounded:
                fresh = rounded[weight]  # tied weights stay tied
            elif job["cast_all"]:
                fresh = rounded[weight] = _rounded(weight, None, dtype, generator)
            else:
                continue
            if keep:
                replaced.append((owner, name, weight))
            setattr(owner, name, fresh)
    return replaced


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Every floating-point parameter that is the model's own, with the module that it hangs on."""
    for path, owner in model.named_modules():
        if "lora_" not in path:
            for name, weight in owner.named_parameters(recurse=False):
                if weight.is_floating_point():
                    yield owner, name, weight


def _delta(layer: Any) -> Tensor:
    """PEFT's ΔW, computed in float64 (its own code, on widened factors)."""
    (name,) = layer.active_adapters
    halves = [layer.lora_A[name], layer.lora_B[name]]
    kept = halves[0].weight.dtype
    for half in halves:
        half.double()
    delta: Tensor = layer.get_delta_weight(name)
    for half in halves:
        half.to(kept)
    return delta


def _rounded(weight: Tensor, delta: Tensor | None, dtype: torch.dtype, generator: torch.Generator) -> nn.Parameter:
    """The sum, stochastically rounded to `dtype` and held in the weight's own (wider) dtype."""
    result = torch.empty_like(weight)
    count = weight.shape[0] if weight.dim() else 1
    rows = max(1, CHUNK * count // max(1, weight.numel()))
    for low in range(0, count, rows):
        part = slice(low, low + rows) if weight.dim() else ...
        exact = weight[part].double() if delta is None else weight[part].double() + delta[part]
        result[part] = round_stochastically(exact, dtype, generator).to(weight.dtype)
    return nn.Parameter(result, requires_grad=False)
