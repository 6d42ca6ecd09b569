"""Adapters of the methods that only PEFT's own layers know: every tensor of theirs is what probing finds it to be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bot.checks.expected.adapter_files import bare, unknown_settings
from bot.checks.expected.changes import AdapterReading, ProbedParameter, WholeTensor
from bot.checks.expected.parameter_names import ParameterNames
from bot.checks.expected.probed_layers import NoUnmerged, ProbedLayers
from bot.checks.expected.probed_methods import KEPT_OUT, METHODS, MOVES_BIAS
from bot.checks.expected.saved_tensors import SavedTensors
from bot.checks.reading.checkpoint import TensorRef
from bot.checks.reading.model_skeleton import BUILD_ERRORS, build
from bot.checks.reading.rows import Opened
from bot.checks.subject import Subject
from bot.records import Json

# What a layer's own tensors are called; for the rest the method's name in small letters is how they begin.
FRONTS = {"LORA": "lora_", "ADALORA": "lora_", "LOHA": "hada_"}
# Fields of a LoRA that train something else beside its layers, and that go with no variant.
BESIDE = ("layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens",
          "arrow_config", "use_qalora")  # fmt: skip


def read(config: Json, tensors: Mapping[str, TensorRef], names: ParameterNames, subject: Subject) -> AdapterReading:
    """Every parameter of every adapted layer, and whatever else came along; what cannot be read is a problem."""
    peft_type = str(config["peft_type"])
    problems = _unknown_settings(config)
    front = FRONTS.get(peft_type, f"{peft_type.lower()}_")
    own = {key for key in tensors if any(part.startswith(front) for part in key.split("."))}
    saved_tensors = SavedTensors(config=config, indices=None)
    problems += saved_tensors.take_all({key: tensor for key, tensor in tensors.items() if key not in own})
    copies = {name: change.values for name, change in saved_tensors.in_order()
              if isinstance(change, WholeTensor) and change.shared}  # fmt: skip
    layers: list[tuple[str, ProbedParameter]] = []
    try:
        layers = _probed(config, own, tensors, names, subject, copies)
    except NoUnmerged as error:
        problems.append(str(error))
    return saved_tensors.reading(METHODS[peft_type], problems, layers)


def _unknown_settings(config: Json) -> list[str]:
    """A field that PEFT does not have, or one of those that go with no variant, switched on."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]])}
    lora = config["peft_type"] in ("LORA", "ADALORA")
    return unknown_settings(config, fields | KEPT_OUT) + [
        f"The adapter sets {key} beside its method." for key in BESIDE if lora and config.get(key)
    ]


def _probed(
    config: Json,
    own: set[str],
    tensors: Mapping[str, TensorRef],
    names: ParameterNames,
    subject: Subject,
    copies: Mapping[str, TensorRef],
) -> list[tuple[str, ProbedParameter]]:
    skeleton = names.skeleton
    if skeleton is None:
        raise NoUnmerged(f"PEFT's layers cannot be asked: {names.problem}.")
    try:
        model = build(subject.base, type(skeleton.model))
    except BUILD_ERRORS as error:
        raise NoUnmerged(f"transformers cannot build the model ({type(error).__name__}: {error}).") from error

    def values(parameter: str) -> Tensor | None:
        key = skeleton.key_of.get(parameter)
        # A copy of the base's own weight that PEFT has saved along is loaded over the base's.
        ref = copies.get(parameter) or names.base.tensors.get(key or "")
        if ref is None:
            return None
        with Opened() as opened:
            numbers = torch.from_numpy(opened.wide_rows(ref, 0, ref.stored.shape[0]).reshape(ref.stored.shape))
        return numbers if ref.stored.dtype == "F64" else numbers.float()

    path = next(iter(tensors.values())).path
    probed = ProbedLayers(model, path, config, own, values)
    biases = config["peft_type"] in MOVES_BIAS or bool(config.get("lora_bias"))
    layers = []
    for parameter, shape in probed.parameters():
        module, _, name = parameter.rpartition(".")
        if (name == "bias" and not biases) or (name != "bias" and config["peft_type"] == "BEFT"):
            continue
        uses = tuple(key for key in own if bare(key).startswith(f"{module}.") or not _has_module(key))
        layers.append((parameter, ProbedParameter(
            module=module, uses=uses, rows=(0, shape[0]), columns=(0, math.prod(shape[1:])), parameter=parameter,
            probed=probed,
        )))  # fmt: skip
    return layers


def _has_module(key: str) -> bool:
    """Whether a key belongs to one module; what all share hangs on PEFT's own model (base_model.vera_A)."""
    return key.startswith("base_model.model.") or not key.startswith("base_model.")
