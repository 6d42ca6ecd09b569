"""Runs lm_eval: one process for the unmerged model and one for the merged, and pairs their samples."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bot.errors import Usage
from bot.evaluation.paired import compared
from bot.events import Emit, Note, StepProgress
from bot.machine import bare_environment
from bot.report_document import Json

TITLES = {"unmerged": "Evaluating the unmerged model", "merged": "Evaluating the merged model"}
DATA = ("HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT")
LOOK_EVERY = 0.5  # seconds
LONGEST = 300  # characters of what went wrong


@dataclass(frozen=True, kw_only=True)
class _Models:
    """Folders: the base and the adapter that were merged, and the merged model."""

    base: Path
    adapter: Path
    merged: Path


def require_harness(tasks: str | None, limit: int | None) -> None:
    """Raise Usage, before hours of work, where nothing can be evaluated."""
    if limit is not None and (tasks is None or limit < 1):
        raise Usage("--eval-limit is how many samples of each task --eval takes.", remedy="Give both, with 1 or more.")
    for name in split(tasks):
        if name.endswith((".yaml", ".yml")) and not Path(name).is_file():
            raise Usage(
                f"There is no task file {name}.", remedy="Name a file in lm_eval's format, or a task by its name."
            )
    if tasks is not None and find_spec("lm_eval") is None:
        raise Usage(
            "Evaluations need the extra `eval`, which is not installed.",
            remedy="Install it: `pip install '.[eval]'` in a clone, or `pip install lm_eval` beside an installation.",
        )


def split(tasks: str | None) -> list[str]:
    """The tasks between commas: names that lm_eval has, and files."""
    return [name.strip() for name in (tasks or "").split(",") if name.strip()]


def evaluate(tasks: str, limit: int | None, base: Path, adapter: Path, merged: Path, emit: Emit) -> Json:
    """`evaluation` of verification.json: what lm_eval measured, sample by sample side by side.

    `limit`: samples of each task. What cannot be evaluated is said there, and as a warning; the verdict is not touched.
    """
    models = _Models(base=base, adapter=adapter, merged=merged)
    with tempfile.TemporaryDirectory(prefix="adapter-merge-eval-") as work:
        answers = {}
        for role in TITLES:
            answers[role] = _answer(role, models, split(tasks), limit, Path(work), emit)
            if "error" in answers[role]:
                why = f"{TITLES[role]}: {answers[role]['error']}"
                emit(Note(text=f"Nothing was evaluated. {why}.", level="warning"))
                return {"harness": "lm_eval", "limit": limit, "tasks": [], "error": why}
    rows = list(_rows(answers["unmerged"], answers["merged"]))
    for row in rows:
        emit(Note(text=sentence(row)))
    return {"harness": answers["merged"]["harness"], "limit": limit, "tasks": rows}


def sentence(row: Json) -> str:
    """One task, for a person."""
    text = f"{row['task']}: {row['metric']} {_figure(row['unmerged'])} unmerged, {_figure(row['merged'])} merged"
    paired = row.get("paired")
    if not paired:
        return text
    low, high = paired["interval"]
    flips = f"{paired['lost']} lost and {paired['gained']} gained of {paired['samples']:,}"
    return f"{text}; {flips}, difference {paired['difference']:+.4f} [{low:+.4f}, {high:+.4f}], p = {paired['p']:.3g}"


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "none"


def _rows(unmerged: Json, merged: Json) -> Iterator[Json]:
    """A row for each task and metric; paired where a sample is right or wrong."""
    for task, ours in merged["tasks"].items():
        theirs = unmerged["tasks"].get(task) or {"metrics": {}, "samples": {}}
        for metric, value in ours["metrics"].items():
            row = {
                "task": task,
                "metric": metric,
                "unmerged": _finite(theirs["metrics"].get(metric)),
                "merged": _finite(value),
                **{name: ours[name] for name in ("dataset", "subset", "shots") if ours.get(name) is not None},
            }
            pair = [side["samples"].get(metric) for side in (theirs, ours)]
            if all(pair) and pair[0].keys() == pair[1].keys() and _binary(pair):
                row["paired"] = compared(*([side[key] for key in sorted(side)] for side in pair))
            yield row


def _binary(pair: list[dict[str, float]]) -> bool:
    return all(value in (0, 1) for side in pair for value in side.values())


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _answer(role: str, models: _Models, tasks: list[str], limit: int | None, work: Path, emit: Emit) -> Json:
    """What the process of that role measured, or {"error": why}."""
    job, answer, log = (work / f"{role}{suffix}" for suffix in ("-job.json", ".json", ".log"))
    loaded = models.merged if role == "merged" else models.base
    job.write_text(
        json.dumps(
            {
                "model": str(loaded.resolve()),
                "tokenizer": str(models.merged.resolve()),
                "adapter": None if role == "merged" else str(models.adapter.resolve()),
                "tasks": [str(Path(name).absolute()) if name.endswith((".yaml", ".yml")) else name for name in tasks],
                "limit": limit,
                "answer": str(answer),
            }
        )
    )
    emit(Note(text=f"{TITLES[role]}."))
    status = _run([sys.executable, "-m", "bot.evaluation.worker", str(job)], log, work, TITLES[role], emit)
    if answer.exists():
        read: Json = json.loads(answer.read_bytes())
        return read
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    return {"error": f"the process ended with status {status}: {' '.join(last)}"[:LONGEST]}


def _run(command: list[str], log: Path, work: Path, title: str, emit: Emit) -> int:
    with log.open("wb") as opened:
        worker = subprocess.Popen(
            command, env=_environment(work), stdin=subprocess.DEVNULL, stdout=opened, stderr=opened
        )
    with worker:
        try:
            while True:
                emit(StepProgress(stage="verify", done=0, total=0, what=title))
                with suppress(subprocess.TimeoutExpired):
                    return worker.wait(LOOK_EVERY)
        except BaseException:  # a signal, above all: no worker outlives us
            worker.kill()
            raise


def _environment(work: Path) -> dict[str, str]:
    """No secret; the caches of data sets are the user's own, and data that is not there is fetched without a token."""
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    kept = {name: os.environ[name] for name in DATA if name in os.environ}
    own = {
        "TMPDIR": str(work),
        "PYTHONPATH": path,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    }
    return {**bare_environment(), **kept, **own}
