"""Where several adapters join the ordinary way: the sources and the plan of a merge that combines them first."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from bot.budget import machine_refusals
from bot.combine import Predicted, notation, predict
from bot.records import Budget, Combination, FileEntry, Json, Machine, Plan, Source, Sources, Stored

STARTED = 100 << 20  # bytes of this program with numpy
COPIES = 4  # of a module's float64 matrices while they are combined


def joined(sources: Sources, asked: Combination | None) -> Predicted | None:
    """The combined adapter; None where one adapter is merged as it is. Raises Usage for what cannot be meant."""
    how = notation.settle(asked, len(sources.adapters))
    return predict(sources.adapters, how) if how is not None else None


def as_one(sources: Sources, predicted: Predicted | None) -> Sources:
    """The sources with the combined adapter as their only one."""
    return sources if predicted is None else replace(sources, adapter=predicted.source, more=())


def retold(plan: Plan, predicted: Predicted, asked: Combination | None, pins: Iterable[Json], machine: Machine) -> Plan:
    """A plan for the combined adapter as the plan for the given ones: what they are, what they cost, what forbids it."""
    budget = _budget(plan, predicted)
    kept = [refusal for refusal in plan.refusals if refusal.code not in ("disk", "memory")]
    if predicted.refusals:  # then the combined adapter is not all there, and what it lacks is no fault of its own
        kept = [refusal for refusal in kept if refusal.code != "matches-nothing"]
    unused = [f"--{name.replace('_', '-')} has no use for {predicted.how.kind}, and is left out."
              for name in notation.without_use(asked, predicted.how)]  # fmt: skip
    return replace(
        plan,
        adapters=tuple(pins),
        combination=notation.to_json(predicted.how),
        refusals=(*predicted.refusals, *kept, *machine_refusals(budget, machine)),
        notes=(*plan.notes, *predicted.notes, *unused),
        budget=budget,
    )


def _budget(plan: Plan, predicted: Predicted) -> Budget:
    """The given adapters are downloaded, the combined one is written beside them."""
    download = sum(entry.size for one in predicted.adapters for entry in _weights(one) if not entry.here)
    written = predicted.outline.header.file_size
    pairs = [[one.pairs[slot.module] for one in predicted.given if slot.module in one.pairs]
             for slot in predicted.outline.slots]  # fmt: skip
    largest = max((sum(_numbers(pair.a) + _numbers(pair.b) for pair in found) for found in pairs), default=0)
    return replace(
        plan.budget,
        download=plan.budget.download + download,
        disk=plan.budget.disk + download + written,
        peak_memory=max(plan.budget.peak_memory, STARTED + COPIES * 8 * largest),
    )


def _weights(source: Source) -> list[FileEntry]:
    names = {header.file for header in source.headers}
    return [entry for entry in source.files if entry.name in names]


def _numbers(stored: Stored) -> int:
    return math.prod(stored.shape)
