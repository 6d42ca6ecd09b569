"""Base, unmerged, stand-ins and merged model in one forward pass: stacked along the batch, weight by weight.

Inside PEFT's own model every adapted layer gives each variant's rows what that variant's weights make of them; all else is
computed once for all, from weights that are the same in all. So each weight is read once, and products are large. That
holds only for models whose rows do not meet and that keep the batch in front of every adapted layer, and for a merged
model that differs in nothing but those weights. What can be seen of that is looked at before (`Pass`), the rest is held to
the merged model itself, run whole on the first prompt (`agrees`). Where it does not hold: NotJoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bot.checks.behaviour import measure
from bot.checks.behaviour.adapted_weights import KINDS, Adapted, adapted
from bot.checks.behaviour.control import How, control_by_rows, made_of, size_of
from bot.checks.behaviour.forward_counts import FORWARDS
from bot.checks.behaviour.held_in_16_bits import kept_wide
from bot.checks.behaviour.job import Distance, WorkerJob
from bot.checks.behaviour.probe import Probe, Variant, head_of, listening
from bot.checks.behaviour.same_model import NotJoint, require_same
from bot.checks.expected.probed_methods import has_own_merge

ROOM = 768 << 20  # bytes of logits of one pass
REMADE = 1 << 28  # weights of many controls that are made again for further passes, at the most: seconds
FEW = 4  # of a large model each fourth prompt tells how far the adapter moves the base, if no page shows each: K is not made of it
SAME = 1e-3  # of the merge's own distance: what another order of summation makes is a thousandth of that at the most
Inputs = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Stacked:
    """A variant: "unmerged", "base", "merged", or a stand-in of this number. `every`: it is given every so many-th prompt."""

    name: str
    how: How | None = None
    draw: int = 0
    every: int = 1


def rows_of(job: WorkerJob, thorough: bool) -> list[Stacked]:
    """The variants of a pass, the unmerged model first."""
    others = [Stacked(name="exact", how="exact"), Stacked(name="nearest", how="nearest")] if thorough else []
    controls = [Stacked(name="control", how="control", draw=draw) for draw in range(job.draws if thorough else 1)]
    base = Stacked(name="base", every=1 if thorough or job.asks else FEW)
    return [Stacked(name="unmerged"), base, Stacked(name="merged"), *others, *controls]


class Pass:
    """The passes over all prompts. `plain`: the base model with PEFT's layers in it, awake; `merged`: the merged model. Raises
    NotJoint where it is to be seen that they cannot be run together."""

    def __init__(self, plain: Any, merged: Any, job: WorkerJob, rows: list[Stacked]) -> None:
        self._plain, self._merged, self._job, self._rows = plain, merged, job, rows
        self._layers = _layers(plain)
        require_same(plain, merged, {change.parameter for _, changes in self._layers.values() for change in changes})
        controls = sum(row.how == "control" for row in rows)
        self._size = size_of(plain) * controls if controls > 1 else 0
        self.kind = ""
        self.probe = Probe()
        self.base_prompts: list[int] = []
        self.distances: list[list[Distance]] = [[] for _ in rows[1:]]
        self._first: Tensor | None = None

    def run(self, prompts: list[Inputs]) -> None:
        """Every prompt, those of one shape together."""
        groups = list(self._groups(prompts))
        if (len(groups) - 1) * self._size > REMADE:
            raise NotJoint("controls would be made anew too often")
        FORWARDS.expect(len(groups) + 1)
        by_row: list[dict[int, Distance]] = [{} for _ in self.distances]
        for numbers in groups:
            shares = [[n for n in numbers if n % row.every == 0] or numbers[:1] for row in self._rows]
            stacked = {name: torch.cat([prompts[n][name] for share in shares for n in share]) for name in prompts[0]}
            with torch.inference_mode():
                for distances, measured in zip(by_row, self._measured(stacked, shares), strict=True):
                    distances |= measured
        self.base_prompts = sorted(by_row[self._row("base") - 1])
        self.distances = [[distances[number] for number in sorted(distances)] for distances in by_row]

    def agrees(self, prompt: Inputs) -> bool:
        """Whether the merged model, run by itself, gives to the first prompt what its rows gave."""
        kind, output = measure.outputs(self._merged, prompt, self._job.compute)
        if self._first is None or kind != self.kind or output.shape != self._first.shape:
            return False
        apart, far = measure.distance(kind, output, self._first).far, self.of("merged")[0][0].far
        return apart <= SAME * far

    def of(self, name: str) -> list[list[Distance]]:
        """The distances of each variant of this name but the unmerged model, prompt by prompt."""
        return [distances for row, distances in zip(self._rows[1:], self.distances, strict=True) if row.name == name]

    def _row(self, name: str) -> int:
        return next(at for at, row in enumerate(self._rows) if row.name == name)

    def _groups(self, prompts: list[Inputs]) -> Iterator[list[int]]:
        """The numbers of prompts of one shape, in the order of the first, as many as there is room for the logits of."""
        shapes: dict[Any, list[int]] = {}
        for number, prompt in enumerate(prompts):
            if any(value.shape[0] != 1 for value in prompt.values()):
                raise NotJoint("an input has no batch in front")
            shapes.setdefault(tuple((name, value.shape) for name, value in prompt.items()), []).append(number)
        config = self._plain.config.get_text_config()
        wide = 4 * int(getattr(config, "vocab_size", 0) or 1) * len(self._rows)
        for numbers in shapes.values():
            ids = prompts[numbers[0]].get("input_ids")
            count = max(1, ROOM // (wide * (ids.shape[1] if ids is not None else 1)))
            for at in range(0, len(numbers), count):
                yield numbers[at : at + count]

    def _measured(self, inputs: Inputs, shares: list[list[int]]) -> list[dict[int, Distance]]:
        """For each variant but the unmerged model, its distances by prompt. `shares`: the prompts of each variant."""
        sizes = [len(share) for share in shares]
        splitting = _Splitting(self.probe, self._rows, sizes)
        with self._sharing_layers(sizes), listening(self._plain, splitting, "unmerged"):  # type: ignore[arg-type]
            kind, outputs = _outputs(self._plain(**inputs), sum(sizes))
        FORWARDS.ran()
        if self.kind not in ("", kind):
            raise NotJoint("its outputs are of two kinds")
        self.kind = kind
        parts = torch.split(outputs, sizes)
        by_variant = [dict(zip(share, part, strict=True)) for share, part in zip(shares, parts, strict=True)]
        if self._first is None:
            self._first = by_variant[self._row("merged")][shares[0][0]].clone()
        if kind == "kl":
            splitting.record("unmerged", head_of(self._plain), outputs)
        measured: list[dict[int, Distance]] = [{} for _ in self._rows[1:]]
        for number, wanted in by_variant[0].items():
            others = [at for at, outputs in enumerate(by_variant[1:]) if number in outputs]
            distances = measure.distances(kind, wanted, [by_variant[1 + at][number] for at in others])
            for at, distance in zip(others, distances, strict=True):
                measured[at][number] = distance
        return measured

    @contextmanager
    def _sharing_layers(self, sizes: list[int]) -> Iterator[None]:
        """For as long as the block runs, adapted layers give each variant's rows what its own weights make of them."""
        before = {path: layer.__dict__.get("forward") for path, (layer, _) in self._layers.items()}
        try:
            for path, (layer, changes) in self._layers.items():
                counterpart = self._merged.get_submodule(path)
                layer.forward = _Shared(layer, layer.forward, counterpart, changes, self._job, self._rows, sizes)
            yield
        finally:
            for path, (layer, _) in self._layers.items():
                layer.__dict__.pop("forward", None)
                if before[path] is not None:
                    layer.forward = before[path]


