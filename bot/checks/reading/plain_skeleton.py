"""What a skeleton says of a model whose parameters are all stored under their own names, without building it: no torch is needed.

plain_models.json has such classes; tools/make_plain_models.py writes it, from the skeletons themselves. Whatever goes beyond it
(a key or a switch that is not in the row, a class with another head) raises NotPlain: then the model is built after all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from bot.checks.reading.symbolic import SymbolicTensor
from bot.records import Json

ROWS = Path(__file__).with_name("plain_models.json")
NUMBER = re.compile(r"(?<![^.])(?:0|[1-9][0-9]*)(?![^.])")
FLAG = "tie_word_embeddings"


class NotPlain(Exception):
    """Only the model itself can say this."""


class PlainModule:
    """A module of such a model: a Linear, an Embedding or a norm, whose weight is stored as it is."""


def modules_of(parameters: Iterable[str]) -> dict[str, Any]:
    """Every module with one of these parameters in it or below it, by path."""
    paths: dict[str, Any] = {"": PlainModule()}
    for name in parameters:
        path = name.rpartition(".")[0]
        while path and path not in paths:
            paths[path] = PlainModule()
            path = path.rpartition(".")[0]
    return paths


class PlainSkeleton:
    """As Skeleton, for one class over one checkpoint. `shapes`: {stored key: shape}. Raises NotPlain for what is none."""

    decoder = None
    unfollowed: Mapping[str, str] = {}
    elsewhere: Container[str] = ()  # names of another class, which are none of this one's

    def __init__(self, config: Json, shapes: Mapping[str, tuple[int, ...]]) -> None:
        architectures = config.get("architectures")
        self.name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
        row = json.loads(ROWS.read_bytes())["classes"].get(self.name)
        depth = config.get("num_hidden_layers")
        if row is None or config.get("model_type") != row["type"] or type(depth) is not int or depth < 1:
            raise NotPlain(self.name)
        if any(config.get(switch, default) != default for switch, default in row["switches"].items()):
            raise NotPlain(self.name)
        self.shapes = shapes
        self._row, self._depth = row, depth
        ties = config.get(FLAG, row["ties"])
        if type(ties) is not bool:
            raise NotPlain(self.name)
        self.tied: dict[str, str] = dict(row["tied"]) if ties else {}
        self.embedding: str | None = row["embedding"]
        self.head: str | None = row["head"]
        for key, shape in shapes.items():
            if key not in self.known or row["parameters"][NUMBER.sub("*", key)] != len(shape):
                raise NotPlain(key)

    @cached_property
    def known(self) -> dict[str, None]:
        """Every parameter's name, in the order of registration within each module."""
        numbers = [str(number) for number in range(self._depth)]
        expanded = ((pattern, numbers if "*" in pattern else [""]) for pattern in self._row["parameters"])
        return {pattern.replace("*", number): None for pattern, several in expanded for number in several}

    @cached_property
    def modules(self) -> dict[str, Any]:
        """Every module with a parameter in it or below it, by path."""
        return modules_of(self.known)

    @cached_property
    def symbolic(self) -> dict[str, SymbolicTensor]:
        """{parameter: the stored tensor that it is}."""
        return {key: SymbolicTensor.whole(key, shape) for key, shape in self.shapes.items()}

    @cached_property
    def feeds(self) -> dict[str, tuple[str, ...]]:
        """{stored key: itself}."""
        return {key: (key,) for key in self.shapes}

    @cached_property
    def key_of(self) -> dict[str, str]:
        """{parameter: itself}, of those that are stored."""
        return {key: key for key in self.shapes}

    @cached_property
    def used(self) -> frozenset[str]:
        """Every stored key."""
        return frozenset(self.shapes)

    @property
    def model(self) -> NoReturn:
        """There is none."""
        raise NotPlain(self.name)

    def rename(self, name: str) -> tuple[str, None]:
        """Itself. Raises NotPlain for a name that is none of today's."""
        if name not in self.known and name not in self.elsewhere:
            raise NotPlain(name)
        return name, None

    def trace(self, name: str) -> tuple[SymbolicTensor, str] | None:
        """The stored tensor, and the name; None where it is not stored. Raises NotPlain."""
        self.rename(name)
        return (self.symbolic[name], name) if name in self.symbolic else None

    def owner(self, parameter: str) -> Any:
        """The module that a parameter hangs on; None where there is none."""
        return self.modules.get(parameter.rpartition(".")[0])

    def parameters_of(self, module: str) -> tuple[str, ...]:
        """The names of a module's own parameters. Raises NotPlain for a module that has none."""
        own = tuple(name.removeprefix(f"{module}.") for name in self.known if name.rpartition(".")[0] == module)
        if not own:
            raise NotPlain(module)
        return own

    def part_of_class(self, name: str) -> str | None:
        """Raises NotPlain where the name is another class's: whether a part is of it only the model itself says."""
        if name != self.name:
            raise NotPlain(name)
        return None

    def in_decoder(self, name: str) -> tuple[str, ...]:
        """Such a model is a language model itself."""
        return ()

    def stored_names(self, parameter: str) -> tuple[str, ...]:
        """The parameter's own."""
        return (parameter,)

    def is_of(self, mapping: Any) -> bool:
        """Whether an adapter that names its class (auto_mapping) names this one."""
        return isinstance(mapping, Mapping) and mapping.get("base_model_class") == self.name
