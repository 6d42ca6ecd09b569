"""The roles of the worker for a model that is larger than the memory: the same models, run layer by layer.

Every prompt of every model goes through the network at once, module by module (bot/checks/behaviour/in_step.py). A module's
weights are read when all have come to it, are turned into what each of the models has in their place, and are let go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bot.checks.behaviour import measure
from bot.checks.behaviour.control import SMALL, changed, idling, is_remade, moved_by, size_of
from bot.checks.behaviour.device import DEVICES
from bot.checks.behaviour.empty_model import empty_model, is_empty, prepared
from bot.checks.behaviour.expert_choices import Choices, is_mixture
from bot.checks.behaviour.forward_counts import FORWARDS
from bot.checks.behaviour.job import (
    Answer,
    CannotRun,
    Distance,
    MergedAnswer,
    ModuleDistance,
    ReferenceAnswer,
    Replies,
    Stopped,
    WorkerJob,
)
from bot.checks.behaviour.layered_model import (
    BASE_MODEL,
    MERGED_MODEL,
    UNMERGED_MODEL,
    Inputs,
    LayeredModel,
    Question,
    Variation,
)
from bot.checks.behaviour.load_models import BASE, UNMERGED, put_adapter, trying, why_no_code
from bot.checks.behaviour.probe import ROOM, Probe, Variant, modules_of
from bot.checks.behaviour.probe_inputs import build_inputs
from bot.checks.behaviour.roles import load_report
from bot.checks.behaviour.saved_outputs import Saved, read_saved, saved_at, write_saved
from bot.checks.behaviour.stored_weights import StoredWeights
from bot.checks.expected.float64_mode import mend
from bot.checks.expected.probed_methods import reads_base
from bot.checks.reading.folders import read_json
from bot.checks.reading.model_skeleton import NEEDS_CODE

UNASKED = "what runs layer by layer writes no answers"
TOGETHER = 8  # prompts that go through the network at once


def reference(job: WorkerJob) -> Answer:
    """As the role of that name, layer by layer. Raises CannotRun for what cannot be run so."""
    if job.trust or job.held_to != "unmerged":
        raise CannotRun("layer by layer, neither a repo's own code is run nor are numbers that were cut off looked at")
    if reads_base(read_json(job.adapter / "adapter_config.json") or {}):
        raise CannotRun("layer by layer, PEFT has no base to make this method's layers of")
    with trying(BASE):
        model = empty_model(job.base, job.labels, job.model_class)
    if model is None:
        return Stopped(status="skip", why=NEEDS_CODE, unrunnable=True)
    with trying(BASE):
        weights = _weights(job, job.base, model)
    tuned = put_adapter(model, job)
    if isinstance(tuned, Stopped):
        return tuned
    prepared(tuned, job)
    mend(tuned, wide=job.compute == "float64")
    _require_own_numbers(tuned)
    with trying(UNMERGED):
        return _Reference(LayeredModel(tuned.get_base_model(), weights, job)).answer()


class _Reference:
    """The unmerged model, the base and the stand-ins, all in step."""

    def __init__(self, layered: LayeredModel) -> None:
        self.layered, self.job, self.plain = layered, layered.job, layered.model
        self.thorough = size_of(self.plain) <= SMALL or self.job.thorough
        draws = range(self.job.draws if self.thorough else 1)
        self.controls = [Variation(how="control", draw=draw) for draw in draws]
        others = [Variation(how=how) for how in ("exact", "nearest")] if self.thorough else []
        self.variations = [UNMERGED_MODEL, BASE_MODEL, *others, *self.controls]
        self.distances: dict[Variation, dict[int, Distance]] = {each: {} for each in self.variations}
        self.wanted: dict[int, Tensor] = {}
        self.kind = ""

    def answer(self) -> ReferenceAnswer:
        layered = self.layered
        self.inputs = inputs = build_inputs(self.plain, self.job)
        groups = [range(low, min(low + TOGETHER, len(inputs))) for low in range(0, len(inputs), TOGETHER)]
        FORWARDS.expect(len(groups) * len(layered.modules))
        self._expect_states(inputs)
        with idling(self.plain) as idle:
            for group in groups:
                questions = []
                made = {number: Choices() for number in group}
                for variation in self.variations:
                    for number in group:
                        choices = made[number] if variation == UNMERGED_MODEL else Choices(made[number].made)
                        questions.append(layered.question(number, inputs[number], variation, choices))
                layered.ask(questions, self._finish)
                self.wanted.clear()
        uncalled = self._uncalled(idle)
        by_number = {each: [values[number] for number in sorted(values)] for each, values in self.distances.items()}
        exact, nearest = (by_number.get(Variation(how=how)) for how in ("exact", "nearest"))
        return ReferenceAnswer(
            kind=self.kind, thorough=self.thorough, mixture=is_mixture(self.plain), layers=sorted(changed(self.plain)),
            uncalled=sorted(uncalled), base=by_number[BASE_MODEL], controls=[by_number[each] for each in self.controls],
            exact=exact, nearest=nearest, measured={}, probe=_summed(layered.probes, "control"), device=DEVICES.names,
            base_replies=Replies(why_not=UNASKED) if self.job.asks else Replies(),
        )  # fmt: skip

    def _expect_states(self, inputs: list[Inputs]) -> None:
        """Probe as many prompts as there is room for what they give."""
        tokens = max(value.numel() for value in inputs[0].values())
        width = int(getattr(self.plain.config.get_text_config(), "hidden_size", 0) or 1024)
        size = tokens * width * len(self.layered.modules) * (8 if self.layered.wide else 4)
        self.layered.probes = {number: Probe() for number in range(min(len(inputs), max(1, ROOM // size)))}

    def _finish(self, question: Question, kind: str, output: Tensor) -> None:
        number, job = question.number, self.job
        probe = self.layered.probes.get(number)
        if question.variation == UNMERGED_MODEL:
            if not bool(torch.isfinite(output).all()):
                raise CannotRun("layer by layer, the unmerged model's outputs are NaN or infinite")
            self.kind, self.wanted[number] = kind, output
            states = dict(probe.states) if probe else {}
            saved = Saved(wanted=output, inputs=self.inputs[number], choices=question.choices.made, states=states)
            write_saved(saved_at(job, number), saved)
        else:
            held = question.choices if question.choices.count or question.choices.free else None
            distance = measure.distance(kind, self.wanted[number], output, held)
            self.distances[question.variation][number] = distance
        if probe and kind == "kl" and question.variation.how in ("unmerged", "control"):
            probe.record(question.variation.how, self.layered.head, output)

    def _uncalled(self, idle: set[str]) -> set[str]:
        uncalled: set[str] = set()
        for name, module in self.layered.modules.items():
            below = {path for path in idle if f"{path}.".startswith(f"{name}.")}
            if below:
                with self.layered.weights.loaded(module, name):
                    uncalled |= moved_by(module, below, name)
        return uncalled


def merged(job: WorkerJob) -> Answer:
    """As the role of that name, layer by layer."""
    model = empty_model(job.folder)
    if model is None:
        is_unrunnable = str(job.folder) not in job.distrusted
        return Stopped(status="skip", why=why_no_code(job.folder, job), unrunnable=is_unrunnable)
    weights = _weights(job, job.folder, model)
    loads = load_report(job, model, weights.report, [], by_layers=True)
    runs = not (loads.missing or loads.mismatched) and (job.work / "reference.json").exists()
    if not runs:
        return MergedAnswer(loads=loads, distances=None)
    layered = LayeredModel(prepared(model, job), weights, job)
    distances: dict[int, Distance] = {}
    saved = dict(enumerate(read_saved(job)))
    for number, each in saved.items():
        if each.states:
            layered.probes[number] = Probe()
            layered.probes[number].begin(each.states)

    def finish(question: Question, kind: str, output: Tensor) -> None:
        number, probe = question.number, layered.probes.get(question.number)
        held = question.choices if saved[number].choices else None
        distances[number] = measure.distance(kind, saved[number].wanted, output, held)
        if probe and kind == "kl":
            probe.record("unmerged", layered.head, saved[number].wanted)
            probe.record("merged", layered.head, output)

    FORWARDS.expect(len(layered.modules) * -(-len(saved) // TOGETHER))
    for low in range(0, len(saved), TOGETHER):
        group = {number: saved[number] for number in range(low, min(low + TOGETHER, len(saved)))}
        layered.ask(
            [layered.question(number, each.inputs, MERGED_MODEL, Choices(each.choices)) for number, each in group.items()],
            finish,
        )  # fmt: skip
    ordered = [distances[number] for number in sorted(distances)]
    return MergedAnswer(loads=loads, distances=ordered, probe=_summed(layered.probes, "merged"), device=DEVICES.names)


LAYERED: dict[str, Callable[[WorkerJob], Answer]] = {"reference": reference, "merged": merged}


def _weights(job: WorkerJob, folder: Any, model: Any) -> StoredWeights:
    """The folder's weights, with the model's few that are in none of its modules, and its buffers, read."""
    weights = StoredWeights(folder, model, getattr(torch, job.compute), job.device)
    modules = modules_of(model)
    if not modules:
        raise CannotRun("layer by layer, a model has to have a list of layers")
    outside = [name for name, _ in model.named_parameters() if not any(name.startswith(f"{each}.") for each in modules)]
    if outside and any(is_remade(job, name) for name in outside):
        raise CannotRun(f"layer by layer, {outside[0]} is in no layer, and rounded")
    weights.fill([*outside, *(name for name, _ in model.named_buffers() if name in weights.skeleton.known)])
    return weights


def _require_own_numbers(tuned: nn.Module) -> None:
    """PEFT's own parameters come from the adapter. One that was made of the base's is NaN, as those are yet."""
    for name, weight in tuned.named_parameters():
        if not is_empty(weight) and weight.is_floating_point() and bool(weight.isnan().any()):
            raise CannotRun(f"layer by layer, PEFT has no base to make {name} of")


def _summed(probes: dict[int, Probe], variant: Variant) -> list[ModuleDistance]:
    """All prompts together."""
    sums: dict[str, ModuleDistance] = {}
    for probe in probes.values():
        for row in probe.distances(variant):
            before = sums.get(row.module, ModuleDistance(module=row.module, far=0.0, size=0.0))
            sums[row.module] = ModuleDistance(module=row.module, far=before.far + row.far, size=before.size + row.size)
    return list(sums.values())
