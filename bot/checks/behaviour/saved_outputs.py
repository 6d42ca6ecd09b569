"""What the unmerged model gave, kept in the job's folder, and how far other models lie from it on the same inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bot.checks.behaviour import measure
from bot.checks.behaviour.expert_choices import Choices
from bot.checks.behaviour.job import Distance, OutputSums, WorkerJob
from bot.checks.behaviour.probe import ROOM, Probe, Variant, head_of, listening

PROMPTS, TEXT = "reference", "text"  # what the reference's outputs were saved for


def save_reference(model: Any, inputs: list[dict[str, torch.Tensor]], job: WorkerJob, what: str = PROMPTS) -> str:
    """Keep its outputs, the inputs, which experts its routers chose, and of prompts its hidden states. Returns the kind of the
    outputs."""
    kind, probe, kept = "", Probe(), 0
    for number, prompt in enumerate(inputs):
        choices = Choices()
        probe.begin()
        with listening(model, probe, "unmerged") if what == PROMPTS and kept < ROOM else nullcontext():
            kind, output = measure.outputs(model, prompt, job.compute, choices)
        kept += sum(hidden.nbytes for hidden in probe.states.values())
        saved = Saved(wanted=output, inputs=prompt, choices=choices.made, states=probe.states)
        write_saved(saved_at(job, number, what), saved)
    return kind


def save_again(model: Any, job: WorkerJob) -> None:
    """Let another model be the reference on the same prompts, along the choices of the first."""
    probe = Probe()
    for number, saved in enumerate(read_saved(job, PROMPTS)):
        probe.begin()
        with listening(model, probe, "unmerged") if saved.states else nullcontext():
            _, output, _ = saved.asked_of(model, job)
        write_saved(saved_at(job, number), replace(saved, wanted=output, states=probe.states))


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What the reference gave (positions × vocabulary or hidden), to which inputs, by which of its routers' choices, and what
    each of its modules gave."""

    wanted: torch.Tensor
    inputs: dict[str, torch.Tensor]
    choices: list[torch.Tensor]
    states: dict[str, torch.Tensor]

    def asked_of(self, model: Any, job: WorkerJob) -> tuple[str, torch.Tensor, Choices | None]:
        """What another model gives to the same inputs, by the same choices."""
        held = Choices(self.choices) if self.choices else None
        kind, output = measure.outputs(model, self.inputs, job.compute, held)
        return kind, output, held


def write_saved(path: Path, saved: Saved) -> None:
    """For whoever is held to it."""
    inputs = {f"input.{name}": value for name, value in saved.inputs.items()}
    choices = {f"choice.{at:04}": value.contiguous() for at, value in enumerate(saved.choices)}
    # safetensors has no order of its own: the number is when the module ran.
    states = {f"state.{at:05}.{name}": saved.states[name].contiguous() for at, name in enumerate(saved.states)}
    save_file({"found": saved.wanted, **inputs, **choices, **states}, path)


def _read(path: Path) -> Saved:
    saved = load_file(path)
    inputs = {name.removeprefix("input."): value for name, value in saved.items() if name.startswith("input.")}
    choices = [saved[name] for name in sorted(saved) if name.startswith("choice.")]
    states = {name.split(".", 2)[2]: saved[name] for name in sorted(saved) if name.startswith("state.")}
    return Saved(wanted=saved["found"], inputs=inputs, choices=choices, states=states)


def read_saved(job: WorkerJob, what: str = PROMPTS) -> Iterator[Saved]:
    """What was kept, prompt by prompt."""
    for number in range(10_000):
        if not saved_at(job, number, what).exists():
            break
        yield _read(saved_at(job, number, what))


def sums(model: Any, job: WorkerJob, itself: bool = False) -> OutputSums:
    """Prompts and text together. `itself`: the model is the reference."""
    total = OutputSums()
    for what in (PROMPTS, TEXT):
        for saved in read_saved(job, what):
            # Routers are free here: the table says what whoever uses the model gets.
            kind, output = ("kl", saved.wanted) if itself else measure.outputs(model, saved.inputs, job.compute)
            distance = measure.distance(kind, saved.wanted, output)
            loss, predicted = measure.next_token_loss(model, saved.inputs, output)
            total.far += distance.far if not itself else 0.0
            total.positions += distance.positions
            total.agree += distance.agree
            total.loss += loss
            total.predicted += predicted
    return total


def compare(model: Any, job: WorkerJob, probe: Probe | None = None, variant: Variant = "control") -> list[Distance]:
    """How far a model's outputs lie from the reference's, prompt by prompt; and into `probe`, how far its modules do."""
    distances = []
    for saved in read_saved(job, PROMPTS):
        if probe is not None:
            probe.begin(saved.states)
        with listening(model, probe, variant) if probe is not None else nullcontext():
            kind, output, held = saved.asked_of(model, job)
        distances.append(measure.distance(kind, saved.wanted, output, held))
        if probe is not None and saved.states and kind == "kl":
            head = head_of(model)
            probe.record("unmerged", head, saved.wanted)
            probe.record(variant, head, output)
    return distances


def saved_at(job: WorkerJob, number: int, what: str = PROMPTS) -> Path:
    """The file of one prompt."""
    return job.work / f"{what}-{number:04}.safetensors"
