"""Runs the workers one after the other: the unmerged model, the merged one, and the ways to compare."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import bot
from bot.budget import verify_memory
from bot.checks.behaviour import device, quality
from bot.checks.behaviour.answers import Trial
from bot.checks.behaviour.forward_counts import read_forwards
from bot.checks.behaviour.job import (
    LENGTH,
    Answer,
    ComparisonAnswer,
    JointAnswer,
    MergedAnswer,
    ReferenceAnswer,
    Stopped,
    WorkerJob,
    read_answer,
)  # fmt: skip
from bot.checks.behaviour.prompt_rows import answer_rows
from bot.checks.expected.adapter_claims import adapter_claims
from bot.checks.folder.own_code import changed_since, foreign_code, state_of
from bot.checks.reading.checkpoint import FLOATS, TORCH_NAMES
from bot.errors import MachineTooSmall
from bot.events import Note, StepProgress
from bot.machine import bare_environment, look
from bot.records import Json, ProofDevice

if TYPE_CHECKING:
    from bot.checks.case import Case
    from bot.checks.subject import Subject

ROOM = 3 << 30  # bytes beside the two models: imports, logits of all variants, a layer's weights in float64
SPARE = 1.1  # of their size
TITLES = {
    "joint": "Running the unmerged and the merged model",
    "reference": "Running the unmerged model",
    "merged": "Running the merged model",
    "comparison": "Comparing the ways to use it",
}
UNCONFINED = (
    "This system cannot confine the model's own code (no Landlock): it runs in a process without secrets, no more."
)
KEEP_MEMORY = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
LOOK_EVERY = 0.5  # seconds
# Of a model with more merged weights than LARGE, the first look is a brief one, at so many tokens of each text: so many roundings
# average out that K of a merge scatters by a tenth (bench/RESULTS.md). What leaves a doubt is looked at again, at length.
LARGE, BRIEF = 1 << 26, 8


def hold_trial(case: Case) -> Trial:
    """The trial on the subject's device. What a GPU cannot run, if nobody insists on it, is run on the processor before anything
    is concluded from that. Raises MachineTooSmall where a GPU fails that somebody insists on."""
    wanted = case.subject.device
    trial = _trial_on(case, wanted)
    if wanted.kind == "cpu" or trial.failed is None:
        return trial
    if wanted.insists and trial.lost_device is not None:
        why = f"The GPU could not run the models: {trial.lost_device}."
        raise MachineTooSmall(why, remedy="Free it, update its driver, or pass --device cpu.")
    if wanted.insists or not wanted.fits_cpu:
        return trial
    why = trial.lost_device or trial.failed[:160]
    case.emit(Note(text=f"The GPU could not run the models: {why}. They run on the CPU instead."))
    return _trial_on(case, ProofDevice())


def _trial_on(case: Case, chosen: ProofDevice) -> Trial:
    """The reference first, then the merged folder: one model in memory at a time, none in this process. Where that leaves a
    doubt, once more with more prompts and more controls."""
    if case.unread is not None:
        stopped = Stopped(
            status="skip", why=f"the model is in a form that is not run here ({case.unread})", unrunnable=True
        )
        return Trial(reference=stopped, merged=stopped, expected=case.once(adapter_claims).layers)
    with tempfile.TemporaryDirectory(prefix=".adapter-merge-", dir=_parent_of_work(case)) as work:
        base = _base(case, Path(work))
        job = replace(_job(case, base, Path(work)), device=chosen.kind, gpus=chosen.gpus)
        if chosen.kind != "cpu":  # it was chosen to hold them, or a layer of them
            job = replace(job, running="layers" if chosen.by_layers else "whole")
        rows = _rows(case, base, job)
        job = replace(job, usages=None if rows is None else quality.usages(rows))
        first = trial = _hold(case, job)
        if not trial.settled:
            case.emit(Note(text="That leaves a doubt: once more, with more prompts and more controls."))
            trial = _hold(case, job.with_more())
        compared, stored = (None, None) if rows is None else _compared(case, job, rows, trial.reference)
    answers, unanswered = answer_rows(first, stored) if job.asks else ([], "")
    return replace(trial, comparison=compared, answers=tuple(answers), unanswered=unanswered)


def _hold(case: Case, job: WorkerJob) -> Trial:
    joint = replace(job, role="joint", held=_held(case, job))
    if _fits_twice(case, joint):
        answer = _work(case, joint)
        if surprise := _surprise(answer):
            case.emit(Note(text=f"The models cannot be run in one pass ({surprise}): they run one after the other."))
        if isinstance(answer, JointAnswer):
            expected = case.once(adapter_claims).layers
            return Trial(reference=answer.reference, merged=answer.merged, expected=expected)
    reference: Answer = Stopped(status="skip", why="not understood")
    if not case.once(adapter_claims).problems:
        reference = _work(case, replace(job, role="reference"))
    if isinstance(reference, Stopped):
        (job.work / "reference.json").unlink(missing_ok=True)
    lost = isinstance(reference, Stopped) and reference.of_device
    merged = reference if lost else _work(case, replace(job, role="merged"))
    assert isinstance(reference, ReferenceAnswer | Stopped)
    assert isinstance(merged, MergedAnswer | Stopped)
    return Trial(reference=reference, merged=merged, expected=case.once(adapter_claims).layers)


def _surprise(answer: Answer) -> str:
    """What went wrong with running both models in one pass; "" where nothing did, or where they are no models for that."""
    return answer.surprise if isinstance(answer, JointAnswer) else answer.why if isinstance(answer, Stopped) else ""


def _fits_twice(case: Case, job: WorkerJob) -> bool:
    """Whether both models, and what they make of the prompts, fit into memory at once. Apart stay strangers' code, what is compared
    with other usages, and what runs on a GPU."""
    if job.running == "layers" or case.once(adapter_claims).problems:
        return False
    if job.trust or job.quantised or job.usages is not None:
        return False
    if job.device != "cpu":
        return False
    width = 2 if job.held else 8 if job.compute == "float64" else 4
    models = width * sum(ref.elements for side in (case.base, case.model) for ref in side.tensors.values())
    return int(models * SPARE) + ROOM <= look(job.work).memory_available


def _held(case: Case, job: WorkerJob) -> Literal["", "bfloat16", "float16"]:
    """The one dtype of 16 bits that all numbers of a large base and of its merge are stored in: they need not be widened in memory."""
    dtypes = {
        ref.stored.dtype if ref.packed is None else ""
        for side in (case.base, case.model)
        for ref in side.tensors.values()
    }
    if len(dtypes) > 1 or job.compute != "float32" or job.thorough or job.asks or not _is_large(case):
        return ""
    names: dict[str, Literal["bfloat16", "float16"]] = {"BF16": "bfloat16", "F16": "float16"}
    return names.get(dtypes.pop(), "")


def _is_large(case: Case) -> bool:
    """Whether so many weights are changed that the models are looked at briefly first."""
    merged = case.model.tensors
    return sum(merged[key].elements for key in case.once(adapter_claims).changes if key in merged) > LARGE


def _parent_of_work(case: Case) -> Path | None:
    """Plain copies of quantised weights are large: they go where the merge has room. None: the system's own place."""
    beside = case.subject.folder.resolve().parent
    large = not case.once(adapter_claims).problems and quality.applies(case)
    return beside if large and os.access(beside, os.W_OK) else None


