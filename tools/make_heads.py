"""Dump which modules a class with a head has outside of its body, by model class, into bot/checkpoint/heads.json.

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
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from tools.make_conversions import dump, model_classes, shrink, starred

TARGET = Path(__file__).parents[1] / "bot" / "checkpoint" / "heads.json"
TASKS = re.compile(
    r"\w+For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|(Audio|Image|Video)Classification"
    r"|AudioFrameClassification|XVector)"
)
SETTING = re.compile(r"config\.(\w+)")
USUAL = ("classifier", "score", "qa_outputs", "classification_head")  # no setting takes these away


def modules_of(one: type[PreTrainedModel], changes: dict[str, object] | None = None) -> frozenset[str] | None:
    """Modules with parameters of their own outside the body, and the body's pooler, that no base has to have; numbers
    stand as `*`. None where the class cannot be built, or has no body of its own."""
    try:
        config = one.config_class()
        shrink(config)
        for name, value in (changes or {}).items():
            setattr(config, name, value)
        with torch.device("meta"):
            model = one(config)
    except Exception:  # whatever a constructor raises for a config that is no real model
        return None
    prefix = model.base_model_prefix
    if not isinstance(getattr(model, prefix, None), PreTrainedModel):
        return None
    tied = set(model.all_tied_weights_keys)
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    names = [
        name
        for name, _ in model.named_parameters(remove_duplicate=False)
        if name not in tied and not any(pattern.search(name) for pattern in ignored)
    ]
    outside = [name for name in names if not name.startswith(f"{prefix}.") or f".{name}".find(".pooler.") >= 0]
    return frozenset(starred(name).rpartition(".")[0] or starred(name) for name in outside)


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


def written(found: dict[str, list[str]]) -> str:
    """Equal rows once, a line each."""
    unique: list[list[str]] = []
    row_of_class: dict[str, int] = {}
    for name, row in found.items():
        if row not in unique:
            unique.append(row)
        row_of_class[name] = unique.index(row)
    lines = ",\n".join(dump(row) for row in unique)
    head = f'"generator": "tools/make_heads.py",\n"transformers": {json.dumps(transformers.__version__)}'
    return f'{{\n{head},\n"rows": [\n{lines}\n],\n"classes": {dump(row_of_class)}\n}}\n'


if __name__ == "__main__":
    if sys.argv[1:]:
        print(written(rows(sys.argv[1:])))
    else:
        TARGET.write_text(written(rows()))
