"""An adapter's layers, made by PEFT itself and probed: the verifier's own source of W' for methods beside LoRA.

Nothing of PEFT's merge code runs, and none of the engines' modules: this has its own model, its own reading of the config, its
own casts. All in float64, also where PEFT would go through float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bot.checks.expected.float64_mode import float64_mode, loading, use_saved_projection, without_warnings
from bot.checks.expected.probed_methods import KEPT_OUT, SLACK, reads_base
from bot.checks.expected.probing import NoWeight, probe
from bot.records import Json
from bot.untrusted.patterns import require_terminating

PREFIX = "base_model.model."
ERRORS = (ImportError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)


class NoUnmerged(Exception):
    """PEFT cannot make these layers; the sentence says why."""


class ProbedLayers:
    """The adapted layers of one adapter, with phantoms for the base's weights until one is asked for.

    `model`: the base on the meta device. `read`: a parameter by the model's name → its values, float32 or float64, or
    None where the base has no such tensor. `keys`: the adapter tensors that its layers are made of. Raises NoUnmerged.
    """

    def __init__(
        self, model: Any, adapter: Path, config: Json, keys: set[str], read: Callable[[str], Tensor | None]
    ) -> None:
        self._read, self._lock = read, Lock()
        self._last: tuple[str, Tensor] | None = None
        self._given = {key: tensor for key, tensor in load_file(adapter).items() if key in keys}
        self._type = str(config["peft_type"])
        for owner in model.modules():
            _hollow(owner)
        shared = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        reads = reads_base(config)
        if reads:
            self._fill(model, config)
        try:
            with torch.no_grad(), without_warnings(), loading(config):
                self._layers = _layers(model, config, self._given, shared)
        except ERRORS as error:
            raise NoUnmerged(f"PEFT cannot load the adapter ({type(error).__name__}: {str(error)[:300]}).") from error
        for layer in self._layers.values():
            use_saved_projection(layer)

    def parameters(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every parameter that an adapted layer has."""
        for module, layer in self._layers.items():
            for name, weight in layer.get_base_layer().named_parameters(recurse=False):
                yield f"{module}.{name}", tuple(weight.shape)

    def exact(self, parameter: str) -> Tensor:
        """W' (or b') in float64, in the layout of the parameter. Raises NoWeight. One thread at a time; the last is kept."""
        with self._lock:
            if self._last is None or self._last[0] != parameter:
                self._last = None  # the one before is let go first
                self._last = parameter, self._probe(parameter)
            return self._last[1]

    @property
    def slack(self) -> float:
        """How far, relative to its largest element, a W' found here may be off."""
        return SLACK.get(self._type, 2.0**-37)

    def _probe(self, parameter: str) -> Tensor:
        module, _, name = parameter.rpartition(".")
        layer = self._layers[module]
        owner = layer.get_base_layer()
        with torch.no_grad(), without_warnings(), float64_mode():
            before = {own: weight.data for own, weight in owner.named_parameters(recurse=False)}
            try:
                for own, held in before.items():
                    getattr(owner, own).data = self._wide_weight(f"{module}.{own}", held)
                return probe(layer, owner, name, module)
            finally:
                for own, held in before.items():
                    getattr(owner, own).data = held

    def _wide_weight(self, parameter: str, held: Tensor) -> Tensor:
        if any(held.stride()):
            return held.to(torch.float64, copy=True)  # what the initialisation made of the base
        values = self._read(parameter)
        if values is None or values.shape != held.shape:
            raise NoWeight(f"The base has no {parameter} of {tuple(held.shape)}.")
        return values.to(torch.float64, copy=True)

    def _fill(self, model: Any, config: Json) -> None:
        from peft.tuners.tuners_utils import check_target_module_exists

        made = _made(config)
        for module, owner in model.named_modules():
            if module and check_target_module_exists(made, module):
                for own, weight in owner.named_parameters(recurse=False):
                    values = self._read(f"{module}.{own}")
                    if values is not None and values.shape == weight.shape:
                        weight.data = values.float()


def _hollow(owner: Any) -> None:
    """Every tensor of a module as one NaN seen many times (zero, for whole numbers)."""
    for held in (owner._parameters, owner._buffers):
        for name, tensor in list(held.items()):
            if tensor is not None and tensor.is_meta:
                value = float("nan") if tensor.is_floating_point() else 0
                kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
                hollow = torch.full((), value, dtype=kind).expand(tensor.shape)
                held[name] = nn.Parameter(hollow, requires_grad=False) if held is owner._parameters else hollow


def _made(config: Json) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]]
    known = {field.name for field in dataclasses.fields(kind)} - KEPT_OUT
    return kind(**{name: value for name, value in config.items() if name in known and value is not None})


def _layers(model: Any, config: Json, given: Mapping[str, Tensor], shared: set[int]) -> dict[str, Any]:
    from peft import PeftModel, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    require_terminating(config, (name for name, _ in model.named_modules()))
    tuned = PeftModel(model, _made(config), autocast_adapter_dtype=False).eval()
    _double_own(tuned, shared)
    result = set_peft_model_state_dict(tuned, dict(given))
    _double_own(tuned, shared)  # AdaLoRA makes its tensors anew where ranks were cut
    if result.unexpected_keys:
        raise ValueError(f"no layer takes {result.unexpected_keys[0]}")
    return {
        name.removeprefix(PREFIX): owner
        for name, owner in tuned.named_modules()
        if isinstance(owner, BaseTunerLayer) and hasattr(owner, "base_layer")
    }


def _double_own(tuned: nn.Module, shared: set[int]) -> None:
    """The layers' own numbers in float64; what several share, once."""
    done: dict[int, Tensor] = {}
    for owner in tuned.modules():
        for weight in owner._parameters.values():
            if weight is not None and id(weight) not in shared and weight.is_floating_point():
                weight.data = weight.data.double()
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None and id(buffer) not in shared and buffer.is_floating_point():
                owner._buffers[name] = done.setdefault(id(buffer), buffer.double())
        if "dtype" in owner.__dict__:
            owner.__dict__["dtype"] = torch.float64
