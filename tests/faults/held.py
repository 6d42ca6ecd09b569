"""The workers of the full proof in this process: what they find of a merge, without the seconds that processes take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bot.checks.behaviour import roles, worker
from bot.checks.behaviour.answers import Trial
from bot.checks.behaviour.findings import behaviour
from bot.checks.behaviour.job import Answer, MergedAnswer, ReferenceAnswer, WorkerJob, read_answer, write_answer
from bot.records import Finding


def job_of(base: Path, adapter: Path, folder: Path, **changes: Any) -> WorkerJob:
    """What the parent would ask its workers for, of a plain bfloat16 merge."""
    plain = {"work": folder.parent, "storage": "bfloat16", "compute": "float32"}
    return WorkerJob(base=base, adapter=adapter, folder=folder, **{**plain, **changes})


def hold(job: WorkerJob) -> Trial:
    """The reference first, then the merged folder; every answer by way of its file."""
    reference, merged = (answered(role, job) for role in ("reference", "merged"))
    assert isinstance(reference, ReferenceAnswer)
    assert isinstance(merged, MergedAnswer)
    return Trial(reference=reference, merged=merged, expected=frozenset(reference.layers))


def answered(role: str, job: WorkerJob, among: Mapping[str, Callable[[WorkerJob], Answer]] = roles.ROLES) -> Answer:
    """One worker's answer, by way of its file."""
    path = job.work / f"{role}.json"
    write_answer(path, among[role](job), confined=True)
    return read_answer(path)[0]


def found(trial: Trial) -> Finding:
    """The check `behaviour` of it."""
    return behaviour(SimpleNamespace(once=lambda read: trial))  # type: ignore[arg-type]


def work_here(case: Any, job: WorkerJob) -> Answer:
    """In the place of `bot.checks.behaviour.trial._work`: the worker, in this process. (It could import peft, and use the network.)"""
    answer = worker.start_device(job) or worker.attempt(job)
    write_answer(job.work / f"{job.role}.json", answer, confined=True)
    return answer
