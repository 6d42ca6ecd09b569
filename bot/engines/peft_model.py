"""A PEFT model built from an untrusted adapter: its config, its layers in the base, and its tensors in the layers."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bot.adapters.lora_keys import PREFIX
from bot.adapters.method_modules import modules_of
from bot.adapters.methods import METHODS
from bot.checkpoint.header import read_header
from bot.engines.float64_mode import float64_casts
from bot.errors import Refused
from bot.records import Json

ADAPTER_WEIGHTS = "adapter_model.safetensors"
NAME = "default"
SAVE_AGAIN = "Save the adapter again with PEFT."
# AdaLoRA does not save how many ranks are left, and counts them from its config; TinyLoRA may draw its P from a seed.
UNSAVED = re.compile(r"\.ranknum\.")
SEEDED = re.compile(r"\.ranknum\.|\.tinylora_P\.")
NOT_PEFTS = frozenset({"bias", "modules_to_save", "inference_mode"})  # whole tensors: other ops do those
PEFT_ERRORS = (TypeError, ValueError, RuntimeError, KeyError, AttributeError, NotImplementedError, ImportError)


def peft_config(config: Json) -> Any:
    """The PeftConfig of an adapter_config.json, of its allow-listed fields only. Raises Refused."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    peft_type = str(config["peft_type"])
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]
    known = {field.name for field in dataclasses.fields(kind)} & METHODS[peft_type].settings
    given = {name: value for name, value in config.items() if name in known - NOT_PEFTS and value is not None}
    try:
        return kind(**given)
    except PEFT_ERRORS as error:
        reason = f"adapter_config.json cannot be read as a {METHODS[peft_type].name} config: {error}."
        raise Refused(reason, remedy=SAVE_AGAIN) from error


def may_use_float64(config: Json) -> bool:
    """Not where other digits could mean another result: AdaMSS clusters the rows of a float32 SVD, and PSOFT's R is
    trained between singular vectors whose signs float64's SVD may choose otherwise."""
    return config.get("peft_type") not in ("ADAMSS", "PSOFT")


def inject(model: Any, config: Any, *, float64: bool) -> Any:
    """The model with PEFT's layers in it; `float64`: their initialisation computes in float64. Raises Refused."""
    from peft import PeftModel

    try:
        with torch.no_grad(), float64_casts() if float64 else quiet():
            return PeftModel(model, config, adapter_name=NAME, autocast_adapter_dtype=False).eval()
    except PEFT_ERRORS as error:
        reason = f"PEFT cannot put the adapter on this base ({type(error).__name__}: {error})."
        raise Refused(reason, remedy="Check that the base is the one the adapter was trained on.") from error


def load_adapter(tuned: Any, base_tensors: Any, adapter: Path, config: Json) -> None:
    """Put the adapter's tensors into the layers, as float64. Every one is used, and none is missing."""
    from peft import set_peft_model_state_dict
    from safetensors import safe_open

    _widen_own(tuned, base_tensors)
    header = read_header(adapter / ADAPTER_WEIGHTS, file=ADAPTER_WEIGHTS)
    whole = set(modules_of(config, [tensor.key for tensor in header.tensors]).whole)
    with safe_open(adapter / ADAPTER_WEIGHTS, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if key not in whole}  # noqa: SIM118
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Refused(f"The adapter's {key} holds a NaN or Inf.", remedy="Train or save the adapter again.")
    own = {name: tensor for name, tensor in tuned.state_dict(keep_vars=True).items() if id(tensor) not in base_tensors}
    try:
        with torch.no_grad():
            loading = set_peft_model_state_dict(tuned, tensors, adapter_name=NAME)
    except PEFT_ERRORS as error:
        reason = f"The adapter's tensors do not fit its config: {' '.join(str(error).split())[:400]}."
        raise Refused(reason, remedy=SAVE_AGAIN) from error
    _widen_own(tuned, base_tensors)  # again: AdaLoRA makes its tensors anew where ranks were cut
    if loading.unexpected_keys:
        unused = loading.unexpected_keys
        reason = f"{len(unused)} adapter tensors are used by no layer, e.g. {unused[0]}."
        raise Refused(reason, remedy=SAVE_AGAIN)
    # One shared tensor has a name in every layer; under any of them it is loaded.
    missing = set(loading.missing_keys)
    loaded = {id(tensor) for name, tensor in own.items() if name not in missing}
    unsaved = UNSAVED if config.get("save_projection", True) else SEEDED
    lacking = sorted(name for name, tensor in own.items() if id(tensor) not in loaded and not unsaved.search(name))
    if lacking:
        reason = f"The adapter lacks {len(lacking)} tensors that its config calls for, e.g. {lacking[0]}."
        raise Refused(reason, remedy=SAVE_AGAIN)


def _widen_own(tuned: nn.Module, base_tensors: Any) -> None:
    """The layers' own numbers as float64, in place, shared ones once; the base's phantoms stay as they are."""
    wide: dict[int, Tensor] = {}
    for module in tuned.modules():
        for weight in module._parameters.values():
            if weight is not None and id(weight) not in base_tensors and weight.is_floating_point():
                weight.data = weight.data.double()
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and id(buffer) not in base_tensors and buffer.is_floating_point():
                module._buffers[name] = wide.setdefault(id(buffer), buffer.double())
        if isinstance(getattr(module, "dtype", None), torch.dtype) and "dtype" in module.__dict__:
            module.__dict__["dtype"] = torch.float64  # AdaMSS casts its input to what its base was


def layers_of(tuned: nn.Module) -> dict[str, Any]:
    """The adapted layers by the module's name in the base."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name.removeprefix(PREFIX): module
        for name, module in tuned.named_modules()
        if isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer")
    }


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT's warnings are about training and about what is checked here anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
