"""Changes to config.json that a merge must declare, and no others: what each one allows, and what it demands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bot.records import Json

# Where a text model's config may lie.
NESTED = ("text_config", "decoder", "llm_config", "language_config", "thinker_config")
REPLICATED = "the adapter replicates layers"


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The value at `path` (dotted; a whole map counts as one value) must be `value`. `why` is for the reader."""

    path: str
    value: Any
    why: str

    def covers(self, path: str) -> bool:
        """Whether a difference at `path` is this one's."""
        return path == self.path or path.startswith(f"{self.path}.")


def at(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def text_paths(config: Json, name: str) -> list[str]:
    """The dotted paths of a text setting: in the nested text configs that have it, and on top where that has it."""
    nested = [f"{text}.{name}" for text in NESTED if isinstance(config.get(text), dict) and name in config[text]]
    return [*([name] if name in config or not nested else []), *nested]


def untied(config: Json) -> list[Declared]:
    """tie_word_embeddings false: on top, whether or not it was there, and wherever a nested config says otherwise."""
    why = "the head and the embedding differ"
    paths = ["tie_word_embeddings", *(path for path in text_paths(config, "tie_word_embeddings") if "." in path)]
    return [Declared(path=path, value=False, why=why) for path in paths]


def resized(config: Json, before: int, rows: int) -> list[Declared]:
    """The vocabulary's size, where the config has the old one."""
    why = "the adapter's vocabulary has another size"
    paths = [path for path in text_paths(config, "vocab_size") if at(config, path) in (before, None)]
    paths = paths or text_paths(config, "vocab_size")
    return [Declared(path=path, value=rows, why=why) for path in paths]


def replicated(config: Json, source: list[int], layers: int) -> list[Declared]:
    """The number of layers, and every list of the config that has one entry per layer."""
    why = REPLICATED
    declared = [Declared(path=path, value=len(source), why=why) for path in text_paths(config, "num_hidden_layers")]
    for name, value in config.items():
        if isinstance(value, list) and len(value) == layers and layers > 1 and name != "architectures":
            declared.append(Declared(path=name, value=[value[layer] for layer in source], why=why))
    return declared


def labelled(config: Json, labels: int) -> list[Declared]:
    """Names for the labels of a new head, as transformers makes them up."""
    have = config.get("id2label")
    if isinstance(have, dict) and len(have) == labels:
        return []
    why = f"the head has {labels} labels"
    names = {str(number): f"LABEL_{number}" for number in range(labels)}
    declared = [Declared(path="id2label", value=names, why=why)]
    declared.append(Declared(path="label2id", value={name: int(number) for number, name in names.items()}, why=why))
    if "num_labels" in config:
        declared.append(Declared(path="num_labels", value=labels, why=why))
    return declared


def renamed(name: str) -> Declared:
    """The class of a model with a new head."""
    return Declared(path="architectures", value=[name], why="the adapter brings a head of its own")
