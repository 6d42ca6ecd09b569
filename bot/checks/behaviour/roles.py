"""What the worker does with models: run them, and compare their outputs with the unmerged model's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bot.checks.behaviour import measure
from bot.checks.behaviour.answers_text import ask
from bot.checks.behaviour.control import SMALL, How, changed, size_of, stand_in, watched
from bot.checks.behaviour.device import DEVICES
from bot.checks.behaviour.expert_choices import is_mixture
from bot.checks.behaviour.forward_counts import FORWARDS
from bot.checks.behaviour.job import (
    Answer,
    ComparisonAnswer,
    Distance,
    LoadReport,
    MergedAnswer,
    OutputSums,
    ReferenceAnswer,
    Replies,
    Stopped,
    Usage,
    WorkerJob,
)  # fmt: skip
from bot.checks.behaviour.load_models import BASE, UNMERGED, load_folder, load_tuned, ready_to_run, trying, why_no_code
from bot.checks.behaviour.nearest import merge_to_nearest, quantised_again
from bot.checks.behaviour.probe import Probe
from bot.checks.behaviour.probe_inputs import build_inputs, has_tokenizer, load_tokenizer, text_windows
from bot.checks.behaviour.saved_outputs import TEXT, compare, save_again, save_reference, sums
from bot.checks.behaviour.tokenizer import compare_tokenizers
from bot.checks.reading.folders import read_json
from bot.checks.reading.model_skeleton import build, model_class
from bot.records import Json

COMPLAINTS = ("newly initialized", "not initialized from", "MISSING", "UNEXPECTED", "MISMATCH")


class UnmergedModel:
    """PEFT's unmerged model, which others stand in for by turns. After each it is whole again: small ones are put back,
    of a large one there is never a second copy of the weights, and it is loaded anew."""

    def __init__(self, job: WorkerJob, tuned: Any) -> None:
        self._job, self._tuned, self._off, self._spoilt = job, tuned, False, False
        self.plain = tuned.get_base_model()
        self._draws = 0
        self.small = size_of(self.plain) <= SMALL
        self.probe = Probe()

    def switched_off(self) -> Any:
        """The base model inside, with PEFT's layers asleep from here on."""
        if self._spoilt:
            self._tuned = self.plain = None  # the one is let go before the other is loaded
            self._tuned, self._off, self._spoilt = load_tuned(self._job), False, False
            self.plain = self._tuned.get_base_model()
        if not self._off:
            self._tuned.base_model.disable_adapter_layers()
            self._off = True
        return self.plain

    def far(self, how: How) -> list[Distance]:
        """How far a stand-in lies from the reference."""
        with self._standing_in(how):
            return compare(self.plain, self._job, self.probe if how == "control" else None)

    def clamp(self) -> None:
        """The exact merge, of which only what is too large for the storage dtype changes, becomes the reference."""
        with self._standing_in("clamped"):
            save_again(self.plain, self._job)

    @contextmanager
    def _standing_in(self, how: How) -> Iterator[None]:
        replaced = stand_in(self.switched_off(), self._job, how, self._draws, keep=self.small)
        self._draws += how == "control"
        yield
        replaced.restore()
        self._spoilt = not self.small


def reference(job: WorkerJob) -> Answer:
    """The base with the adapter beside it: its outputs are saved, then the base and the stand-ins are held to them."""
    tuned = load_tuned(job)
    return tuned if isinstance(tuned, Stopped) else reference_of(job, [tuned])


def reference_of(job: WorkerJob, only: list[Any]) -> ReferenceAnswer:
    """The same of a model that is loaded: `only` is emptied, so that a large one can be let go of."""
    unmerged = UnmergedModel(job, only.pop())
    kind, uncalled = _first_run(unmerged, job)
    plain, thorough, measured = unmerged.plain, unmerged.small or job.thorough, dict[str, OutputSums]()
    if job.usages is not None:
        save_reference(plain, text_windows(plain, job), job, TEXT)
        measured["as-trained"] = sums(plain, job, itself=True)
    layers, mixture = sorted(changed(plain)), is_mixture(plain)
    unmerged_replies = ask(plain, job)
    del plain  # a large model is loaded anew, and never twice in memory
    _expect(job, 2 + job.clamps + (2 + job.draws if thorough else 1))
    exact = unmerged.far("exact") if thorough else None
    if job.clamps:
        unmerged.clamp()
    base = compare(unmerged.switched_off(), job)
    base_replies = ask(unmerged.plain, job)
    if job.usages is not None:
        measured["base"] = sums(unmerged.plain, job)
    nearest = unmerged.far("nearest") if thorough else None
    controls = [unmerged.far("control") for _ in range(job.draws if thorough else 1)]
    return ReferenceAnswer(
        kind=kind, thorough=thorough, mixture=mixture, layers=layers, uncalled=uncalled, base=base, controls=controls,
        exact=exact, nearest=nearest, measured=measured, probe=unmerged.probe.distances("control"), device=DEVICES.names,
        unmerged_replies=unmerged_replies, base_replies=base_replies,
    )  # fmt: skip


