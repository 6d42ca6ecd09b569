"""Runs the workers one after the other, and does the sums: K, its standard error, the noise floor."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bot.checks import comparison
from bot.checks.checkpoint import FLOATS
from bot.checks.own_code import changed_since, foreign_code, state_of
from bot.events import Note
from bot.machine import bare_environment
from bot.records import Json

if TYPE_CHECKING:
    from bot.checks.case import Case
    from bot.checks.subject import Subject

TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SAID = {
    "reference": "Running the unmerged model.",
    "merged": "Running the merged model.",
    "comparison": "Comparing the ways to use it.",
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the workers answered: {"error"}, {"skip"}, or what their role found.

    `comparison`: {"rows"} of the ways to use a quantised base or result; None where neither is.
    """

    reference: Json
    merged: Json
    expected: frozenset[str]  # parameters that the adapter's method changes, by this verifier's own reading
    comparison: Json | None = None

    @property
    def lost(self) -> str | None:
        """The model whose outputs are NaN or infinite, if one's are."""
        given = {name: self.reference.get(name) or [] for name in ("base", "control")} | {
            "merged": self.merged.get("merged") or []
        }
        lost = [name for name, some in given.items() if not math.isfinite(_sum(some))]
        # What the unmerged model gave is in every distance.
        wanted = [one["size"] for one in given["control"]] if self.reference.get("kind") == "squared" else []
        return "unmerged" if len(lost) == len(given) or not all(map(math.isfinite, wanted)) else next(iter(lost), None)

    @property
    def noise_floor(self) -> Json | None:
        """What the document says about the size of things; None where nothing was measured, or nothing that is finite."""
        if not self.merged.get("merged") or "control" not in self.reference or self.lost:
            return None
        merged, control, base = self.merged["merged"], self.reference["control"], self.reference["base"]
        positions = sum(one["positions"] for one in merged)
        ratio, error = ratio_with_error([one["far"] for one in merged], [one["far"] for one in control])
        scale = positions if self.reference["kind"] == "kl" else sum(one["size"] for one in merged) or 1.0
        return {
            "metric": "KL, nats per token" if self.reference["kind"] == "kl" else "relative squared error",
            "floor": _sum(control) / scale,  # what one correct, stochastic rounding costs
            "merged": _sum(merged) / scale,
            "adapter": _sum(base) / scale,  # how far the tune moves the base
            "ratio": ratio,
            "standard_error": error,
            "positions": positions,
            "top1_agreement": sum(one["agree"] for one in merged) / positions,
        }


def ratio_with_error(merged: list[float], control: list[float]) -> tuple[float, float]:
    """ΣKL(merged) ÷ ΣKL(control), and its jackknife standard error over prompts. 0 ÷ 0 is 0: nothing was lost."""
    count = len(merged)
    ratio = _over(sum(merged), sum(control))
    left_out = [_over(sum(merged) - one, sum(control) - other) for one, other in zip(merged, control, strict=True)]
    mean = sum(left_out) / count
    return ratio, ((count - 1) / count * sum((one - mean) ** 2 for one in left_out)) ** 0.5


def _over(part: float, whole: float) -> float:
    # Where the control loses nothing, no rounding happened: then neither may the merge lose anything.
    if whole <= 0.0:
        return 0.0 if part <= 0.0 else 1e9
    return part / whole


def _sum(distances: list[Json]) -> float:
    return float(sum(one["far"] for one in distances))


def hold_trial(case: Case) -> Trial:
    """The reference first, then the merged folder: one model in memory at a time, none in this process."""
    with tempfile.TemporaryDirectory(prefix=".adapter-merge-", dir=_place(case)) as work:
        base = _base(case, Path(work))
        job = _job(case, base)
        rows = _rows(case, base, Path(work), job["storage"])
        job["rows"] = None if rows is None else comparison.as_job(rows)
        reference = (
            _work(case, job, "reference", Path(work)) if not case.claims.problems else {"skip": "not understood"}
        )
        if "control" not in reference:
            (Path(work) / "reference.json").unlink(missing_ok=True)
        merged = _work(case, job, "merged", Path(work))
        compared = None if rows is None else _compared(case, job, rows, reference, Path(work))
    return Trial(reference=reference, merged=merged, expected=case.claims.layers, comparison=compared)


def _place(case: Case) -> Path | None:
    """Plain copies of quantised weights are large: they go where the merge has room. None: the system's own place."""
    beside = case.subject.folder.resolve().parent
    large = not case.claims.problems and comparison.applies(case)
    return beside if large and os.access(beside, os.W_OK) else None


def _rows(case: Case, base: Path, work: Path, storage: str) -> list[comparison.Row] | None:
    """The ways to compare; None where nothing is quantised, or nothing that can be read."""
    if case.claims.problems or case.unreadable or not comparison.applies(case):
        return None
    return comparison.rows(case, base, work, storage)


def _compared(case: Case, job: Json, rows: list[comparison.Row], reference: Json, work: Path) -> Json:
    if "measured" not in reference:
        return reference
    answer = _work(case, job, "comparison", work)
    if "measured" not in answer:
        return answer
    measured = reference["measured"] | answer["measured"]
    if lost := [id for id, sums in measured.items() if not math.isfinite(sums["far"])]:
        return {"error": f"the outputs of {', '.join(sorted(lost))} are NaN or infinite"}
    return {"rows": comparison.table_of(case, rows, measured)}


def _work(case: Case, job: Json, role: str, work: Path) -> Json:
    case.emit(Note(text=SAID[role]))
    judged = (case.subject.folder, case.subject.base, case.subject.adapter)
    before = state_of(*judged) if job["trust"] else {}
    path = work / f"{role}-job.json"
    path.write_text(json.dumps({**job, "role": role, "work": str(work)}))
    with (work / f"{role}.log").open("wb") as log:
        command = [sys.executable, "-P", "-m", "bot.checks.probe", str(path)]  # -P: no imports from where we stand
        done = subprocess.run(
            command, env=_environment(work), stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
        )
    if job["trust"] and (name := changed_since(before, *judged)):
        return {"error": f"the repo's own code changed {name}, which is judged here, while it ran"}
    answer = work / f"{role}.json"
    if answer.exists():
        found: Json = json.loads(answer.read_bytes())
        return found
    if done.returncode == -9:
        return {"skip": "the system killed the process, most likely for its memory"}
    last = (work / f"{role}.log").read_text(errors="replace").strip().splitlines()[-1:]
    return {"error": f"the process ended with status {done.returncode}: {' '.join(last)}"}


def _base(case: Case, work: Path) -> Path:
    """The base as plain numbers: its own folder, or what its quantised weights mean in a folder of the work's own."""
    if case.claims.problems or not any(place.packed for place in case.base.tensors.values()):
        return case.subject.base
    from bot.checks.plain import write_plain

    return write_plain(case.base, work / "base")


def _job(case: Case, base: Path) -> Json:
    subject, merged = case.subject, case.model.tensors
    stored = [merged[key].stored.dtype for key in case.claims.touches if key in merged and merged[key].packed is None]
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