def _rows(case: Case, base: Path, job: WorkerJob) -> list[quality.Row] | None:
    """The ways to compare; None where nothing is quantised, or nothing that can be read."""
    if case.once(adapter_claims).problems or case.unreadable or not quality.applies(case):
        return None
    return quality.rows(case, base, job.work, job.storage)


def _compared(
    case: Case, job: WorkerJob, rows: list[quality.Row], reference: ReferenceAnswer | Stopped
) -> tuple[list[Json] | Stopped, ComparisonAnswer | None]:
    """The table of the ways, and what the worker answered."""
    if isinstance(reference, Stopped):
        return reference, None
    answer = _work(case, replace(job, role="comparison"))
    if isinstance(answer, Stopped):
        return answer, None
    assert isinstance(answer, ComparisonAnswer)
    measured = reference.measured | answer.measured
    if lost := [id for id, sums in measured.items() if not math.isfinite(sums.far)]:
        return Stopped(status="error", why=f"the outputs of {', '.join(sorted(lost))} are NaN or infinite"), answer
    return quality.table_of(case, rows, measured), answer


def _work(case: Case, job: WorkerJob) -> Answer:
    case.emit(Note(text=f"{TITLES[job.role]}."))
    judged = (case.subject.folder, case.subject.base, case.subject.adapter)
    before = state_of(*judged) if job.trust else {}
    path = job.work / f"{job.role}.json"
    path.unlink(missing_ok=True)
    job.write(job.work / f"{job.role}-job.json")
    status = _run(case, job)
    if job.trust and (name := changed_since(before, *judged)):
        return Stopped(status="error", why=f"the repo's own code changed {name}, which is judged here, while it ran")
    if path.exists():
        answer, confined = read_answer(path)
        if not confined and job.role == "merged":  # said once
            case.emit(Note(text=UNCONFINED, level="warning"))
        return answer
    if status == -9:
        return Stopped(status="skip", why="the system killed the process, most likely for its memory", unrunnable=True)
    last = (job.work / f"{job.role}.log").read_text(errors="replace").strip().splitlines()[-1:]
    return Stopped(status="error", why=f"the process ended with status {status}: {' '.join(last)}")


