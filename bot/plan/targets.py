"""Which parameters of a base an adapter means, and where they lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bot.adapters.lora import LoraPair
from bot.adapters.lora_config import LoraSettings
from bot.checkpoint.locations import Locations, Names, Placement
from bot.plan.layer_replication import LayerReplicas
from bot.plan.shared_blocks import SharedBlocks
from bot.records import Stored


@dataclass
class Targets:
    """The parameters of one base as one adapter names them. `locations`: of those that were asked for (`locate`)."""

    settings: LoraSettings
    names: Names
    stored: Mapping[str, Stored]
    replicas: LayerReplicas
    blocks: SharedBlocks = field(default_factory=SharedBlocks)
    locations: Locations = field(init=False)

    def locate(self, parameters: Iterable[str], sizes: Mapping[str, tuple[int, int]]) -> None:
        """Find all parameters at once (`sizes`: see `Names.find`). Raises Ambiguous."""
        names = list(dict.fromkeys(self.replicas.in_base(name)[0] for name in parameters))
        self.locations = self.names.find(names, sizes)

    def parameter_of(self, pair: LoraPair) -> str:
        """The parameter that a pair changes: a Linear's weight, or one of the stacked parameters of an expert module."""
        inner = self.replicas.in_base(pair.module)[0]
        targeted = [name for name in self.names.expert_parameters(inner) if self.is_parameter(f"{inner}.{name}")]
        at = len(targeted) - 1 - pair.depth
        return f"{pair.module}.{targeted[at]}" if 0 <= at < len(targeted) else f"{pair.module}.weight"

    def is_resized(self, pair: LoraPair, placement: Placement) -> bool:
        """Whether it would fit the embedding or the head, but for the number of rows: a vocabulary of another size."""
        a, b, stored = pair.a.shape, pair.b.shape, self.stored[placement.rectangles[0].key].shape
        rows, width = (a[1:], b[:1]) if pair.kind == "embedding" else (b[:1], a[1:])
        ours = placement.rectangles[0].key in (self.names.embedding, self.names.head)
        return ours and width == stored[1:] and rows != stored[:1]

    def is_parameter(self, parameter: str) -> bool:
        return any(parameter == name or parameter.endswith(f".{name}") for name in self.settings.parameters)

    def placement_of(self, parameter: str) -> tuple[Placement | None, int | None]:
        """Where it lies, and the number of its layer in the output."""
        name, new = self.replicas.in_base(parameter)
        return self.locations.placements.get(name), new

    @property
    def shared_code(self) -> str:
        """Where the forward pass scales by the tie flag, one that is untied would not do either."""
        return "tied-scaling" if self.names.scaled_by_tying else "shared-weight"

    def is_shared(self, parameter: str, placement: Placement | None) -> bool:
        """Whether the adapter changes one name of a weight that others go by too. Of a block at several depths each has its own
        weight, where it is known which they are."""
        own = parameter.replace(".base_layer.", ".")  # PEFT wraps tokens twice where an embedding has several names
        names = self.names.names_of_one(self.replicas.in_base(own)[0])
        return len(names) > 1 or (len(names) == 1 and (placement is None or not self.blocks.known))

    def is_head(self, parameter: str) -> bool:
        head = self.names.head
        return head is not None and any(
            a == b or a.endswith(f".{b}") for a, b in ((parameter, head), (head, parameter))
        )

    def is_tied_head(self, parameter: str) -> bool:
        return self.names.tied and self.is_head(parameter)
