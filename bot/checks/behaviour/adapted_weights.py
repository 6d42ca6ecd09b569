"""What PEFT's unmerged layers make of the base's parameters, by PEFT's own factors in float64 (never by its merge).

To add a kind of layer: a function that yields its parameters, and one line in KINDS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bot.checks.expected.probed_methods import changed_by, has_own_merge
from bot.checks.expected.probing import probe_alone

Rows = Callable[[int, int], Tensor]  # (from, to) → those rows, in float64


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """The parameter `name` of `owner`, a module of the base model at `path`; `exact` gives its new value in float64.

    `delta_by_rows`: what the layer adds to some rows (from, to), for as long as a block runs, where it adds, and each row by itself.
    `own`: the layer changes it by its method (not a bias that came along, nor a module saved whole).
    """

    path: str
    owner: nn.Module
    name: str
    exact: Callable[[], Tensor]
    delta_by_rows: Callable[[], AbstractContextManager[Rows]] | None = None
    own: bool = True

    @property
    def parameter(self) -> str:
        """Its name in the base model, without PEFT's wrappers."""
        return f"{self.path}.{self.name}"


def adapted(model: nn.Module, only: frozenset[str] | set[str] | None = None, prefix: str = "") -> Iterator[Adapted]:
    """Every parameter of the base model that some PEFT layer changes; `only`: the layers at these paths; `prefix`: the name of
    `model` where that is a part of one."""
    for path, layer in model.named_modules(prefix=prefix, remove_duplicate=False):
        if only is not None and path not in only:
            continue
        bare = path.replace(".base_layer", "").replace(".token_adapter", "")
        for holds, kind in KINDS:
            if holds(layer):
                yield from kind(bare, layer)
                break


def _active(layer: Any) -> str:
    return str(layer.active_adapters[0])


def _parameter(path: str, layer: Any) -> Iterator[Adapted]:
    """target_parameters: a bare parameter, W + ΔW."""
    owner, name = layer.get_base_layer(), layer.parameter_name
    yield Adapted(path=path, owner=owner, name=name, exact=lambda: getattr(owner, name).double() + _delta(layer))


def _low_rank(path: str, layer: Any) -> Iterator[Adapted]:
    """LoRA and DoRA on Linear, Conv1D, Embedding and convolutions, and what lora_bias adds."""
    owner, adapter = layer.get_base_layer(), _active(layer)
    name = "in_proj_weight" if isinstance(owner, nn.MultiheadAttention) else "weight"
    by_rows = partial(_delta_by_rows, layer) if _is_plain_linear(layer, adapter) else None
    yield Adapted(
        path=path, owner=owner, name=name, exact=lambda: _weight(layer, getattr(owner, name)), delta_by_rows=by_rows
    )
    if layer.lora_bias.get(adapter) and owner.bias is not None:
        moved = layer.lora_B[adapter].bias
        yield Adapted(path=path, owner=owner, name="bias", own=False,
                      exact=lambda: owner.bias.double() + layer.scaling[adapter] * moved.double())  # fmt: skip


def _weight(layer: Any, weight: Tensor) -> Tensor:
    """m ⊙ V / ‖V‖ over each output, where there is a magnitude; an embedding's and a Conv1D's outputs are its columns."""
    value = weight.double() + _delta(layer)
    adapter = _active(layer)
    if adapter not in (layer.lora_magnitude_vector or {}):
        return value
    magnitude = layer.lora_magnitude_vector[adapter].weight.double().flatten()
    transposed = isinstance(layer.get_base_layer(), nn.Embedding) or getattr(layer, "fan_in_fan_out", False)
    rows = value.T if transposed else value.flatten(1)
    scaled = rows * (magnitude / rows.norm(dim=1)).unsqueeze(1)
    result: Tensor = scaled.T if transposed else scaled.view_as(value)
    return result