def _run(case: Case, job: WorkerJob) -> int:
    """Run a worker to its end, and tell how far it is. Returns its exit status."""
    file = str(job.work / f"{job.role}-job.json")
    command = [sys.executable, "-P", "-m", "bot.checks.behaviour.worker", file]  # -P: no imports from where we stand
    forwards, title = job.work / f"{job.role}.forwards", TITLES[job.role]
    unit = "layers" if job.running == "layers" else "model runs"
    forwards.unlink(missing_ok=True)

    def tell() -> None:
        done, total = read_forwards(forwards)
        case.emit(StepProgress(stage="verify", done=done, total=total, what=title, unit=unit))

    with (job.work / f"{job.role}.log").open("wb") as log:
        worker = subprocess.Popen(command, env=_environment(job), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    with worker:
        try:
            tell()
            while worker.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    worker.wait(LOOK_EVERY)
                tell()
            return worker.returncode
        except BaseException:  # a signal, above all: no worker outlives us
            worker.kill()
            raise


def _base(case: Case, work: Path) -> Path:
    """The base as plain numbers: its own folder, or what its quantised weights mean in a folder of the work's own."""
    if case.once(adapter_claims).problems or not any(ref.packed for ref in case.base.tensors.values()):
        return case.subject.base
    from bot.checks.reading.plain_copy import write_plain

    return write_plain(case.base, work / "base")


def _job(case: Case, base: Path, work: Path) -> WorkerJob:
    subject, merged = case.subject, case.model.tensors
    changed = [merged[key] for key in case.once(adapter_claims).changes if key in merged]
    stored = [ref.stored.dtype for ref in changed if ref.packed is None]
    dtypes = Counter(dtype for dtype in stored if dtype in FLOATS)
    storage = TORCH_NAMES[dtypes.most_common(1)[0][0]] if dtypes else "float32"
    quantised = subject.quantize != "none"
    kept = subject.base.resolve() if subject.quantize == "same" else None
    if quantised:
        storage = subject.dtype if subject.dtype != "auto" else TORCH_NAMES[case.base.main]
    declared = {change.path.rsplit(".", 1)[-1]: change.value for change in case.once(adapter_claims).declared}
    return WorkerJob(
        base=base.resolve(),
        adapter=subject.adapter.resolve(),
        folder=subject.folder.resolve(),
        work=work,
        storage=storage,
        quantised=quantised,
        same_form=kept,
        text=subject.eval_text.resolve() if subject.eval_text else None,
        # float32's own rounding would drown in float32 compute: then everything is computed in float64.
        compute="float64" if {"F32", "F64"} & dtypes.keys() else "float32",
        clamps=subject.clamps,
        cast_all=any(_cast(case, key) for key in merged),
        trust=subject.trust_remote_code,
        distrusted=_distrusted(subject) if subject.trust_remote_code else {},
        whole=case.once(adapter_claims).whole,
        model_class=declared.get("architectures", [None])[0],
        labels=len(declared["id2label"]) if "id2label" in declared else None,
        vocabulary=declared.get("vocab_size"),
        asks=subject.asks,
        running=_running(case, work),
        tokens=BRIEF if _is_large(case) else LENGTH,
    )


def _running(case: Case, work: Path) -> Literal["whole", "layers"]:
    """Layer by layer where one model does not fit into this machine's memory, and all of them are plain numbers."""
    subject, tensors = case.subject, [ref.stored for ref in case.base.tensors.values()]
    is_plain = subject.quantize == "none" and not any(ref.packed for ref in case.base.tensors.values())
    if not is_plain or subject.trust_remote_code or subject.clamps:
        return "whole"
    return "layers" if verify_memory(tensors) > look(work).memory_available else "whole"


def _cast(case: Case, key: str) -> bool:
    base, merged = case.base.tensors.get(key), case.model.tensors[key]
    return base is not None and merged.packed is None and base.stored.dtype != merged.stored.dtype


def _distrusted(subject: Subject) -> dict[str, str]:
    """{folder: the reason} for the one whose code is not run, whatever was asked for: only the base's own is."""
    why = foreign_code(subject.folder, subject.base)
    return {str(subject.folder.resolve()): why} if why else {}


def _environment(job: WorkerJob) -> dict[str, str]:
    """No secret, places of its own for all that a library or a model's own code writes, and the GPUs that it may use."""
    work = job.work
    kept = {name: value for name, value in bare_environment().items() if name != "TMPDIR"}
    here = str(Path(bot.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    kept.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy machine, threads that spin at barriers take 5 × the time
    kept.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's and scipy's, which nothing here uses, spin when they start
    # Large tensors come and go all the time: kept by the process, and in huge pages, they cost no page faults each time.
    for name, value in KEEP_MEMORY.items():
        kept.setdefault(name, value)
    own = {"TMPDIR": str(work), "HF_HOME": str(work / "hf"), "HOME": str(work)}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {**kept, **own, "PYTHONPATH": path, **offline, **device.environment(job)}
