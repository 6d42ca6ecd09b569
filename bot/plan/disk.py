"""Whether base and result lie on this disk as a whole, or one weight file after the other does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from bot.budget import readable
from bot.checkpoint.shards import OutputLayout
from bot.records import Budget, Machine, Options, Quantize, Refusal, Shard, ShardCosts, Source, Sources
from bot.shard_needs import IN_WORK, costs, shard_needs

# Bytes beside the weight files: the adapter, configs and tokenizer, and what the Hub's client keeps of a transfer. With what is in
# work of the weight files they are 100 MB, where the adapter is not a large one.
BESIDE = 100_000_000 - IN_WORK
KEPT = 20_000_000  # of that, by the Hub's client and for reports, whatever the size of the others


@dataclass(frozen=True, kw_only=True)
class DiskChoice:
    """`costs`: what it takes by weight files; None where that cannot be. `refusals`: what the machine lacks for the way chosen."""

    kind: Literal["whole", "shards"]
    costs: ShardCosts | None
    refusals: Sequence[Refusal] = field(default=())


def choose_disk(
    sources: Sources,
    options: Options,
    layout: OutputLayout,
    engine: str,
    lacking: Sequence[Refusal],
    machine: Machine,
    beside: int,
    *,
    publishing: bool,
) -> DiskChoice:
    """The way that --disk asks for; `auto` takes the whole where the disk holds it. `lacking`: what the machine lacks for that;
    `beside`: what `beside_weights` says."""
    written = any(isinstance(op, Quantize) for op in layout.ops)
    why_not = _why_not(options, engine, written, publishing)
    here = frozenset(entry.name for entry in sources.base.files if entry.here)
    needs = shard_needs(layout.ops, layout.shards, sources.base.headers)
    taken = None if why_not else costs(needs, here, copies=sources.base.repo is not None)
    if taken is not None:
        taken = replace(taken, disk=taken.disk + beside)
    if taken is None:
        if options.disk != "shards":
            return DiskChoice(kind="whole", costs=None, refusals=lacking)
        refusal = Refusal(code="disk-shards", reason=f"{why_not}, so that it cannot be made one weight file after the other.",
                          remedy="Leave --disk at auto.")  # fmt: skip
        return DiskChoice(kind="whole", costs=None, refusals=[*lacking, refusal])
    others = [refusal for refusal in lacking if refusal.code != "disk"]
    helps = len(others) < len(lacking) and taken.disk <= machine.disk_free
    if options.disk == "whole" or (options.disk == "auto" and not helps):
        return DiskChoice(kind="whole", costs=taken, refusals=lacking)
    if taken.disk > machine.disk_free:
        reason = f"One weight file after the other needs {readable(taken.disk)} of disk and {readable(machine.disk_free)} are free."
        remedy = "Free some, or point --output and HF_HOME at a larger disk."
        others.append(Refusal(code="disk", reason=reason, remedy=remedy, exit_code=6))
    return DiskChoice(kind="shards", costs=taken, refusals=others)


def beside_weights(adapters: Iterable[Source], shards: Iterable[Shard], budget: Budget) -> int:
    """Bytes of all that is no weight file of base or result. `adapters`: those that were given, and what they are combined to;
    `shards`: the result's weight files, of all that `budget` has it write."""
    absent = sum(
        entry.size
        for source in adapters
        for entry in source.files
        if entry.name in {header.file for header in source.headers} and not entry.here
    )
    written = budget.output - sum(shard.size for shard in shards)  # and the same in the cache
    return max(BESIDE, absent + 2 * written + KEPT)


def _why_not(options: Options, engine: str, written: bool, publishing: bool) -> str | None:
    """Why a merge has to lie on the disk as a whole; None where it need not. `written`: some of its weights are quantised anew."""
    if not publishing:
        return "The result stays on this disk"
    if options.verify == "full":
        return "--verify full runs the whole model"
    if written or options.quantize not in ("none", "same"):
        return "A result that is stored quantised is measured as a whole"
    if options.base_weights == "simulate-nf4":
        return "The weights that simulate-nf4 makes are made of the whole base"
    if engine != "streaming":
        return f"The {engine} engine reads the whole base"
    return None