class _Shared:
    """The forward of an adapted layer that is shared by all variants."""

    def __init__(
        self,
        layer: Any,
        forward: Any,
        counterpart: nn.Module,
        changes: list[Adapted],
        job: WorkerJob,
        rows: list[Stacked],
        sizes: list[int],
    ) -> None:
        self._owner, self._forward, self._counterpart = layer.get_base_layer(), forward, counterpart
        self._changes, self._job, self._rows, self._sizes = changes, job, rows, sizes
        self._base = next(at for at, row in enumerate(rows) if row.name == "base")

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        with kept_wide(self._owner):
            return self._run(args, kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        parts = [self._split(value) for value in (*args, *kwargs.values())]
        # Several stand-ins are made of one exact weight; a single one, of large models, row after row.
        several = sum(row.how is not None for row in self._rows) > 1
        exact = {change.name: change.exact() if several else None for change in self._changes}
        outputs = []
        base: Tensor | None = None
        for at, row in enumerate(self._rows):
            own = [part[at] for part in parts]
            own_args, own_kwargs = own[: len(args)], dict(zip(kwargs, own[len(args) :], strict=True))
            if row.name == "unmerged":
                others = [part[self._base] for part in parts]
                with _multiplied_too(self._owner, others) as taken:
                    outputs.append(self._forward(*own_args, **own_kwargs))
                base = taken[0] if len(taken) == 1 else None
            elif row.name == "base" and base is not None:
                outputs.append(base)
            else:
                weights = self._weights(row, exact)
                outputs.append(functional_call(self._owner, weights, tuple(own_args), own_kwargs))
        kept = zip(outputs, self._sizes, strict=True)
        if any(not isinstance(output, Tensor) or output.shape[:1] != (size,) for output, size in kept):
            raise NotJoint("an adapted layer does not keep the batch")
        return torch.cat(outputs)

    def _split(self, value: Any) -> tuple[Any, ...]:
        """One for each variant."""
        if not isinstance(value, Tensor):
            return (value,) * len(self._rows)
        batched = value.dim() > 2 or not value.is_floating_point()  # what is flat may be tokens in any order
        if not batched or value.shape[0] != sum(self._sizes):
            raise NotJoint("an adapted layer is not given the batch")
        return torch.split(value, self._sizes)

    def _weights(self, row: Stacked, exact: dict[str, Tensor | None]) -> dict[str, Tensor]:
        if row.name == "base":
            return {}
        if row.name == "merged":
            return {name: getattr(self._counterpart, name) for name in exact}
        assert row.how is not None
        made: dict[str, Tensor] = {}
        for change in self._changes:
            value = exact[change.name]
            if value is None:
                made[change.name] = control_by_rows(change, self._job, row.draw)
            else:
                made[change.name] = made_of(value, self._job, row.how, row.draw, change.parameter, torch.float32)
        return made


@contextmanager
def _multiplied_too(owner: nn.Module, others: list[Any]) -> Iterator[list[Tensor]]:
    """For as long as the block runs, a linear layer that is given one input multiplies other rows along with it, which takes half
    as long as by themselves; the list holds what it made of them, once for each time that it ran."""
    taken: list[Tensor] = []
    if type(owner) is not nn.Linear or len(others) != 1:
        yield taken
        return
    linear: Any = owner
    forward, before = linear.forward, linear.__dict__.get("forward")

    def both(hidden: Tensor) -> Tensor:
        together: Tensor = forward(torch.cat([hidden, others[0]]))
        taken.append(together[len(hidden) :])
        return together[: len(hidden)]

    linear.forward = both
    try:
        yield taken
    finally:
        linear.__dict__.pop("forward")
        if before is not None:
            linear.forward = before


class _Splitting:
    """Takes what a module gives to all variants for a Probe, which takes one after the other."""

    def __init__(self, probe: Probe, rows: list[Stacked], sizes: list[int]) -> None:
        self._probe, self._rows, self._sizes = probe, rows, sizes

    def record(self, variant: Variant, module: str, hidden: Tensor) -> None:
        """The unmerged model's first. What has no batch is the same for all."""
        is_batched = hidden.shape[0] == sum(self._sizes)
        parts = torch.split(hidden, self._sizes) if is_batched else (hidden,) * len(self._rows)
        self._probe.begin()
        self._probe.record("unmerged", module, parts[0])
        for row, part in zip(self._rows, parts, strict=True):
            if row.name == "control":
                self._probe.record("control", module, part)
            elif row.name == "merged":
                self._probe.record("merged", module, part)


def _layers(plain: nn.Module) -> dict[str, tuple[Any, list[Adapted]]]:
    """{path: (PEFT's layer, the parameters of its base layer that it changes)}. Raises NotJoint for layers within layers, and for
    those that do not stand before one module of the base."""
    layers: dict[str, tuple[Any, list[Adapted]]] = {}
    for path, layer in plain.named_modules(remove_duplicate=False):
        if not any(holds(layer) for holds, _ in KINDS):
            continue
        is_simple = has_own_merge(layer) or (hasattr(layer, "lora_A") and not hasattr(layer, "parameter_name"))
        owner = layer.get_base_layer() if is_simple and hasattr(layer, "get_base_layer") else None
        if owner is None or ".base_layer" in path or isinstance(owner, nn.MultiheadAttention):
            raise NotJoint(f"{path} is adapted by a {type(layer).__name__}")
        layers[path] = (layer, [])
    for change in adapted(plain):
        layer, changes = layers.get(change.path, (None, []))
        if layer is None or change.owner is not layer.get_base_layer():
            raise NotJoint(f"{change.parameter} is not a parameter of an adapted layer")
        changes.append(change)
    return layers


def _outputs(output: Any, rows: int) -> tuple[str, Tensor]:
    """As measure.outputs has them, with the batch in front: per-token logits, else the last hidden states."""
    logits, states = getattr(output, "logits", None), getattr(output, "last_hidden_state", None)
    if logits is not None and logits.dim() == 3 and logits.shape[-1] >= measure.VOCABULARY and logits.shape[0] == rows:
        return "kl", logits
    if states is None or states.shape[0] != rows:
        raise NotJoint("its outputs have no batch in front")
    return "squared", states.reshape(rows, -1, states.shape[-1])
