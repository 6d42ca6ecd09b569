"""The rows of model_layouts.json: how a class's models are stored; and the patterns that its names are written as.

The file has hundreds of classes, one on each line: only the line that is asked for is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from bot.records import Json

ROWS = Path(__file__).with_name("model_layouts.json")
NUMBER = re.compile(r"(?<![^.])(?:0|[1-9][0-9]*)(?![^.])")
FLAG, TEXT = "tie_word_embeddings", "text_config"
# What a field is that a row does not have; tools/make_model_layouts.py says what each means.
LEFT_OUT: dict[str, Any] = {
    "types": {}, "silent": [], "keys": {}, "stacks": {}, "kinds": {}, "particular": [], "special": [], "literal": [],
    "tied": [{}], "embedding": None, "head": None, "switches": {}, "stated": {}, "members": {}, "prefix": None, "both": False,
    "labels": {}, "flat": False,
}  # fmt: skip


def rows_of(name: str) -> Iterator[Json]:
    """A class's rows, whole: one for each layout that its config chooses between; none for a class that is not there."""
    text = ROWS.read_bytes() if name.isidentifier() else b""
    for number in count(1):
        key = json.dumps(name if number == 1 else f"{name} {number}")
        start = text.find(f"\n  {key}: ".encode())
        if start < 0:
            return
        start += len(key) + 5
        yield {**LEFT_OUT, **json.loads(text[start : text.index(b"\n", start)].rstrip(b","))}


def tasks() -> dict[str, dict[str, str]]:
    """{a task: {model_type: transformers' class for it}}, of the classes that have a row."""
    with ROWS.open("rb") as file:
        heading = file.readline()  # up to the classes
    known: dict[str, dict[str, str]] = json.loads(heading + b"}}")["tasks"]
    return known


def class_for(task: str, config: Json) -> str | None:
    """transformers' class for a task of PEFT's (SEQ_CLS …) with this config, where it has a row."""
    return tasks().get(task, {}).get(str(config.get("model_type")))


def has_a_head(name: str) -> bool:
    """Whether a class with a row is one of those."""
    return any(name in classes.values() for classes in tasks().values())


def config_for(row: Json, config: Json) -> tuple[Json, dict[str, str]] | None:
    """(the config as the row reads it, what is tied under it); None where the row is not for such a config."""
    if config.get("model_type") != row["type"]:
        return None
    flags = [config.get(FLAG), at_path(config, f"{TEXT}.{FLAG}")]
    if row["flat"] and TEXT not in config:
        config = {**config, TEXT: {**config, "model_type": row["types"][TEXT]}}
    fits = (
        all(at_path(config, f"{section}.model_type") == kind for section, kind in row["types"].items())
        and all(at_path(config, switch, default) == default for switch, default in row["switches"].items())
        and all(at_path(config, setting) == value for setting, value in row["stated"].items())
    )
    ties = row["ties"].get(json.dumps(flags))
    return (config, row["tied"][ties]) if fits and ties is not None else None


class Patterns:
    """Names with `*` for their numbers, but for those behind a front that is `literal`: there each number is another thing."""

    def __init__(self, literal: Iterable[str] = ()) -> None:
        self._literal = frozenset(literal)

    def of(self, name: str) -> str:
        """The pattern of a name, or of its beginning up to a number."""
        return self._parts(name)[0] if self._literal else NUMBER.sub("*", name)

    def numbers(self, name: str) -> list[str]:
        """What `*` stands for, in order."""
        return self._parts(name)[1] if self._literal else NUMBER.findall(name)

    def fronts(self, name: str) -> list[tuple[str, int]]:
        """(the pattern up to a number, the number) for each that `*` stands for."""
        fronts = ((self.of(name[: match.end()]), int(match[0])) for match in NUMBER.finditer(name))
        return [(front, number) for front, number in fronts if front.endswith("*")]

    def filled(self, pattern: str, name: str) -> str:
        """A pattern with the numbers of a name."""
        return filled(pattern, self.numbers(name))

    def _parts(self, name: str) -> tuple[str, list[str]]:
        pattern, numbers, at = "", [], 0
        for match in NUMBER.finditer(name):
            front = f"{pattern}{name[at : match.start()]}*"
            if front in self._literal:
                pattern = f"{front[:-1]}{match[0]}"
            else:
                pattern = front
                numbers.append(match[0])
            at = match.end()
        return pattern + name[at:], numbers


def filled(pattern: str, numbers: Iterable[str]) -> str:
    """A pattern with numbers, in their order."""
    for number in numbers:
        pattern = pattern.replace("*", number, 1)
    return pattern


def at_path(config: Any, path: str, otherwise: Any = None) -> Any:
    """The value at a dotted path."""
    for part in path.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return otherwise
        config = config[part]
    return config
