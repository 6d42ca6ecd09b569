"""The model without its weights, to ask transformers how checkpoint keys and modules correspond.

This is the one module of the verifier that leans on transformers' internals (`get_model_conversion_mapping`,
`rename_source_key`: what `from_pretrained` itself uses in 5.x). When they move, this file and its tests move.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bot.records import Json

# Families that store weights in × out; consulted only where the model itself cannot be built.
IN_BY_OUT = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})

# What transformers raises for a config that it cannot make a model of; NotImplementedError is a RuntimeError.
BUILD_ERRORS = (ImportError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)
NEEDS_CODE = "the model needs the repo's own code, and --trust-remote-code was not given"


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """`key_of`: module → checkpoint key of its weight. `fused`: modules whose weight is stored in another layout.

    `in_by_out`: checkpoint keys of Conv1D weights. `problem`: why there is no more to say, where that is so.
    """

    key_of: dict[str, str] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    in_by_out: frozenset[str] = frozenset()
    problem: str | None = None


def build_skeleton(folder: Path, config: Json, keys: list[str], trust_remote_code: bool) -> Skeleton:
    """A Skeleton of the model in `folder`; building it reads config.json only and takes no weight memory."""
    try:
        model = _empty_model(folder, config, trust_remote_code)
    except BUILD_ERRORS as error:
        return _unbuilt(config, keys, f"transformers cannot build the model ({type(error).__name__}: {error})")
    if model is None:
        return _unbuilt(config, keys, NEEDS_CODE)
    renamed, fused = _renamed(model, keys)
    return Skeleton(key_of=renamed, fused=fused, in_by_out=_conv1d_keys(model, renamed))


def model_class(config: Json, trust_remote_code: bool) -> Any:
    """The plain class that config.json names, else the Auto class. None where only the repo's own code would do."""
    import transformers

    for name in config.get("architectures") or ():
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    own = [name for name in config.get("auto_map") or () if name.startswith("AutoModel")]
    if own and not trust_remote_code:
        return None
    return getattr(transformers, own[0]) if own else transformers.AutoModel


def _empty_model(folder: Path, config: Json, trust_remote_code: bool) -> Any:
    import torch
    from transformers import AutoConfig

    chosen = model_class(config, trust_remote_code)
    if chosen is None:
        return None
    built = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        if hasattr(chosen, "from_config"):  # an Auto class
            return chosen.from_config(built, trust_remote_code=trust_remote_code)
        return chosen(built)


def _renamed(model: Any, keys: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """({module: key} for plain renames, the same for keys that a converter reshapes), by transformers' own rules."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    known = model.state_dict()
    plain: dict[str, str] = {}
    fused: dict[str, str] = {}
    for key in keys:
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
        if name not in known and key in known:
            name, pattern = rename_source_key(key, [], [], model.base_model_prefix, known)
        if name in known and name.endswith(".weight"):
            (plain if pattern is None else fused)[name.removesuffix(".weight")] = key
    return plain, fused


def _conv1d_keys(model: Any, renamed: dict[str, str]) -> frozenset[str]:
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())
    return frozenset(key for module, key in renamed.items() if isinstance(modules.get(module), Conv1D))


def _unbuilt(config: Json, keys: list[str], problem: str) -> Skeleton:
    flipped = frozenset(keys) if config.get("model_type") in IN_BY_OUT else frozenset()
    return Skeleton(in_by_out=flipped, problem=problem)
