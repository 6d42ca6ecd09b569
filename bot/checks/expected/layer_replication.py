"""layer_replication: the model has more layers than the base, each made from one of the base's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bot.checks.expected.config_changes import Declared, replicated
from bot.checks.expected.parameter_names import ParameterNames
from bot.checks.reading.model_skeleton import layer_list, numbered
from bot.records import Json

DEEPEST = 10_000  # layers


@dataclass(frozen=True, kw_only=True)
class ReplicatedLayers:
    """`source[i]` is the base's layer that layer `i` is made from; () where nothing is replicated. `layers`: their list's path."""

    source: tuple[int, ...] = ()
    layers: str = ""
    count: int = 0  # layers of the base
    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, replication: tuple[tuple[int, int], ...], names: ParameterNames) -> ReplicatedLayers:
        """By PEFT's rule for where the layers are. A model that it does not know is a problem."""
        if not replication:
            return cls()
        skeleton = names.skeleton
        layers = layer_list(skeleton.model) if skeleton else None
        if sum(max(0, high - low) for low, high in replication) > DEEPEST:
            return cls(problems=(f"layer_replication asks for more than {DEEPEST:,} layers.",))
        source = tuple(layer for low, high in replication for layer in range(low, high))
        if skeleton is None or layers is None:
            return cls(problems=("layer_replication is for models whose layers PEFT finds; here it does not.",))
        count = len(skeleton.modules[layers])
        if any(not 0 <= layer < count for layer in source):
            return cls(problems=(f"layer_replication names layers beyond the base's {count}.",))
        return cls(source=source, layers=layers, count=count)

    def keys(self, stored: Iterable[str]) -> Iterator[tuple[str, str]]:
        """(key of the merged checkpoint, base key it is made from)."""
        for key in stored:
            parts = self._number(key)
            if not self.source or parts is None:
                yield key, key
                continue
            front, layer, tail = parts
            for at, origin in enumerate(self.source):
                if origin == layer:
                    yield f"{front}{at}{tail}", key

    def original(self, name: str) -> str:
        """The base's parameter that a replica's is made from."""
        parts = self._number(name) if self.source else None
        if parts is None or not parts[1] < len(self.source):
            return name
        return f"{parts[0]}{self.source[parts[1]]}{parts[2]}"

    def declare(self, config: Json) -> list[Declared]:
        """What config.json must say."""
        return replicated(config, list(self.source), self.count) if self.source else []

    def with_number(self, key: str, name: str) -> str:
        """A key or a parameter of the base under the layer's number that the parameter `name` has."""
        number, parts = self._number(name), self._number(key)
        if not self.source or number is None or parts is None:
            return key
        return f"{parts[0]}{number[1]}{parts[2]}"

    def _number(self, name: str) -> tuple[str, int, str] | None:
        """By the end of the path: a checkpoint may have less or more in front of it than the model."""
        parts = self.layers.split(".")
        for cut in range(len(parts)):
            tail = ".".join(parts[cut:])
            at = name.find(f"{tail}.")
            if at >= 0 and (split := numbered(name[at:], tail)):
                return name[:at] + split[0], split[1], split[2]
        return None
