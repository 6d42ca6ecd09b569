"""Stand-ins for the merged model, made inside the unmerged one by PEFT's own numbers (its delta, in float64).

- the controls: correct merges whose only fault is one *stochastic* rounding to the storage dtype. Rounding up or down at
  random has twice the variance of rounding to nearest (ulp²/6 against ulp²/12), so that a correct merge lies half as far
  from the unmerged model as a control does. Several draws tell how far one rounding may lie from another by chance.
- the nearest: a correct merge, rounded to nearest. Where it lies farther off than a control does, so may any correct merge.
- the exact: not rounded at all. Where that answers otherwise than the unmerged model, the model goes around PEFT's layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal
from zlib import crc32

import torch
from torch import Tensor, nn

from bot.checks.behaviour.adapted_weights import KINDS, Adapted, adapted
from bot.checks.behaviour.job import WorkerJob
from bot.checks.behaviour.one_thread import one_thread
from bot.checks.elementwise.rounding import add_stochastically, clamp, round_once, round_stochastically
from bot.checks.expected.probed_methods import has_own_merge

CHUNK = 1 << 16  # elements that are rounded at once: in float64 they stay in a processor's own cache
WRAPPED = re.compile(r"\.(lora_\w+|modules_to_save|trainable_tokens_\w+)(\.|$)")  # PEFT's own parts of the model
SMALL = 1 << 26  # merged weights; above this one draw is enough at first, and no second copy of the weights is held
How = Literal["exact", "clamped", "nearest", "control"]
Round = Callable[[Tensor], Tensor]
Rename = Callable[[str], str]
# (module, parameter, its exact value, the dtype to hold the new one in) → the new one
Remake = Callable[[str, str, Tensor, torch.dtype], nn.Parameter]


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """Parameters that others stand in for, and how to put them back."""

    held: tuple[tuple[nn.Module, str, nn.Parameter], ...]

    def restore(self) -> None:
        """The model's own weights again."""
        for owner, name, original in self.held:
            setattr(owner, name, original)


def stand_in(
    model: nn.Module, job: WorkerJob, how: How, draw: int, keep: bool, prefix: str = "", called: Rename = str
) -> Replaced:
    """Turn the base model inside a PEFT model, or the module of it that is called `prefix`, into one of these, in place. Its
    adapters must be off. Without `keep` the weights that were there before are let go. The random numbers of a control follow
    from its number, `draw`, and the parameter's name: they are the same in whatever order, and by whatever parts, it is made.
    `called`: the name that a parameter goes by there, where it is tied to another.

    Where the merge changes the dtype, every other floating-point parameter is rounded too; else only those in
    `job.whole`, which the adapter brought in a wider dtype than they are stored in.
    """

    def remake(path: str, name: str, exact: Tensor, kept: torch.dtype) -> nn.Parameter:
        return made_of(exact, job, how, draw, called(f"{path}.{name}"), kept)

    return replace_parameters(model, remake, partial(is_remade, job), keep, prefix)


def is_remade(job: WorkerJob, parameter: str) -> bool:
    """Whether a stand-in has new values for a parameter that the adapter does not change."""
    return job.cast_all or parameter in job.whole


def rounding(job: WorkerJob, how: How, draw: int, parameter: str) -> Round:
    """How a parameter is rounded, part after part."""
    dtype: torch.dtype = getattr(torch, job.storage)
    rounds = _rounds(how, dtype, chance(draw, parameter))
    if job.clamps and how != "exact":
        return lambda part: rounds(clamp(part, dtype))
    return rounds


def made_of(exact: Tensor, job: WorkerJob, how: How, draw: int, parameter: str, kept: torch.dtype) -> nn.Parameter:
    """What a stand-in has for a parameter whose exact value is this, held in the dtype `kept`."""
    return nn.Parameter(rounded(exact, rounding(job, how, draw, parameter), kept), requires_grad=False)


def control_by_rows(change: Adapted, job: WorkerJob, draw: int) -> nn.Parameter:
    """What a control has for a parameter of a layer, in float32: the same numbers, made by a few rows at a time where the layer can
    say them. What it takes is small and never leaves the processor's cache, so that more threads would wait for each other."""
    weight: Tensor = getattr(change.owner, change.name)
    dtype: torch.dtype = getattr(torch, job.storage)
    if change.delta_by_rows is None or job.clamps:
        return made_of(change.exact(), job, "control", draw, change.parameter, torch.float32)
    made = torch.empty(weight.shape, device=weight.device)
    generator = chance(draw, change.parameter)
    with change.delta_by_rows() as delta, one_thread():
        for low, high in _steps(weight.shape):
            add_stochastically(weight[low:high], delta(low, high), dtype, generator, made[low:high])
    return nn.Parameter(made, requires_grad=False)


def chance(draw: int, parameter: str) -> torch.Generator:
    """The seeds of one parameter's random numbers in one control: the same on every device."""
    return torch.Generator().manual_seed(crc32(f"{draw} {parameter}".encode()))


