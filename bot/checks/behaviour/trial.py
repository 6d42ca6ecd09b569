"""Runs the workers one after the other: the unmerged model, the merged one, and the ways to compare."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bot.checks.behaviour import quality
from bot.checks.behaviour.answers import Trial
from bot.checks.behaviour.forward_counts import read_forwards
from bot.checks.folder.own_code import changed_since, foreign_code, state_of
from bot.checks.reading.checkpoint import FLOATS
from bot.events import Moved, Note
from bot.machine import bare_environment
from bot.records import Json

if TYPE_CHECKING:
    from bot.checks.case import Case
    from bot.checks.subject import Subject

TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SAID = {
    "reference": "Running the unmerged model",
    "merged": "Running the merged model",
    "comparison": "Comparing the ways to use it",
}
UNCONFINED = (
    "This system cannot confine the model's own code (no Landlock): it runs in a process without secrets, no more."
)
LOOK_EVERY = 0.5  # seconds
FIRST: Json = {"prompts": 8, "draws": 8, "thorough": False}
MORE: Json = {"prompts": 32, "draws": 16, "thorough": True}


def hold_trial(case: Case) -> Trial:
    """The reference first, then the merged folder: one model in memory at a time, none in this process. Where that leaves a
    doubt, once more with more prompts and more controls."""
    with tempfile.TemporaryDirectory(prefix=".adapter-merge-", dir=_place(case)) as work:
        base = _base(case, Path(work))
        job = _job(case, base)
        rows = _rows(case, base, Path(work), job["storage"])
        job["rows"] = None if rows is None else quality.as_job(rows)
        trial = _hold(case, job, Path(work))
        if not trial.settled:
            case.emit(Note(text="That leaves a doubt: once more, with more prompts and more controls."))
            trial = _hold(case, {**job, **MORE}, Path(work))
        compared = None if rows is None else _compared(case, job, rows, trial.reference, Path(work))
    return replace(trial, comparison=compared)


def _hold(case: Case, job: Json, work: Path) -> Trial:
    reference: Json = {"skip": "not understood"}
    if not case.claims.problems:
        reference = _work(case, job, "reference", work)
    if "controls" not in reference:
        (work / "reference.json").unlink(missing_ok=True)
    merged = _work(case, job, "merged", work)
    return Trial(reference=reference, merged=merged, expected=case.claims.layers)


def _place(case: Case) -> Path | None:
    """Plain copies of quantised weights are large: they go where the merge has room. None: the system's own place."""
    beside = case.subject.folder.resolve().parent
    large = not case.claims.problems and quality.applies(case)
    return beside if large and os.access(beside, os.W_OK) else None


def _rows(case: Case, base: Path, work: Path, storage: str) -> list[quality.Row] | None:
    """The ways to compare; None where nothing is quantised, or nothing that can be read."""
    if case.claims.problems or case.unreadable or not quality.applies(case):
        return None
    return quality.rows(case, base, work, storage)


def _compared(case: Case, job: Json, rows: list[quality.Row], reference: Json, work: Path) -> Json:
    if "measured" not in reference:
        return reference
    answer = _work(case, job, "comparison", work)
    if "measured" not in answer:
        return answer
    measured = reference["measured"] | answer["measured"]
    if lost := [id for id, sums in measured.items() if not math.isfinite(sums["far"])]:
        return {"error": f"the outputs of {', '.join(sorted(lost))} are NaN or infinite"}
    return {"rows": quality.table_of(case, rows, measured)}


def _work(case: Case, job: Json, role: str, work: Path) -> Json:
    case.emit(Note(text=f"{SAID[role]}."))
    judged = (case.subject.folder, case.subject.base, case.subject.adapter)
    before = state_of(*judged) if job["trust"] else {}
    answer = work / f"{role}.json"
    answer.unlink(missing_ok=True)
    path = work / f"{role}-job.json"
    path.write_text(json.dumps({**job, "role": role, "work": str(work)}))
    status = _run(case, role, path, work)
    if job["trust"] and (name := changed_since(before, *judged)):
        return {"error": f"the repo's own code changed {name}, which is judged here, while it ran"}
    if answer.exists():
        found: Json = json.loads(answer.read_bytes())
        if not found.pop("confined", True) and role == "merged":  # said once
            case.emit(Note(text=UNCONFINED, level="warning"))
        return found
    if status == -9:
        return {"skip": "the system killed the process, most likely for its memory", "beyond": True}
    last = (work / f"{role}.log").read_text(errors="replace").strip().splitlines()[-1:]
    return {"error": f"the process ended with status {status}: {' '.join(last)}"}