def _expect(job: WorkerJob, models: int) -> None:
    """So many models are each asked every prompt."""
    FORWARDS.expect(models * job.prompts)


def _first_run(unmerged: UnmergedModel, job: WorkerJob) -> tuple[str, list[str]]:
    """(the kind of its outputs, which are saved; the parameters of layers that were never called). Raises CannotRun."""
    plain = unmerged.plain
    inputs = build_inputs(plain, job)
    _expect(job, 3)  # itself, the base and one control, if not more
    with trying(UNMERGED):
        try:
            with watched(plain) as uncalled:
                kind = save_reference(plain, inputs, job)
        except Exception:  # whose fault is it? The base alone answers that
            with trying(BASE):
                measure.outputs(unmerged.switched_off(), inputs[0], job.compute)
            raise
    return kind, sorted(uncalled)


def comparison(job: WorkerJob) -> Answer:
    """Other ways to use base and adapter, each held to the unmerged model on the same texts."""
    usages = job.usages or ()
    _expect(job, len(usages))
    measured, replies = dict[str, OutputSums](), Replies()
    for usage in usages:
        if usage.merge:
            measured[usage.id] = _measure(usage, job)
        else:  # the result itself
            model = ready_to_run(load_folder(usage.folder, job)[0], job)
            measured[usage.id], replies = sums(model, job), ask(model, job)
            del model
    return ComparisonAnswer(measured=measured, replies=replies)


def _measure(usage: Usage, job: WorkerJob) -> OutputSums:
    tuned = load_tuned(replace(job, base=usage.folder))
    assert not isinstance(tuned, Stopped), tuned
    plain = tuned.get_base_model()
    requantised = quantised_again(plain, usage.requantize, _skeleton(usage.folder, job)) if usage.requantize else {}
    with tuned.disable_adapter():
        merge_to_nearest(plain, getattr(torch, job.storage), requantised)
        return sums(plain, job)


def _skeleton(folder: Path, job: WorkerJob) -> Any:
    trust = job.trusts(folder)
    return build(folder, model_class(read_json(folder / "config.json") or {}, trust), trust)


def merged(job: WorkerJob) -> Answer:
    """The folder as its users load it: what the loader said, and how far its outputs are from the reference's."""
    loaded = load_merged(job)
    if isinstance(loaded, Stopped):
        return loaded
    model, loads = loaded
    return run_merged(job, ready_to_run(model, job), loads, (job.work / "reference.json").exists())


def load_merged(job: WorkerJob) -> tuple[Any, LoadReport] | Stopped:
    """The merged model as its users load it, and what the loader said."""
    complaints = _Complaints()
    logging.getLogger("transformers").addHandler(complaints)
    model, loading = _load_merged(job)
    if model is None:
        is_unrunnable = str(job.folder) not in job.distrusted
        return Stopped(status="skip", why=why_no_code(job.folder, job), unrunnable=is_unrunnable)
    logging.getLogger("transformers").removeHandler(complaints)
    return model, load_report(job, model, loading, complaints.lines)


def run_merged(job: WorkerJob, model: Any, loads: LoadReport, is_measured: bool) -> MergedAnswer:
    """How far its outputs are from the reference's, where that ran."""
    runs = not job.quantised and is_measured
    _expect(job, 1)
    probe = Probe()
    distances = compare(model, job, probe, "merged") if runs else None
    replies = ask(model, job) if runs else Replies()
    return MergedAnswer(
        loads=loads, distances=distances, probe=probe.distances("merged"), device=DEVICES.names, replies=replies
    )


def _load_merged(job: WorkerJob) -> tuple[Any, Json]:
    """The folder, loaded. Raises CannotRun where it cannot be, and a base whose form it keeps cannot either."""
    try:
        return load_folder(job.folder, job)
    except Exception:
        if job.same_form is not None:
            with trying("the base, as it is stored,"):
                load_folder(job.same_form, job)
        raise


def load_report(
    job: WorkerJob, model: Any, loading: Json, complaints: list[str], by_layers: bool = False
) -> LoadReport:
    """What the loader said, and how the folder's tokenizer compares. `loading`: from_pretrained's own report."""
    tokenizer, tokens, remarks = "none", list[str](), list[str]()
    if has_tokenizer(job.folder):
        own = load_tokenizer(job.folder, job.trusts(job.folder))
        tokenizer = type(own).__name__
        tokens, remarks = compare_tokenizers(own, job)
    return LoadReport(
        missing=sorted(loading["missing_keys"]), unexpected=sorted(loading["unexpected_keys"]),
        mismatched=sorted(str(key) for key in loading["mismatched_keys"]), complaints=complaints,
        model_class=type(model).__name__, tokenizer=tokenizer, tokens=tokens, remarks=remarks, by_layers=by_layers,
    )  # fmt: skip


ROLES: dict[str, Callable[[WorkerJob], Answer]] = {"reference": reference, "merged": merged, "comparison": comparison}


class _Complaints(logging.Handler):
    """Keeps what transformers complains about while it loads."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if any(word in text for word in COMPLAINTS):
            self.lines.append(text[:300])