def _is_plain_linear(layer: Any, adapter: str) -> bool:
    """Whether a row of the weight depends on the same row of B alone."""
    owner = layer.get_base_layer()
    return (
        type(owner) is nn.Linear
        and adapter in layer.lora_B
        and adapter not in (layer.lora_magnitude_vector or {})
        and not getattr(layer, "fan_in_fan_out", False)
        and not getattr(layer, "lora_variant", None)
        and not hasattr(layer, "parameter_name")
    )


@contextmanager
def _delta_by_rows(layer: Any) -> Iterator[Rows]:
    """PEFT's own ΔW for some rows: its code is given these rows of B."""
    adapter = _active(layer)
    factor = layer.lora_B[adapter].weight
    with _factors_in_float64(layer, adapter):
        wide = factor.data

        def delta(low: int, high: int) -> Tensor:
            factor.data = wide[low:high]
            rows: Tensor = layer.get_delta_weight(adapter)
            return rows.contiguous()

        yield delta


@contextmanager
def _factors_in_float64(layer: Any, adapter: str) -> Iterator[None]:
    """The layer's factors in float64, for as long as the block runs."""
    kept = []
    for held in (layer.lora_A, layer.lora_B, layer.lora_embedding_A, layer.lora_embedding_B):
        if adapter in held:
            tensor = held[adapter] if isinstance(held, nn.ParameterDict) else held[adapter].weight
            kept.append((tensor, tensor.data))
            tensor.data = tensor.data.double()
    try:
        yield
    finally:
        for tensor, before in kept:
            tensor.data = before


def _delta(layer: Any) -> Tensor:
    """PEFT's ΔW, computed in float64 (its own code, on widened factors)."""
    adapter = _active(layer)
    parameter = getattr(layer, "parameter_name", None)
    weight = getattr(layer.get_base_layer(), parameter) if parameter else None
    before = None if weight is None else weight.data
    if weight is not None:  # its delta is cast to the parameter's dtype
        weight.data = torch.empty((), dtype=torch.float64, device=weight.device).expand(weight.shape)
    try:
        with _factors_in_float64(layer, adapter):
            delta: Tensor = layer.get_delta_weight(adapter)
    finally:
        if weight is not None:
            weight.data = before
    return delta


def _saved(path: str, layer: Any) -> Iterator[Adapted]:
    """modules_to_save: another module in the place of the base's."""
    saved = dict(layer.modules_to_save[_active(layer)].named_parameters())
    for submodule, owner in layer.original_module.named_modules():
        for name, _ in owner.named_parameters(recurse=False):
            value = saved[f"{submodule}.{name}" if submodule else name]
            below = f"{path}.{submodule}" if submodule else path
            yield Adapted(path=below, owner=owner, name=name, exact=value.double, own=False)


def _tokens(path: str, layer: Any) -> Iterator[Adapted]:
    """Trained rows of an embedding, and the same of a head that is tied to it."""
    owner = layer.get_base_layer()
    yield Adapted(path=path, owner=owner, name="weight", exact=lambda: _rows(layer, owner.weight))


def _probed(path: str, layer: Any) -> Iterator[Adapted]:
    """The other methods: whatever probing the layer gives."""
    for name in changed_by(layer):
        yield Adapted(path=path, owner=layer.get_base_layer(), name=name, exact=partial(probe_alone, layer, name, path))


def _rows(layer: Any, weight: Tensor) -> Tensor:
    adapter = _active(layer)
    result = weight.double().clone()
    result[torch.tensor(layer.token_indices[adapter])] = layer.trainable_tokens_delta[adapter].double()
    return result


KINDS: tuple[tuple[Callable[[Any], bool], Callable[[str, Any], Iterator[Adapted]]], ...] = (
    (has_own_merge, _probed),
    (lambda layer: hasattr(layer, "parameter_name"), _parameter),
    (lambda layer: hasattr(layer, "get_delta_weight") and hasattr(layer, "lora_A"), _low_rank),
    (lambda layer: hasattr(layer, "token_indices"), _tokens),
    (lambda layer: type(layer).__name__ == "ModulesToSaveWrapper", _saved),
)
