"""The workers of the full proof in this process: what they find of a merge, without the seconds that processes take."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bot.checks.behaviour import roles, worker
from bot.checks.behaviour.answers import Trial
from bot.checks.behaviour.findings import behaviour
from bot.checks.behaviour.trial import FIRST
from bot.records import Finding


def job_of(base: Path, adapter: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """What the parent would ask its workers for, of a plain bfloat16 merge."""
    return {
        "base": str(base), "adapter": str(adapter), "folder": str(folder), "work": str(folder.parent),
        "storage": "bfloat16", "compute": "float32", "quantised": False, "text": None, "clamps": False,
        "cast_all": False, "trust": False, "distrusted": {}, "whole": [],
        "class": None, "labels": None, "vocabulary": None, "rows": None,
        **FIRST, **changes,
    }  # fmt: skip


def hold(job: dict[str, Any]) -> Trial:
    """The reference first, then the merged folder."""
    reference = roles.reference(job)
    (Path(job["work"]) / "reference.json").write_text(json.dumps(reference))
    return Trial(reference=reference, merged=roles.merged(job), expected=frozenset(reference["layers"]))


def found(trial: Trial) -> Finding:
    """The check `behaviour` of it."""
    return behaviour(SimpleNamespace(trial=trial))  # type: ignore[arg-type]


def work_here(case: Any, job: dict[str, Any], role: str, work: Path) -> dict[str, Any]:
    """In the place of `bot.checks.behaviour.trial._work`: the worker, in this process. (It could import peft, and use the network.)"""
    job = {**job, "role": role, "work": str(work)}
    answer = worker.attempt(job)
    worker.answer(job, answer)
    return answer
