"""A model whose parameters take no memory: each is a single NaN, seen in its shape, until its weights are read.

The buffers (rotary frequencies, masks, positions) are computed, as they are by whoever builds the model. What computes with a
weight that was not read gives NaN, so that it shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bot.checks.behaviour.job import WorkerJob
from bot.checks.behaviour.load_models import PLAINEST
from bot.checks.reading.folders import read_json
from bot.checks.reading.model_skeleton import model_class


def empty_model(folder: Path, labels: int | None = None, named: str | None = None) -> Any:
    """The model of a folder, of the class and in the attention that `load_folder` has; None where only the repo's own code would do.
    `labels`, `named`: as a WorkerJob's `labels` and `model_class`. Raises what the class raises."""
    import transformers

    chosen = getattr(transformers, named) if named else model_class(read_json(folder / "config.json") or {})
    if chosen is None:
        return None
    config = (getattr(chosen, "config_class", None) or transformers.AutoConfig).from_pretrained(
        folder, local_files_only=True
    )
    if labels:
        config.num_labels = labels
    with _no_weights():
        build = chosen.from_config if hasattr(chosen, "from_config") else chosen._from_config
        model = build(config, **PLAINEST)
    empty(model)
    return model.eval()


def empty(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Every parameter that has no memory as one NaN of this dtype; tied ones stay one."""
    done: dict[nn.Parameter, nn.Parameter] = {}
    for owner in model.modules():
        for name, weight in owner._parameters.items():
            if weight is not None and is_empty(weight):
                kind = dtype if weight.is_floating_point() else weight.dtype
                value = torch.nan if weight.is_floating_point() else 0
                if weight not in done:
                    hollow = nn.Parameter(torch.full((), value, dtype=kind).expand(weight.shape), requires_grad=False)
                    hollow.hollow = True  # type: ignore[attr-defined]
                    done[weight] = hollow
                owner._parameters[name] = done[weight]


def is_empty(weight: Tensor) -> bool:
    """Whether a parameter is still without its weights."""
    return weight.is_meta or getattr(weight, "hollow", False)


def prepared(model: Any, job: WorkerJob) -> Any:
    """As `ready_to_run` does, without the memory that a change of dtype would take."""
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    if job.compute == "float64":
        empty(model, torch.float64)
        model.double()
    return model.eval()


def bring(model: nn.Module, device: str) -> None:
    """What the model has memory for, to the device: an adapter's own weights, and buffers; tied ones stay one."""
    if device == "cpu":
        return  # it is there
    done: dict[nn.Parameter, nn.Parameter] = {}
    for owner in model.modules():
        for name, weight in owner._parameters.items():
            if weight is not None and not is_empty(weight):
                if weight not in done:
                    done[weight] = nn.Parameter(weight.detach().to(device), requires_grad=False)
                owner._parameters[name] = done[weight]
        for name, buffer in owner._buffers.items():
            owner._buffers[name] = None if buffer is None else buffer.to(device)


@contextmanager
def _no_weights() -> Iterator[None]:
    """Parameters lose their memory as they are registered: one at a time is allocated, and never touched."""
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        register(module, name, weight)
        if weight is not None and not weight.is_meta:
            module._parameters[name] = nn.Parameter(weight.data.to("meta"), requires_grad=False)

    nn.Module.register_parameter = registered  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
