"""The control: an independent, correct merge whose only fault is one *stochastic* rounding to the storage dtype.

Its delta is PEFT's own, in float64. Rounding up or down at random has twice the variance of rounding to nearest (ulp²/6
against ulp²/12), so that a correct merge lies half as far from the unmerged model as the control does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bot.checks.rounding import round_stochastically

CHUNK = 1 << 17  # elements that are rounded at once


def become_control(model: nn.Module, job: dict[str, Any]) -> int:
    """Give every layer with an adapter its control weight, in place; returns how many layers have one.

    Where the request changes the dtype, every other floating-point parameter is rounded stochastically too.
    """
    dtype: torch.dtype = getattr(torch, job["storage"])
    generator = torch.Generator().manual_seed(0)
    touched: set[int] = set()
    layers = [module for module in model.modules() if hasattr(module, "get_delta_weight") and hasattr(module, "lora_A")]
    with torch.no_grad():
        for layer in layers:
            base: Any = layer.get_base_layer()  # type: ignore[operator]
            delta = _delta(layer)
            rounded = _rounded(base.weight, delta, dtype, generator)
            base.weight = nn.Parameter(rounded, requires_grad=False)  # a new one: a tied partner keeps the old
            touched.add(id(base.weight))
        if job["cast_all"]:
            for name, weight in model.named_parameters():
                if id(weight) not in touched and "lora_" not in name and weight.is_floating_point():
                    weight.copy_(_rounded(weight, None, dtype, generator))
    return len(layers)


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


def _rounded(weight: Tensor, delta: Tensor | None, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """The sum, stochastically rounded to `dtype` and held in the weight's own (wider) dtype."""
    result = torch.empty_like(weight)
    rows = max(1, CHUNK // max(1, weight[0].numel())) if weight.dim() else 1
    for low in range(0, weight.shape[0] if weight.dim() else 1, rows):
        part = slice(low, low + rows) if weight.dim() else ...
        exact = weight[part].double() if delta is None else weight[part].double() + delta[part]
        result[part] = round_stochastically(exact, dtype, generator).to(weight.dtype)
    return result
