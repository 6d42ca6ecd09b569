"""Dump which modules a class with a head has outside of its body, and which its body lacks that the plain one has (ViT's pooler for a
classifier of images), by model class, into bot/checkpoint/heads.json.

    python -m tools.make_heads            write the file
    python -m tools.make_heads CLASS…     print the rows of a few classes

As for tools/make_conversions.py, each class is built from its default config without weights. A module that a setting of
the config can take away is left out: what is listed is there whatever config.json says.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from tools.make_conversions import TASKS, build_empty, dump, model_classes, starred

TARGET = Path(__file__).parents[1] / "bot" / "checkpoint" / "heads.json"
SETTING = re.compile(r"config\.(\w+)")
USUAL = ("classifier", "score", "qa_outputs", "classification_head")  # no setting takes these away


def modules_of(one: type[PreTrainedModel], changes: dict[str, object] | None = None) -> frozenset[str] | None:
    """Modules with parameters of their own outside the body, and the body's pooler, that no base has to have; numbers
    stand as `*`. None where the class cannot be built, or has no body of its own."""
    model = build_empty(one, changes)
    if isinstance(model, str) or body_of(model) is None:
        return None
    prefix = model.base_model_prefix
    tied = set(model.all_tied_weights_keys)
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    names = [
        name
        for name, _ in model.named_parameters(remove_duplicate=False)
        if name not in tied and not any(pattern.search(name) for pattern in ignored)
    ]
    outside = [name for name in names if not name.startswith(f"{prefix}.") or f".{name}".find(".pooler.") >= 0]
    return frozenset(starred(name).rpartition(".")[0] or starred(name) for name in outside)


def body_of(model: PreTrainedModel) -> PreTrainedModel | None:
    """The model that the class has its head on."""
    body = getattr(model, model.base_model_prefix, None)
    return body if isinstance(body, PreTrainedModel) else None


def lacks_of(one: type[PreTrainedModel]) -> list[str]:
    """Modules and parameters of the plain model of this type which the class's body has none of, sorted; of those within each other
    the outermost. A class without a body of its own (CLIP's for pictures, made of one tower) is one itself."""
    model = build_empty(one)
    plain_class = MODEL_MAPPING_NAMES.get(one.config_class.model_type)
    if isinstance(model, str) or plain_class is None:
        return []
    own = names_of(body_of(model) or model)
    with torch.device("meta"):
        plain = getattr(transformers, plain_class if isinstance(plain_class, str) else plain_class[0])(model.config)
    lacking = set()
    for name in names_of(plain).union(*names_of_bodies(model)) - own:
        parts = name.split(".")
        fronts = [".".join(parts[: length + 1]) for length in range(len(parts))]
        lacking.add(next(front for front in fronts if not any(f"{other}.".startswith(f"{front}.") for other in own)))
    return sorted(lacking)


def names_of(model: PreTrainedModel) -> frozenset[str]:
    """Every parameter's, with `*` for numbers."""
    return frozenset(starred(name) for name, _ in model.named_parameters(remove_duplicate=False))


def names_of_bodies(model: PreTrainedModel) -> Iterator[frozenset[str]]:
    """Those of the bodies of every class of a type, of the same config: ViT's for masked pictures has a token of its own."""
    for one in classes():
        if one.config_class is type(model.config):
            try:
                with torch.device("meta"):
                    body = body_of(one(deepcopy(model.config)))
            except Exception:  # whatever a constructor raises for a config that it does not expect
                continue
            if body is not None:
                yield names_of(body)


@cache
def classes() -> tuple[type[PreTrainedModel], ...]:
    """Every model class."""
    return tuple(model_classes().values())


def flags_of(one: type[PreTrainedModel]) -> Iterator[str]:
    """The yes-or-no settings that the head's own constructors read."""
    config, module = one.config_class(), inspect.getmodule(one)
    for kind in vars(module).values():
        if isinstance(kind, type) and issubclass(kind, torch.nn.Module) and kind.__module__ == one.__module__:
            for name in SETTING.findall(inspect.getsource(kind.__init__)):
                if isinstance(getattr(config, name, None), bool) and not name.startswith(
                    ("output_", "return_", "use_ret")
                ):
                    yield name


def row_of(one: type[PreTrainedModel]) -> list[str] | None:
    """Sorted paths; None where the class says nothing."""
    found = modules_of(one)
    if not found or all(path.split(".")[0] in USUAL for path in found):
        return sorted(found) if found else None
    for flag in dict.fromkeys(flags_of(one)):
        changed = modules_of(one, {flag: not getattr(one.config_class(), flag)})
        found &= changed if changed is not None else found
    return sorted(found)


def rows(names: Iterable[str] = ()) -> dict[str, list[str]]:
    """The rows of all classes with a head, or of those named."""
    every = model_classes()
    wanted = sorted(names or (name for name in every if TASKS.fullmatch(name)))
    return {name: row for name in wanted if (row := row_of(every[name]))}


def lacking(names: Iterable[str] = ()) -> dict[str, list[str]]:
    """What the bodies of all classes with a head lack, or of those named; those that lack something."""
    every = model_classes()
    wanted = sorted(names or (name for name in every if TASKS.fullmatch(name)))
    return {name: lacks for name in wanted if (lacks := lacks_of(every[name]))}


def written(found: dict[str, list[str]], lacks: dict[str, list[str]]) -> str:
    """Equal rows once, a line each."""
    unique: list[list[str]] = []
    row_of_class: dict[str, int] = {}
    for name, row in found.items():
        if row not in unique:
            unique.append(row)
        row_of_class[name] = unique.index(row)
    lines = ",\n".join(dump(row) for row in unique)
    head = f'"generator": "tools/make_heads.py",\n"transformers": {json.dumps(transformers.__version__)}'
    return f'{{\n{head},\n"rows": [\n{lines}\n],\n"classes": {dump(row_of_class)},\n"lacks": {dump(lacks)}\n}}\n'


if __name__ == "__main__":
    if sys.argv[1:]:
        print(written(rows(sys.argv[1:]), lacking(sys.argv[1:])))
    else:
        TARGET.write_text(written(rows(), lacking()))
