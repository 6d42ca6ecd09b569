"""The control: an independent, correct merge whose only fault is one *stochastic* rounding to the storage dtype.

Its delta is PEFT's own, in float64. Rounding up or down at random has twice the variance of rounding to nearest (ulp²/6
against ulp²/12), so that a correct merge lies half as far from the unmerged model as the control does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bot.checks.adapted import Adapted, adapted
from bot.checks.rounding import clamp, round_stochastically
from bot.checks.unmerged import has_own_merge

CHUNK = 1 << 17  # elements that are rounded at once
DRAWS = 4  # controls for a small model, whose outputs have too few degrees of freedom to trust a single draw
WRAPPED = re.compile(r"\.(lora_\w+|modules_to_save|trainable_tokens_\w+)(\.|$)")  # PEFT's own parts of the model
SMALL = 1 << 26  # merged weights; above this one draw is as good, and no second copy of the weights is held
Replaced = list[tuple[nn.Module, str, nn.Parameter]]


def controls(model: nn.Module, job: dict[str, Any]) -> Iterator[frozenset[str]]:
    """Turn the base model inside a PEFT model into one control after the other, in place. Its adapters must be off.

    Yields the parameters that PEFT's layers change by their method. The weights of the last control stay. Where the merge
    changes the dtype, every other floating-point parameter is rounded too; else only those in `job["whole"]`, which the
    adapter brought in a wider dtype than they are stored in.
    """
    found = {(one.owner, one.name): one for one in adapted(model)}
    own = frozenset(one.parameter for one in found.values() if one.own)
    size = sum(getattr(owner, name).numel() for owner, name in found)
    draws = DRAWS if size <= SMALL else 1
    generator = torch.Generator().manual_seed(0)
    for draw in range(draws):
        replaced = _round_all(model, found, job, generator, keep=draw < draws - 1)
        yield own
        for owner, name, original in replaced:
            setattr(owner, name, original)


@contextmanager
def clamped(model: nn.Module, job: dict[str, Any]) -> Iterator[None]:
    """For as long as the block runs, the base model inside is the exact merge, of which only what is too large for the
    storage dtype is changed: what a merge that clamps is held to. Its adapters must be off."""
    found = {(one.owner, one.name): one for one in adapted(model)}
    replaced = _round_all(model, found, job, None, keep=True)
    yield
    for owner, name, original in replaced:
        setattr(owner, name, original)


def _round_all(
    model: nn.Module,
    found: dict[tuple[nn.Module, str], Adapted],
    job: dict[str, Any],
    generator: torch.Generator | None,
    keep: bool,
) -> Replaced:
    """New parameters throughout, never new values: a weight tied to a merged one keeps its own. Returns the old ones."""
    dtype: torch.dtype = getattr(torch, job["storage"])
    whole = frozenset(job["whole"])
    rounded: dict[Tensor, nn.Parameter] = {}
    replaced: Replaced = []
    with torch.no_grad():
        for path, owner, name, weight in list(parameters(model)):
            one = found.get((owner, name))
            if one is not None:
                fresh = _rounded(one.exact(), dtype, generator, weight.dtype, job["clamps"])
            elif weight in rounded:
                fresh = rounded[weight]  # tied weights stay tied
            elif job["cast_all"] or f"{path}.{name}" in whole:
                fresh = rounded[weight] = _rounded(weight, dtype, generator, weight.dtype, job["clamps"])
            else:
                continue
            if keep:
                replaced.append((owner, name, weight))
            setattr(owner, name, fresh)
    return replaced


def parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Every floating-point parameter that is the model's own: the module that it hangs on, by path and itself, and its name."""
    asked = tuple(f"{path}." for path, layer in model.named_modules() if has_own_merge(layer))
    for path, owner in model.named_modules():
        own = next((one for one in asked if path.startswith(one)), None)
        inside = own is not None and not path.startswith(f"{own}base_layer")
        if not WRAPPED.search(path) and not inside and f"{path}." not in asked:
            bare = path.replace(".base_layer", "").replace(".token_adapter", "").replace(".original_module", "")
            for name, weight in owner.named_parameters(recurse=False):
                if weight.is_floating_point() and not name.startswith(("lora_", "trainable_tokens_")):
                    yield bare, owner, name, weight


def _rounded(
    exact: Tensor, dtype: torch.dtype, generator: torch.Generator | None, kept: torch.dtype, clamps: bool
) -> nn.Parameter:
    """Stochastically rounded to `dtype` (without a generator not at all), and held in the weight's own (wider) dtype."""
    result = torch.empty_like(exact, dtype=kept, memory_format=torch.contiguous_format)
    count = exact.shape[0] if exact.dim() else 1
    rows = max(1, CHUNK * count // max(1, exact.numel()))
    for low in range(0, count, rows):
        part = slice(low, low + rows) if exact.dim() else ...
        wide = exact[part].double().contiguous()
        wide = clamp(wide, dtype) if clamps else wide
        result[part] = (round_stochastically(wide, dtype, generator) if generator else wide).to(kept)
    return nn.Parameter(result, requires_grad=False)
