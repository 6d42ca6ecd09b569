"""Write bot/checks/reading/plain_models.json: model classes whose names the verifier knows without building the model.

    python -m tools.make_plain_models            write the file
    python -m tools.make_plain_models CLASS…     print the rows of a few classes, or why they have none

A class is plain where the verifier's own skeleton of it says so: every parameter is stored under its own name, as it is; every
layer has the same ones; no weight is transposed, none is a stack, and none is read past its module. It is built from its default
config on the meta device. What depends on a switch of the config is told by the switch: all of them are in the row.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bot.checks.expected.bypassed import goes_around
from bot.checks.reading.model_skeleton import Skeleton

TARGET = Path(__file__).parents[1] / "bot" / "checks" / "reading" / "plain_models.json"
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
FLAG = "tie_word_embeddings"
# Switches of every config that no parameter hangs on.
IDLE = {
    FLAG,
    "use_cache",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
    "is_encoder_decoder",
    "is_decoder",
}

transformers.utils.logging.set_verbosity_error()


class Particular(Exception):
    """A class that only its model explains; the sentence says how."""


def built(chosen: Any, **settings: Any) -> Any:
    """The class without weights, from its default config with a few layers."""
    config = chosen.config_class()
    for name, value in settings.items():
        setattr(config, name, value)
    with torch.device("meta"):
        return chosen(config)


def row_of(chosen: Any) -> dict[str, Any]:
    """type: model_type; parameters: {name with `*` for the layer's number: dimensions}, in the order of registration; tied: {a
    name: the one it shares} with tie_word_embeddings; ties: that flag's default; embedding, head: their weights' names; switches:
    every true-or-false setting's default. Raises Particular."""
    config = chosen.config_class()
    if hasattr(config, "sub_configs") and config.sub_configs:
        raise Particular("it has a config within its config")
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int):
        raise Particular("its config has no num_hidden_layers")
    switches = {name: value for name, value in config.to_dict().items() if isinstance(value, bool) and name not in IDLE}
    ties = bool(getattr(config, FLAG, False))
    model = built(chosen)
    if list(dict(model.named_buffers(remove_duplicate=False)).keys() & model.state_dict().keys()):
        raise Particular("it stores buffers")
    skeletons = [skeleton_of(built(chosen, **{FLAG: tied})) for tied in (True, False)]
    if skeletons[1].tied:
        raise Particular("it ties weights whatever its config says")
    tied = skeletons[0].tied
    parameters: dict[str, int] = {}
    numbers: dict[str, set[int]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        pattern = NUMBER.sub("*", name)
        parameters[pattern] = parameter.dim()
        numbers.setdefault(pattern, set()).update(int(number) for number in NUMBER.findall(name))
    require(parameters, numbers, depth)
    return {
        "type": config.model_type, "parameters": parameters, "tied": tied, "ties": ties,
        "embedding": skeletons[0].embedding, "head": skeletons[0].head, "switches": switches,
    }  # fmt: skip


def skeleton_of(model: Any) -> Skeleton:
    """The verifier's own, over a checkpoint that stores every parameter once, under its own name. Raises Particular."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    own = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
    skeleton = Skeleton(model, own)
    strange = [name for name in own if skeleton.key_of.get(name) != name or skeleton.rename(name) != (name, None)]
    if strange or skeleton.unfollowed or skeleton.symbolic.keys() != own.keys():
        raise Particular(f"{next(iter(strange), 'something')} is stored under another name, or in another layout")
    kinds = {type(module).__name__ for module in skeleton.modules.values()}
    if kinds & {"Conv1D", "MultiheadAttention"}:
        raise Particular("it has a Conv1D or torch's own attention")
    around = [name for name in own if goes_around(skeleton.modules, name)]
    if around:
        raise Particular(f"it reads {around[0]} past its module")
    return skeleton


def require(parameters: dict[str, int], numbers: dict[str, set[int]], depth: int) -> None:
    """Raises Particular where layers differ, or a parameter is a stack."""
    if any(dims > 2 for dims in parameters.values()):
        raise Particular("it has a stack of matrices, or a convolution")
    for pattern, seen in numbers.items():
        if pattern.count("*") > 1 or (seen and seen != set(range(depth))):
            raise Particular(f"{pattern} is not in every layer, or in more than layers")


def rows(names: Sequence[str], row: Callable[[Any], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows of the classes that have one; what is the matter with the others is printed."""
    known: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            known[name] = row(getattr(transformers, name))
        except Particular as reason:
            print(f"{name}: {reason}", file=sys.stderr)
        except Exception as error:  # whatever a constructor raises for a config that is no real model
            print(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:120]}", file=sys.stderr)
    return known


def candidates() -> list[str]:
    """Language models, and the classes of the same families that PEFT's tasks have heads for."""
    return sorted({name for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
                   for name in (names if isinstance(names, tuple | list) else [names])})  # fmt: skip


def written(plain: dict[str, dict[str, Any]]) -> str:
    """One line a class, so that a new transformers gives a diff that can be read."""
    lines = [f"  {json.dumps(name)}: {json.dumps(row, separators=(',', ':'))}" for name, row in sorted(plain.items())]
    heading = f'"generator": "tools/make_plain_models.py", "transformers": "{transformers.__version__}"'
    return "{" + heading + ', "classes": {\n' + ",\n".join(lines) + "\n}}\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:]:
        print(written(rows(sys.argv[1:], row_of)))
    else:
        TARGET.write_text(written(rows(candidates(), row_of)))
