"""What PEFT's layers read of the base while they are built: the adapted weights, really there, in float32.

PiSSA and OLoRA change the base by its own decomposition, KaSA truncates it, OSF, PSOFT, TinyLoRA, AdaMSS and FRoD take
their factors from it. The decompositions run in float64 (see `float64`), save for AdaMSS's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from bot.errors import Refused
from bot.records import Json, Stored

NOT_THIS_BASE = "Check that the base is the one the adapter was trained on, or name it with --base."


def fill(model: Any, sources: Iterable[tuple[str, str, Stored]], read: Callable[[Stored], Tensor]) -> None:
    """Give every adapted parameter, (module, parameter, where it is), its values."""
    for module, parameter, stored in sources:
        weight = getattr(model.get_submodule(module), parameter)
        if tuple(weight.shape) != stored.shape:
            reason = (
                f"The model's {module}.{parameter} is {tuple(weight.shape)}, the base's {stored.key} is {stored.shape}."
            )
            raise Refused(reason, remedy=NOT_THIS_BASE)
        weight.data = read(stored).float()


def after_loading(config: Json, layers: Mapping[str, Any]) -> None:
    """What PEFT would have to do again once the adapter's own tensors are in, and does not."""
    match config.get("peft_type"):
        case "FROD":
            # U belongs to the V that was saved, not to the V found on this machine, whose columns may have other signs.
            for layer in layers.values():
                weight = layer.get_base_layer().weight.data
                weight = weight.T if layer.fan_in_fan_out else weight
                (name,) = layer.frod_U
                layer.frod_U[name] = _frod_factor(layer.frod_V[name], weight)
        case "ADAMSS":
            for module, layer in layers.items():
                _same_clusters(module, layer)


def _frod_factor(v: Tensor, weight: Tensor) -> Tensor:
    """The unit columns of W·V⁻ᵀ, float64 (peft.tuners.frod.layer)."""
    wide, projection = weight.double(), v.double()
    try:
        columns = torch.linalg.solve(projection, wide.T).T
    except RuntimeError:
        columns = wide @ torch.linalg.pinv(projection, rtol=1e-6).T
    lengths = torch.linalg.norm(columns, dim=0)
    factor = torch.zeros_like(columns)
    present = lengths > 1e-12
    factor[:, present] = columns[:, present] / lengths[present]
    return factor


def _same_clusters(module: str, layer: Any) -> None:
    """AdaMSS does not save which rows its blocks belong to; they are found again by clustering the base's SVD."""
    (name,) = layer.num_subspaces
    rows = [len(layer.seg_result[name][layer.train_subspace_index[name][i]]) for i in range(layer.num_subspaces[name])]
    if rows != [block.shape[0] for block in layer.adamss_B[name]]:
        reason = f"The rows that AdaMSS chose in {module} are not in the adapter, and this base gives others."
        raise Refused(reason, remedy=NOT_THIS_BASE)
