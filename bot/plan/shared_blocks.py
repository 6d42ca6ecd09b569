"""A block that stands at several depths and is stored once: each depth gets a tensor of its own where the adapter changes one.

PEFT trains a change for each depth. transformers loads what lies in the checkpoint under each name, and ties only what is
missing there, so that config.json stays as it is: the weights that nothing changes stay one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from bot.budget import readable
from bot.checkpoint.depths import depths_of, unstored_names
from bot.checkpoint.shards import stored_targets
from bot.plan.claims import KeyClaims
from bot.records import Json, Op, Refusal, Stored


@dataclass(frozen=True, kw_only=True)
class SharedBlocks:
    """`names`: base key → the names of the same weight at other depths, for which the base has no tensor. `known`: whether it
    is known which depths share a block."""

    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    known: bool = False

    @classmethod
    def of(cls, stored: Mapping[str, Stored], config: Json, replicated: bool) -> SharedBlocks:
        """Of a base. `replicated`: the adapter stacks its layers anew, which other depths would come of."""
        if replicated:
            return cls()
        return cls(names=unstored_names(stored, config), known=bool(depths_of(config)))

    def with_own(self, stored: Mapping[str, Stored]) -> dict[str, Stored]:
        """The base's tensors as if each depth had its own."""
        own = {name: replace(stored[key], key=name) for key, names in self.names.items() for name in names}
        return {**stored, **own}

    def to_write(self, claims: KeyClaims, untied: bool) -> dict[str, tuple[str, ...]]:
        """The part of `names` that gets tensors: where some depth changes, all of them; all, where the config unties."""
        claimed = {*claims.patches, *claims.rows, *claims.values}
        return {key: names for key, names in self.names.items() if untied or not claimed.isdisjoint((key, *names))}


@dataclass(frozen=True, kw_only=True)
class WrittenPerDepth:
    """What is written more than the base holds: `weights` of blocks that it stores once, as `tensors` for their other depths,
    which take this many `bytes`."""

    weights: int
    tensors: int
    bytes: int

    @property
    def sentence(self) -> str:
        """For the plan."""
        return (
            f"The base stores {self.weights} weights once that stand at several depths, and the adapter makes the depths different: "
            f"they are written once for each depth, {self.tensors} tensors and {readable(self.bytes)} more, which a "
            "reader that shares such a block by construction, as engines other than transformers may, would not see."
        )


def quantize_refusals(written: Mapping[str, tuple[str, ...]], form: str) -> list[Refusal]:
    """Of a form that the whole result would be stored in: which depths of a block bitsandbytes then converts on loading depends
    on what is tied at that moment."""
    if not written or form in ("auto", "none", "same"):
        return []
    reason = f"A block of the base is written once for each depth, and {form} of such a block cannot be proven to load."
    return [Refusal(code="quantize-blocks", reason=reason, remedy="Leave --quantize at none.")]


def written_per_depth(plan_of: Mapping[str, tuple[str, ...]], ops: Iterable[Op]) -> WrittenPerDepth | None:
    """`plan_of`: what `to_write` says; `ops`: with the places of their targets. None where nothing is written more."""
    new = {name for names in plan_of.values() for name in names}
    if not new:
        return None
    sizes = [target.stop - target.start for op in ops if op.target.key in new for target in stored_targets(op)]
    return WrittenPerDepth(weights=len(plan_of), tensors=len(new), bytes=sum(sizes))
