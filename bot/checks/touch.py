"""What a PEFT method does to one weight: the joint between the methods and the sweep over the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from bot.checks.checkpoint import Place


@dataclass(frozen=True, kw_only=True)
class Touch:
    """W' = W + scaling · left · right, in the layout in which W is stored.

    `flipped`: the two factors are stored transposed (left is rank × rows, right is columns × rank).
    """

    key: str
    module: str
    uses: tuple[str, ...]
    left: Place
    right: Place
    flipped: bool
    scaling: float


class Change(Protocol):
    """What a method says about one module, before it is known where that module's weight is stored."""

    @property
    def uses(self) -> tuple[str, ...]:
        """The adapter tensors it consists of."""

    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The shape its weight must have: in a Linear (out × in), in a Conv1D (in × out)."""

    def on(self, place: Place, transposed: bool) -> Touch:
        """The change to the weight stored there."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """An adapter, read by its method: a change per module, and a sentence per thing that could not be read.

    `carried`: weights of the base that PEFT saved along (it does so for embeddings); they must say what the base says.
    """

    name: str
    changes: Mapping[str, Change] = field(default_factory=dict)
    carried: Mapping[str, Place] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
