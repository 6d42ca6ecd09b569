"""What one phase hands to the next: a JSON file in the work folder. It never holds a token."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bot.action.hub_replay import Memory
from bot.errors import AdapterMergeError, Usage
from bot.records import Json
from bot.untrusted.redact import redact

FILE = "state.json"
SCHEMA = 2
REPORT = "verification.json"
CHECKSUMS = "SHA256SUMS"


class ReportedFailure(AdapterMergeError):
    """A failure that an earlier phase met, or several refusals at once; it brings its own exit code."""

    def __init__(self, exit_code: int, sentences: tuple[tuple[str, str], ...]) -> None:
        super().__init__(sentences[0][0], remedy=sentences[0][1])
        self.exit_code = exit_code
        self.sentences = sentences


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a run failed: its exit code, and (what happened, what to do) once or, for refusals, several times."""

    exit_code: int
    sentences: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One adapter on its way. `status` is the output of that name, empty while it is open."""

    number: int  # its place in the list: two adapters may have the same bytes
    adapter: str  # as asked; of several that become one, all of them
    target: str | None
    plan: str = ""  # the table that people read
    base: Json = field(default_factory=dict)  # {repo, sha, revision}
    sources: tuple[Json, ...] = ()  # the adapter's, or each one's of several that become one
    revisions: tuple[str | None, ...] = ()  # at which they were fetched, where that was left to us
    fingerprint: str = ""
    tag: str | None = None
    status: str = ""
    verified: bool = False
    folder: str | None = None  # the merged folder
    publication: Json | None = None


@dataclass(frozen=True, kw_only=True)
class State:
    """All jobs of a run. `current`: the one that is in work, or that failed; the outputs are its own.

    `reach`: by target, why it cannot be published to, as the preflight found. `told`: outputs and summary are written.
    """

    jobs: tuple[Job, ...] = ()
    current: int = 0
    plan_only: str = ""
    reach: dict[str, Failure] = field(default_factory=dict)
    failure: Failure | None = None
    told: bool = False


class StateStore:
    """The state, saved with every change."""

    def __init__(self, work: Path, state: State, memory: Memory) -> None:
        self.work, self.state, self.memory = work, state, memory

    @classmethod
    def open(cls, work: Path, *, fresh: bool) -> StateStore:
        """The work folder's state. `fresh`: begin anew, keeping only what a preflight of this run has found."""
        path = work / FILE
        if not path.exists():
            if fresh:
                work.mkdir(parents=True, exist_ok=True)
                return cls(work, State(), Memory())
            raise Usage(
                f"There is no {FILE} in {work}.",
                remedy="Run the fetch phase first, with the same work folder (ADAPTER_MERGE_WORK).",
            )
        found = _read(path)
        if found is None and not fresh:
            raise Usage(f"{path} is of another version, or damaged.", remedy="Run all phases with the same image.")
        # A work folder may be kept: by an earlier step of this workflow job, or by an earlier version on this runner.
        if found is None or (fresh and (found["jobs"] or found["failure"])):
            return cls(work, State(), Memory())
        return cls(work, _state(found), Memory.from_json(found["memory"]))

    def change(self, **changes: Any) -> None:
        """Set fields of the state."""
        self.state = replace(self.state, **changes)
        self._save()

    def update(self, index: int, **changes: Any) -> None:
        """Set fields of one job, which becomes the current one."""
        jobs = list(self.state.jobs)
        jobs[index] = replace(jobs[index], **changes)
        self.change(jobs=tuple(jobs), current=index)

    def merged(self, job: Job) -> Path:
        """Where a job's merged folder is made."""
        return self.work / "merged" / _place(job)

    @property
    def job(self) -> Job | None:
        """The current job."""
        return self.state.jobs[self.state.current] if self.state.jobs else None

    def report_dir(self, job: Job) -> Path:
        """Where a job's report and checksums lie."""
        return self.work / _place(job)

    def save_report(self, job: Job, report: bytes) -> None:
        """The report, and the checksums of the files it is about in sha256sum's format, beside the merged folder."""
        folder = self.report_dir(job)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT).write_bytes(report)
        files = (json.loads(report).get("subject") or {}).get("files") or {}
        lines = [f"{sha256}  {name}\n" for name, sha256 in sorted(files.items())]
        (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")

    def document(self, job: Job) -> Json | None:
        """A job's verification.json, once there is one."""
        path = self.report_dir(job) / REPORT
        return dict(json.loads(path.read_bytes())) if path.exists() else None

    def _save(self) -> None:
        path = self.work / FILE
        fresh = path.with_suffix(".tmp")
        found = {"schema": SCHEMA, "memory": self.memory.to_json(), **asdict(self.state)}
        fresh.write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")
        fresh.replace(path)


def _read(path: Path) -> Json | None:
    """What was saved; None where another version wrote it, or a full disk cut it off."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else None


def _place(job: Job) -> str:
    return f"{job.fingerprint[:16] or 'none'}-{job.number}"


def _state(found: Json) -> State:
    return State(
        jobs=tuple(
            Job(**job | {"sources": tuple(job["sources"]), "revisions": tuple(job["revisions"])})
            for job in found["jobs"]
        ),
        current=found["current"],
        plan_only=found["plan_only"],
        reach={target: _failure(reason) for target, reason in found["reach"].items()},
        failure=_failure(found["failure"]) if found["failure"] else None,
        told=found["told"],
    )


def _failure(found: Json) -> Failure:
    sentences = tuple((str(what), str(remedy)) for what, remedy in found["sentences"])
    return Failure(exit_code=found["exit_code"], sentences=sentences)


def failure_of(error: AdapterMergeError) -> Failure:
    """An error as the state keeps it."""
    told = error.sentences if isinstance(error, ReportedFailure) else ((error.what, error.remedy),)
    return Failure(exit_code=error.exit_code, sentences=tuple((redact(what), redact(do)) for what, do in told))