def _run(case: Case, role: str, path: Path, work: Path) -> int:
    """Run a worker to its end, and tell how far it is. Returns its exit status."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "bot.checks.behaviour.worker",
        str(path),
    ]  # -P: no imports from where we stand
    forwards = work / f"{role}.forwards"
    forwards.unlink(missing_ok=True)
    with (work / f"{role}.log").open("wb") as log:
        worker = subprocess.Popen(command, env=_environment(work), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    with worker:
        try:
            while True:
                done, total = read_forwards(forwards)
                case.emit(Moved(stage="verify", done=done, total=total, what=SAID[role], unit="model runs"))
                with suppress(subprocess.TimeoutExpired):
                    return worker.wait(LOOK_EVERY)
        except BaseException:  # a signal, above all: no worker outlives us
            worker.kill()
            raise


def _base(case: Case, work: Path) -> Path:
    """The base as plain numbers: its own folder, or what its quantised weights mean in a folder of the work's own."""
    if case.claims.problems or not any(place.packed for place in case.base.tensors.values()):
        return case.subject.base
    from bot.checks.reading.plain_copy import write_plain

    return write_plain(case.base, work / "base")


def _job(case: Case, base: Path) -> Json:
    subject, merged = case.subject, case.model.tensors
    stored = [merged[key].stored.dtype for key in case.claims.changes if key in merged and merged[key].packed is None]
    dtypes = Counter(one for one in stored if one in FLOATS)
    storage = TORCH_NAMES[dtypes.most_common(1)[0][0]] if dtypes else "float32"
    quantised = subject.quantize != "none"
    if quantised:
        storage = subject.dtype if subject.dtype != "auto" else TORCH_NAMES[case.base.main]
    return {
        "base": str(base.resolve()),
        "adapter": str(subject.adapter.resolve()),
        "folder": str(subject.folder.resolve()),
        "storage": storage,
        "quantised": quantised,
        "text": str(subject.eval_text.resolve()) if subject.eval_text else None,
        # float32's own rounding would drown in float32 compute: then everything is computed in float64.
        "compute": "float64" if {"F32", "F64"} & dtypes.keys() else "float32",
        "clamps": subject.clamps,
        "cast_all": any(_cast(case, key) for key in merged),
        "trust": subject.trust_remote_code,
        "distrusted": _distrusted(subject) if subject.trust_remote_code else {},
        "whole": sorted(case.claims.whole),
        **FIRST,
        **_model(case),
    }


def _model(case: Case) -> Json:
    """The class that base and adapter make together, its labels and its vocabulary, where they are not the base's."""
    said = {one.path.rsplit(".", 1)[-1]: one.value for one in case.claims.declared}
    return {
        "class": said.get("architectures", [None])[0],
        "labels": len(said["id2label"]) if "id2label" in said else None,
        "vocabulary": said.get("vocab_size"),
    }


def _cast(case: Case, key: str) -> bool:
    base = case.base.tensors.get(key)
    found = case.model.tensors[key]
    return base is not None and found.packed is None and base.stored.dtype != found.stored.dtype


def _distrusted(subject: Subject) -> dict[str, str]:
    """{folder: the reason} for the one whose code is not run, whatever was asked for: only the base's own is."""
    why = foreign_code(subject.folder, subject.base)
    return {str(subject.folder.resolve()): why} if why else {}


def _environment(work: Path) -> dict[str, str]:
    """No secret, and places of its own for all that a library or a model's own code writes."""
    kept = {name: value for name, value in bare_environment().items() if name != "TMPDIR"}
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    kept.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy machine, threads that spin at barriers take 5 × the time
    own = {"TMPDIR": str(work), "HF_HOME": str(work / "hf"), "HOME": str(work)}
    return {
        **kept, **own, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
