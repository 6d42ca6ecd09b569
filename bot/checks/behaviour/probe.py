"""Where inside a model a distance begins: what each of its modules gives, held to what the unmerged model's gives.

The modules are its layers, and whatever stands beside the lists of layers (embeddings, rotary angles, norms, head), so that
every parameter but a few belongs to one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bot.checks.behaviour.job import ModuleDistance

Variant = Literal["unmerged", "control", "merged"]
CHUNK = 1 << 17  # numbers that are compared at once
ROOM = 256 << 20  # bytes of hidden states that are kept between processes; beyond it no further prompt is looked at


class Probe:
    """Takes the hidden states of the unmerged model first, prompt by prompt, then those of the others.

    `states`: the unmerged model's for the present prompt, {module: tensor}, for whoever keeps them between processes.
    """

    def __init__(self) -> None:
        self.states: dict[str, Tensor] = {}
        self._sums: dict[Variant, dict[str, list[float]]] = {}

    def begin(self, states: Mapping[str, Tensor] | None = None) -> None:
        """The next prompt. `states`: what the unmerged model gave to it, where that was in another process."""
        self.states = dict(states or {})

    def record(self, variant: Variant, module: str, hidden: Tensor) -> None:
        """What a module gave. A shape that is not the unmerged model's is at an infinite distance."""
        if variant == "unmerged":
            self.states[module] = hidden.detach().clone()  # a model may go on with it in place
        elif (wanted := self.states.get(module)) is not None:
            sums = self._sums.setdefault(variant, {}).setdefault(module, [0.0, 0.0])
            far, size = (
                _squares(hidden, wanted) if wanted.shape == hidden.shape else (torch.inf, _squares(wanted, wanted)[1])
            )
            sums[0] += far
            sums[1] += size

    def distances(self, variant: Variant) -> list[ModuleDistance]:
        """Over all prompts, in the order in which the modules ran."""
        sums = self._sums.get(variant, {})
        return [ModuleDistance(module=module, far=far, size=size) for module, (far, size) in sums.items()]


def _squares(hidden: Tensor, wanted: Tensor) -> tuple[float, float]:
    """(‖h′ − h‖², ‖h‖²) in float64, a cache's worth at a time: a head's logits are large."""
    far = size = 0.0
    flat = hidden.flatten(), wanted.to(hidden.device).flatten()
    for part, like in zip(*(torch.split(numbers, CHUNK) for numbers in flat), strict=True):
        exact = like.double()
        far += float((part.double() - exact).square().sum())
        size += float(exact.square().sum())
    return far, size


@contextmanager
def listening(model: nn.Module, probe: Probe, variant: Variant) -> Iterator[None]:
    """For as long as the block runs, the model's modules are recorded: in its first run only, and no head, whose logits are the
    model's outputs. A module that runs again in it is `name#2`."""
    calls: Counter[str] = Counter()
    ended: list[bool] = []

    def recorder(name: str) -> Any:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = hidden_of(output)
            if hidden is not None and not ended:
                calls[name] += 1
                probe.record(variant, name if calls[name] == 1 else f"{name}#{calls[name]}", hidden)

        return record

    hooks = [module.register_forward_hook(recorder(name)) for name, module in _recorded(model).items()]
    hooks.append(model.register_forward_hook(lambda *_: ended.append(True)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def head_of(model: Any) -> str:
    """The name of the module that gives the logits; `output` where the model has no name for it."""
    head = _head(model)
    return next((name for name, module in model.named_modules() if module is head and name), "output")


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """{name: module} of the elements of each outermost list of layers, and of all that stands beside those lists; {} where the
    model has no such list."""
    lists = {name for name, module in model.named_modules() if type(module) is nn.ModuleList and len(module)}
    outermost = {name for name in lists if not any(name.startswith(f"{other}.") for other in lists)}
    above = {name[:at] for name in outermost for at, letter in enumerate(name) if letter == "."} | {""}
    parents = outermost | (above if outermost else set())
    return {
        f"{name}.{part}".lstrip("."): child
        for name, module in model.named_modules()
        if name in parents
        for part, child in module.named_children()
        if f"{name}.{part}".lstrip(".") not in parents and not isinstance(child, nn.Dropout | nn.Identity)
    }


def _recorded(model: nn.Module) -> dict[str, nn.Module]:
    head = _head(model)
    return {name: module for name, module in modules_of(model).items() if module is not head}


def _head(model: Any) -> Any:
    try:
        return model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def hidden_of(output: Any) -> Tensor | None:
    """The hidden states among what a module gives: the first tensor of floating-point or complex numbers."""
    if isinstance(output, Tensor):
        if output.is_complex():
            return torch.view_as_real(output)
        return output if output.is_floating_point() else None
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return next(filter(lambda hidden: hidden is not None, map(hidden_of, parts)), None)
