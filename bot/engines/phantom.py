"""The model without its weights: every parameter is one NaN, seen through a view of the right shape.

A skeleton of any size costs no memory, and a weight that was forgotten says so: whatever it touches becomes NaN, and a
write to it raises. (A skeleton on torch's meta device would not do: `real += meta` is silently nothing there.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bot.errors import Refused
from bot.records import Json

OTHER_BASE = "Check that the base is the one the adapter was trained on, or name it with --base."
# What transformers raises for a config that it cannot make a model of; NotImplementedError is a RuntimeError.
BUILD_ERRORS = (ImportError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)
HEADS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


def phantom(shape: Iterable[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of NaN (0 for integers) that takes the memory of one number."""
    value = math.nan if dtype.is_floating_point or dtype.is_complex else 0
    return torch.full((), value, dtype=dtype).expand(tuple(shape))


def is_phantom(tensor: Tensor) -> bool:
    """Whether nothing has taken the place of the one NaN, or has been written over it."""
    return not any(tensor.stride()) and bool(tensor.as_strided((), ()).isnan())


def phantom_model(folder: Path, config: Json, adapter: Json, modules: set[str]) -> Any:
    """The base in `folder` as the class that has all of `modules`: the config's own, else the adapter's.

    transformers' own classes only: a merge runs nobody's code. Raises Refused where it can build none.
    """
    from transformers import AutoConfig

    lacking, problem = sorted(modules), "it names no class of transformers"
    try:
        built = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except BUILD_ERRORS as error:
        raise _unbuilt(f"{type(error).__name__}: {error}") from error
    for chosen in _classes(config, adapter):
        try:
            model = _empty(chosen, built)
        except BUILD_ERRORS as error:
            problem = f"{type(error).__name__}: {error}"
            continue
        names = {name for name, _ in model.named_modules()}
        if modules <= names:
            return model
        lacking = min((lacking, sorted(modules - names)), key=len)
        problem = f"it has no module {lacking[0]}"
    raise _unbuilt(problem)


def _classes(config: Json, adapter: Json) -> Iterator[Any]:
    """Plausible classes, the base's own first. Names out of configs are looked up among transformers' models only."""
    import transformers

    trained = adapter.get("auto_mapping") or {}
    names = [*(config.get("architectures") or ()), trained.get("base_model_class") if trained else None]
    names += [HEADS.get(str(adapter.get("task_type"))), "AutoModel"]
    for name in dict.fromkeys(name for name in names if isinstance(name, str)):
        candidate = getattr(transformers, name, None)
        own = isinstance(candidate, type) and issubclass(candidate, transformers.PreTrainedModel)
        if own or (candidate is not None and name.startswith("AutoModel")):
            yield candidate


def _empty(chosen: Any, built: Any) -> Any:
    with torch.device("meta"):
        if hasattr(chosen, "from_config"):  # an Auto class
            model = chosen.from_config(built, dtype=torch.float32, trust_remote_code=False)
        else:
            model = chosen(built)
    replaced: dict[int, Any] = {}  # what is tied stays tied
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                fresh = nn.Parameter(phantom(weight.shape), requires_grad=False)
                module._parameters[name] = replaced.setdefault(id(weight), fresh)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = replaced.setdefault(id(buffer), phantom(buffer.shape, buffer.dtype))
    return model.eval()


def _unbuilt(problem: str) -> Refused:
    return Refused(f"transformers cannot build the adapter's model from this base: {problem}.", remedy=OTHER_BASE)
