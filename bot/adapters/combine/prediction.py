"""The sources and the plan of a merge that first combines several adapters."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from bot.adapters.combine import Predicted, combine, notation, predict
from bot.adapters.lora_config import stated_class
from bot.assets import read_json
from bot.budget import machine_refusals
from bot.checkpoint.families import part_of_class
from bot.records import Budget, Combination, FileEntry, Json, Machine, Plan, Refusal, Source, Sources

STARTED = 100 << 20  # bytes of this program with numpy
COPIES = 8  # of a module's float64 matrices while they are combined: two modules at a time


def predict_combined(sources: Sources, asked: Combination | None) -> Predicted | None:
    """The combined adapter; None where one adapter is merged as it is. Raises Usage for settings that make no sense."""
    how = notation.with_defaults(asked, len(sources.adapters))
    if how is None:
        return None
    predicted = predict(sources.adapters, how)
    return replace(predicted, refusals=(*predicted.refusals, *_unlike_parts(sources.base, predicted)))


def _unlike_parts(base: Source, predicted: Predicted) -> list[Refusal]:
    """The refusal of adapters that say they were trained on different parts of the base, which may have equal names."""
    config = read_json(base, "config.json")
    parts = {part_of_class(config, stated_class(adapter.config)) for adapter in predicted.adapter_inputs}
    if len(parts) < 2:
        return []
    listed = ", ".join(sorted(part or "the whole of it" for part in parts))
    reason = f"The adapters were trained on different parts of the base: {listed}."
    return [Refusal(code="unlike-parts", reason=reason, remedy="Merge them one after the other.")]


def with_combined_adapter(sources: Sources, predicted: Predicted | None) -> Sources:
    """The sources with the combined adapter as their only one."""
    return sources if predicted is None else replace(sources, adapter=predicted.source, more=())


def plan_for_all_adapters(
    plan: Plan, predicted: Predicted, asked: Combination | None, pins: Iterable[Json], machine: Machine
) -> Plan:
    """The plan for the combined adapter, told as a plan for all of them: their pins, their cost, and what forbids it."""
    budget = _budget(plan, predicted)
    kept = [refusal for refusal in plan.refusals if refusal.code not in ("disk", "memory")]
    if predicted.refusals:  # the combined adapter is then incomplete, and lacks modules for that reason only
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


@contextmanager
def combined_in(home: Path, predicted: Predicted, folders: Sequence[Path]) -> Iterator[Path]:
    """The combined adapter in a folder below `home`, for as long as the block runs.

    What killed runs left there is removed first: their locks ended with them.
    """
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _lock(home, wait=True):  # no other run removes a folder that is made here and not locked yet
            for old in home.glob("combined-*"):
                with _lock(old) as alone:
                    if alone:
                        shutil.rmtree(old, ignore_errors=True)
            room = Path(tempfile.mkdtemp(dir=home, prefix="combined-"))
            stack.enter_context(_lock(room))
        stack.callback(shutil.rmtree, room, ignore_errors=True)
        yield combine(predicted, folders, room / "adapter")


@contextmanager
def _lock(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the folder's lock; without `wait` only if nobody else does, which is what is yielded."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _budget(plan: Plan, predicted: Predicted) -> Budget:
    """The adapters are downloaded, and the combined one is written to disk."""
    download = sum(entry.size for adapter in predicted.adapters for entry in _weights(adapter) if not entry.here)
    by_module = [[adapter.pairs[slot.module] for adapter in predicted.adapter_inputs if slot.module in adapter.pairs]
                 for slot in predicted.outline.slots]  # fmt: skip
    sizes = [sum(math.prod(pair.a.shape) + math.prod(pair.b.shape) for pair in pairs) for pairs in by_module]
    return replace(
        plan.budget,
        download=plan.budget.download + download,
        disk=plan.budget.disk + download + predicted.outline.header.file_size,
        peak_memory=max(plan.budget.peak_memory, STARTED + COPIES * 8 * max(sizes, default=0)),
    )


def _weights(source: Source) -> list[FileEntry]:
    names = {header.file for header in source.headers}
    return [entry for entry in source.files if entry.name in names]
