"""The two modules that may be larger than any layer, by parts: of an embedding the rows in use, of a head some tokens at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bot.checks.behaviour.control import CHUNK, is_remade, rounded, rounding
from bot.checks.behaviour.in_step import SteppedRun
from bot.checks.behaviour.job import WorkerJob
from bot.checks.behaviour.stored_weights import StoredWeights

LARGE = 1 << 24  # weights: 64 MB in float32


def is_embedding(module: nn.Module, name: str, weights: StoredWeights) -> bool:
    """Whether only the rows in use are to be read."""
    return type(module) is nn.Embedding and _is_large(module, name, weights)


def is_head(module: nn.Module, name: str, weights: StoredWeights) -> bool:
    """Whether its outputs are to be computed in slices."""
    return type(module) is nn.Linear and _is_large(module, name, weights)


def _is_large(module: Any, name: str, weights: StoredWeights) -> bool:
    return module.weight.numel() > LARGE and weights.key_of(f"{name}.weight") is not None


@contextmanager
def embedded_rows(module: Any, name: str, weights: StoredWeights, passes: list[SteppedRun]) -> Iterator[None]:
    """For as long as the block runs, the embedding has the rows that these passes ask for, and they ask for them by their places
    among those."""
    asked = [value.flatten() for each in passes for value in _inputs(each)]
    used = torch.unique(torch.cat(asked))
    rows = [weights.rows(f"{name}.weight", row, row + 1) for row in used.cpu().tolist()]
    before = module.weight, module.padding_idx
    module.weight = nn.Parameter(torch.cat(rows), requires_grad=False)
    module.padding_idx = None  # of use in training only, and a place among all rows
    for each in passes:
        assert each.call is not None
        args = tuple(torch.searchsorted(used, value) for value in each.call.args)
        kwargs = {name: torch.searchsorted(used, value) for name, value in each.call.kwargs.items()}
        each.call = replace(each.call, args=args, kwargs=kwargs)
    try:
        yield
    finally:
        module.weight, module.padding_idx = before


def in_slices(
    module: Any, name: str, weights: StoredWeights, job: WorkerJob, variation: Any, passes: list[SteppedRun]
) -> list[Tensor]:
    """What the head gives to each of the passes that wait at it, of the weights that a variation has."""
    inputs = [_only(each) for each in passes]
    count, width = module.weight.shape
    step = max(1, CHUNK // width) * max(
        1, LARGE // CHUNK
    )  # whole chunks, so that a control's random numbers are the same
    outputs = [hidden.new_empty((*hidden.shape[:-1], count)) for hidden in inputs]
    remade = variation.how in ("control", "nearest") and is_remade(job, f"{name}.weight")
    called = weights.skeleton.tied.get(f"{name}.weight", f"{name}.weight")
    rounds = rounding(job, variation.how, variation.draw, called) if remade else None
    values = weights.read([f"{name}.bias"]) if module.bias is not None else {}
    for low in range(0, count, step):
        part = weights.rows(f"{name}.weight", low, min(count, low + step))
        if rounds is not None:
            part = rounded(part, rounds, part.dtype)
        bias = values[f"{name}.bias"][low : low + step] if values else None
        with torch.inference_mode():
            for hidden, output in zip(inputs, outputs, strict=True):
                output[..., low : low + step] = nn.functional.linear(hidden, part, bias)
    return outputs


def _inputs(each: SteppedRun) -> list[Tensor]:
    assert each.call is not None
    return [*each.call.args, *each.call.kwargs.values()]


def _only(each: SteppedRun) -> Tensor:
    (hidden,) = _inputs(each)
    return hidden