def _rounds(how: How, dtype: torch.dtype, chance: torch.Generator) -> Round:
    if how in ("exact", "clamped"):
        return lambda exact: exact
    if how == "nearest":
        return lambda exact: round_once(exact, dtype)
    return lambda exact: round_stochastically(exact, dtype, chance)


def size_of(model: nn.Module) -> int:
    """The number of weights that PEFT's layers change."""
    parameters_changed = {(change.owner, change.name) for change in adapted(model)}
    return sum(getattr(owner, name).numel() for owner, name in parameters_changed)


def changed(model: nn.Module) -> frozenset[str]:
    """The parameters that PEFT's layers change by their method."""
    return frozenset(change.parameter for change in adapted(model) if change.own)


@contextmanager
def watched(model: nn.Module) -> Iterator[set[str]]:
    """For as long as the block runs, PEFT's layers are watched; then the set holds those that were never called, and that
    change something: parameters by their names in the base model."""
    uncalled: set[str] = set()
    with idling(model) as idle:
        yield uncalled
    uncalled |= moved_by(model, idle)


@contextmanager
def idling(model: nn.Module) -> Iterator[set[str]]:
    """For as long as the block runs, PEFT's layers are watched; then the set holds the paths of those that were never called."""
    layers = {
        path: layer
        for path, layer in model.named_modules(remove_duplicate=False)
        if any(holds(layer) for holds, _ in KINDS)
    }
    called: set[nn.Module] = set()
    hooks = [layer.register_forward_pre_hook(lambda layer, *_: called.add(layer)) for layer in layers.values()]
    idle: set[str] = set()
    try:
        yield idle
    finally:
        for hook in hooks:
            hook.remove()
    idle |= {path for path, layer in layers.items() if layer not in called}


def moved_by(model: nn.Module, only: set[str], prefix: str = "") -> set[str]:
    """The parameters that the layers at these paths give other values."""
    return {
        change.parameter for change in adapted(model, only, prefix) if not torch.equal(change.exact(), _now(change))
    }


def _now(change: Adapted) -> Tensor:
    held: Tensor = getattr(change.owner, change.name)
    return held.double()


def replace_parameters(
    model: nn.Module,
    remake: Remake,
    is_remade: Callable[[str], bool] = lambda _: True,
    keep: bool = False,
    prefix: str = "",
) -> Replaced:
    """New parameters throughout, never new values: a weight tied to a merged one keeps its own. `is_remade`: whether a parameter
    that the adapter does not change is made anew too. With `keep`, what was there is returned. `prefix`: the name of `model` where
    that is a part of one."""
    changes = {(change.owner, change.name): change for change in adapted(model, prefix=prefix)}
    remade: dict[Tensor, nn.Parameter] = {}
    replaced = []
    with torch.no_grad():
        for path, owner, name, weight in list(parameters(model, prefix)):
            change = changes.get((owner, name))
            if change is not None:
                fresh = remake(path, name, change.exact(), weight.dtype)
            elif weight in remade:
                fresh = remade[weight]  # tied weights stay tied
            elif is_remade(f"{path}.{name}"):
                fresh = remade[weight] = remake(path, name, weight, weight.dtype)
            else:
                continue
            if keep:
                replaced.append((owner, name, weight))
            setattr(owner, name, fresh)
    return Replaced(held=tuple(replaced))


def parameters(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Every floating-point parameter that is the model's own: the module that it hangs on, by path and itself, and its name."""
    probed_fronts = tuple(f"{path}." for path, layer in model.named_modules(prefix=prefix) if has_own_merge(layer))
    for path, owner in model.named_modules(prefix=prefix):
        own = next((front for front in probed_fronts if path.startswith(front)), None)
        inside = own is not None and not path.startswith(f"{own}base_layer")
        if not WRAPPED.search(path) and not inside and f"{path}." not in probed_fronts:
            bare = path.replace(".base_layer", "").replace(".token_adapter", "").replace(".original_module", "")
            for name, weight in owner.named_parameters(recurse=False):
                if weight.is_floating_point() and not name.startswith(("lora_", "trainable_tokens_")):
                    yield bare, owner, name, weight


def rounded(exact: Tensor, rounds: Round, kept: torch.dtype) -> Tensor:
    """Rounded, a few rows at a time, and held in the weight's own (wider) dtype."""
    if not exact.dim():
        return rounds(exact.double()).to(kept)
    result = torch.empty_like(exact, dtype=kept, memory_format=torch.contiguous_format)
    for low, high in _steps(exact.shape):
        result[low:high] = rounds(exact[low:high].double().contiguous())
    return result


def _steps(shape: torch.Size) -> Iterator[tuple[int, int]]:
    """The rows that are rounded at once: from, to."""
    step = max(1, CHUNK * shape[0] // max(1, shape.numel()))
    for low in range(0, shape[0], step):
        yield low, min(shape[0], low + step)
