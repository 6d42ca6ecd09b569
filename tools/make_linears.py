"""Dump which modules bitsandbytes leaves alone, by model class, into bot/formats/bitsandbytes/linears.json.

    python -m tools.make_linears            write the file
    python -m tools.make_linears CLASS…     print the rows of a few classes

As for tools/make_conversions.py, each class is built from its default config without weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from tools.make_conversions import build_empty, dump, model_classes, starred

TARGET = Path(__file__).parents[1] / "bot" / "formats" / "bitsandbytes" / "linears.json"


def convertible(module: torch.nn.Module) -> bool:
    """What transformers' replace_with_bnb_linear rerow_of_class."""
    return isinstance(module, Conv1D) or type(module) is torch.nn.Linear


def row_of(model: PreTrainedModel) -> dict[str, Any]:
    """Paths relative to the class; numbers in them stand as `*`.

    other: modules (outside of sub-models) whose `weight` is a matrix, though they are neither Linear nor Conv1D.
    kept: Linear and Conv1D modules that stay as they are when this class is the whole model, because they are the head or
    tied; tied, untied: and because they are its last, with a head that is tied to the embedding, or not: {kept: paths, last:
    paths where only that with the highest numbers stays}. fp32: patterns of what stays as it is whatever the user says.
    """
    modules = dict(model.named_modules())
    parts = [path for path, one in modules.items() if path and isinstance(one, PreTrainedModel)]
    other = {
        starred(path)
        for path, one in modules.items()
        if not convertible(one)
        and not any(path == part or path.startswith(part + ".") for part in parts)
        and isinstance(weight := getattr(one, "weight", None), torch.nn.Parameter)
        and weight.dim() == 2
    }
    as_built = set(get_keys_to_not_convert(model))
    last = list(model.named_parameters())[-1][0].removesuffix(".weight")
    head = head_of(model)
    always = as_built - {last} | ({head} if head else set())
    kept, _ = left_alone(modules, always)
    found: dict[str, Any] = {
        "other": sorted(other),
        "kept": sorted(kept),
        "fp32": sorted(model._keep_in_fp32_modules or ()),
    }
    for state, name in last_names(model, head).items():
        more, some = left_alone(modules, {*always, name})
        found[state] = {key: sorted(one) for key, one in (("kept", more - kept), ("last", some)) if one}
    return {key: value for key, value in found.items() if value}


def head_of(model: PreTrainedModel) -> str | None:
    module = model.get_output_embeddings()
    return next((path for path, one in model.named_modules() if module is not None and one is module), None)


def last_names(model: PreTrainedModel, head: str | None) -> dict[str, str]:
    """Whose parameter is the model's last, with a tied head and with one of its own."""
    shown = {name for name, _ in model.named_parameters()}
    every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    own = f"{head}.weight"
    return {
        "tied": [name for name in every if name in shown and name != own][-1].removesuffix(".weight"),
        "untied": [name for name in every if name in shown or name == own][-1].removesuffix(".weight"),
    }


def left_alone(modules: dict[str, torch.nn.Module], patterns: set[str]) -> tuple[set[str], set[str]]:
    """(paths whose Linear and Conv1D modules all stay as they are, paths of which some do)."""
    kept: set[str] = set()
    converted: set[str] = set()
    for path, one in modules.items():
        if convertible(one):
            (converted if should_convert_module(path, list(patterns)) else kept).add(starred(path))
    return kept - converted, kept & converted


def rows(names: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """The rows of all classes that can be built, or of those named, sub-models' classes included."""
    every = model_classes()
    found: dict[str, dict[str, Any]] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name in sorted(names or every):
        model = build_empty(every[name])
        if model is None or not hasattr(model, "all_tied_weights_keys"):  # an abstract class
            continue
        found[name] = row_of(model)
        for path, part in model.named_modules():
            known = type(part).__name__ in inner or not hasattr(part, "all_tied_weights_keys")
            if path and isinstance(part, PreTrainedModel) and not known:
                inner[type(part).__name__] = row_of(part)
    return dict(sorted((inner | found).items())) if not names else found


def written(found: dict[str, dict[str, Any]]) -> str:
    """Equal rows once, a line each."""
    unique: list[dict[str, Any]] = []
    row_of_class: dict[str, int] = {}
    for name, row in found.items():
        if row not in unique:
            unique.append(row)
        row_of_class[name] = unique.index(row)
    lines = ",\n".join(dump(row) for row in unique)
    head = f'"generator": "tools/make_linears.py",\n"transformers": {json.dumps(transformers.__version__)}'
    return f'{{\n{head},\n"rows": [\n{lines}\n],\n"classes": {dump(row_of_class)}\n}}\n'


if __name__ == "__main__":
    if sys.argv[1:]:
        print(written(rows(sys.argv[1:])))
    else:
        TARGET.write_text(written(rows()))
