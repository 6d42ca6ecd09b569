"""layer_replication: a model whose layers are stacked several times, each copy with an adapter of its own.

The ranges are PEFT's (peft.tuners.lora.model._replicate_layers): half open, in the order in which the new model has
them; layers of the base that are in no range are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bot.records import Json, Refusal

STACK = re.compile(r"(?P<stack>(?:.*\.)?(?:encoder\.layer|layers|h))\.(?P<number>\d+)\.(?P<rest>.+)")
MOST = 10_000  # layers of the output; the deepest models have hundreds
COUNTS = ("num_hidden_layers", "n_layer", "num_layers")


@dataclass(frozen=True, kw_only=True)
class LayerReplicas:
    """`origin[i]`: which layer of the base becomes layer i. Empty: the layers stay as they are."""

    origin: tuple[int, ...] = ()
    copies: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def output_keys(self, key: str) -> tuple[str, ...]:
        """What a base key is called in the output: several names, one, or none."""
        match = STACK.fullmatch(key) if self.origin else None
        if match is None:
            return (key,)
        return tuple(f"{match['stack']}.{new}.{match['rest']}" for new in self.copies.get(int(match["number"]), ()))

    def in_base(self, parameter: str) -> tuple[str, int | None]:
        """(the parameter as the base names it, the number of its layer in the output)."""
        match = STACK.fullmatch(parameter) if self.origin else None
        if match is None or int(match["number"]) >= len(self.origin):
            return parameter, None
        new = int(match["number"])
        return f"{match['stack']}.{self.origin[new]}.{match['rest']}", new

    @staticmethod
    def renumbered(key: str, new: int | None) -> str:
        """A base key under its number in the output."""
        match = STACK.fullmatch(key) if new is not None else None
        return f"{match['stack']}.{new}.{match['rest']}" if match else key


def find_replicas(
    ranges: Iterable[tuple[int, int]], config: Json, keys: Iterable[str]
) -> tuple[LayerReplicas, list[Refusal]]:
    """The replicas that a config asks for. Refused: models with another or a second stack, ranges beyond the base."""
    ranges = tuple(ranges)
    if sum(max(0, high - low) for low, high in ranges) > MOST:
        return LayerReplicas(), [_refuse(f"The adapter replicates layers to more than {MOST:,}.")]
    origin = tuple(layer for low, high in ranges for layer in range(low, high))
    if not origin:
        return LayerReplicas(), []
    stacks: dict[str, set[int]] = {}
    for key in keys:
        if match := STACK.fullmatch(key):
            stacks.setdefault(match["stack"], set()).add(int(match["number"]))
    count = next((config[name] for name in COUNTS if isinstance(config.get(name), int)), None)
    if len(stacks) != 1 or count is None or isinstance(config.get("text_config"), dict):
        reason = "The adapter replicates layers, which this architecture does not have in one stack."
        return LayerReplicas(), [_refuse(reason)]
    layers = next(iter(stacks.values()))
    if max(origin) >= count or layers != set(range(count)):
        return LayerReplicas(), [_refuse(f"The adapter replicates layers up to {max(origin)}; the base has {count}.")]
    copies: dict[int, list[int]] = {}
    for new, old in enumerate(origin):
        copies.setdefault(old, []).append(new)
    return LayerReplicas(origin=origin, copies={old: tuple(new) for old, new in copies.items()}), []


def config_edits(replicas: LayerReplicas, config: Json) -> dict[str, Any]:
    """The number of layers, and every list that has one entry a layer."""
    if not replicas.origin:
        return {}
    (name,) = [name for name in COUNTS if isinstance(config.get(name), int)][:1]
    count = config[name]
    edits: dict[str, Any] = {name: len(replicas.origin)}
    for field_name, value in config.items():
        by_layer = field_name.startswith(("layer_", "layers_", "mlp_layer"))
        if by_layer and isinstance(value, list) and len(value) == count:
            edits[field_name] = [value[layer] for layer in replicas.origin]
    return edits


def _refuse(reason: str) -> Refusal:
    return Refusal(code="layer-replication", reason=reason, remedy="Keep the adapter separate, or check the base.")
