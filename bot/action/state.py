"""What one phase hands to the next: a JSON file in the work folder. It never holds a token."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bot.action.hub_replay import Memory
from bot.errors import AdapterMergeError, Usage
from bot.records import Json, Publication
from bot.report_document import NAME, PAGE, Document, Pin
from bot.report_page.writing import write_page
from bot.untrusted.redact import redact

FILE = "state.json"
SCHEMA = 3
CHECKSUMS = "SHA256SUMS"
ATTESTATION = "attestation.intoto.jsonl"


class ReportedFailure(AdapterMergeError):
    """A failure that an earlier phase has saved, or several refusals at once, with its own exit code."""

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
class MergeJob:
    """One adapter on its way. `status` is the output of that name, empty while it is open."""

    number: int  # its place in the list: two adapters may have the same bytes
    adapter: str  # as asked; of several that become one, all of them
    target: str | None
    plan: str = ""  # the table that people read
    base: Pin = field(default_factory=Pin)
    sources: tuple[Pin, ...] = ()  # the adapter's, or each one's of several that become one
    revisions: tuple[str | None, ...] = ()  # at which they were fetched, where that was left to us
    fingerprint: str = ""
    tag: str | None = None
    status: str = ""
    verified: bool = False
    folder: str | None = None  # the merged folder
    publication: Publication | None = None


@dataclass(frozen=True, kw_only=True)
class State:
    """All jobs of a run. `current`: the one that is in work, or that failed; the outputs are its own.

    `reach`: by target, why it cannot be published to, as the preflight found. `outputs_written`: the summary too.
    """

    jobs: tuple[MergeJob, ...] = ()
    current: int = 0
    plan_only: str = ""
    reach: dict[str, Failure] = field(default_factory=dict)
    failure: Failure | None = None
    outputs_written: bool = False


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
        saved = _read(path)
        if saved is None and not fresh:
            raise Usage(f"{path} is of another version, or damaged.", remedy="Run all phases with the same image.")
        # A work folder may be kept: by an earlier step of this workflow job, or by an earlier version on this runner.
        if saved is None or (fresh and (saved["jobs"] or saved["failure"])):
            return cls(work, State(), Memory())
        return cls(work, _state(saved), Memory.from_json(saved["memory"]))

    def change(self, **changes: Any) -> None:
        """Set fields of the state."""
        self.state = replace(self.state, **changes)
        self._save()

    def update(self, index: int, **changes: Any) -> None:
        """Set fields of one job, which becomes the current one."""
        jobs = list(self.state.jobs)
        jobs[index] = replace(jobs[index], **changes)
        self.change(jobs=tuple(jobs), current=index)

    def merged(self, job: MergeJob) -> Path:
        """Where a job's merged folder is made."""
        return self.work / "merged" / _dir_name(job)

    @property
    def job(self) -> MergeJob | None:
        """The current job."""
        return self.state.jobs[self.state.current] if self.state.jobs else None

    def report_dir(self, job: MergeJob) -> Path:
        """Where a job's report and checksums lie."""
        return self.work / _dir_name(job)

    def save_report(self, job: MergeJob, report: bytes) -> None:
        """The report, its page, and the checksums of it and of the files it is about in sha256sum's format, beside the merged
        folder."""
        folder = self.report_dir(job)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NAME).write_bytes(report)
        with suppress(ValueError):  # of a published one that somebody changed there is no page
            write_page(folder / PAGE, Document.read(report))
        files = {**(Document.of(json.loads(report)).files or {}), NAME: hashlib.sha256(report).hexdigest()}
        lines = [f"{sha256}  {name}\n" for name, sha256 in sorted(files.items())]
        (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")

    def document(self, job: MergeJob) -> Document | None:
        """A job's verification.json, once there is one."""
        path = self.report_dir(job) / NAME
        return Document.of(json.loads(path.read_bytes())) if path.exists() else None

    def _save(self) -> None:
        path = self.work / FILE
        fresh = path.with_suffix(".tmp")
        state = {"schema": SCHEMA, "memory": self.memory.to_json(), **asdict(self.state)}
        fresh.write_text(json.dumps(state, indent=1, sort_keys=True), encoding="utf-8")
        fresh.replace(path)


def _read(path: Path) -> Json | None:
    """What was saved; None where another version wrote it, or a full disk cut it off."""
    try:
        saved = json.loads(path.read_bytes())
    except ValueError:
        return None
    return saved if isinstance(saved, dict) and saved.get("schema") == SCHEMA else None


def _dir_name(job: MergeJob) -> str:
    return f"{job.fingerprint[:16] or 'none'}-{job.number}"


def _state(saved: Json) -> State:
    return State(
        jobs=tuple(map(_job, saved["jobs"])),
        current=saved["current"],
        plan_only=saved["plan_only"],
        reach={target: _failure(reason) for target, reason in saved["reach"].items()},
        failure=_failure(saved["failure"]) if saved["failure"] else None,
        outputs_written=saved["outputs_written"],
    )


def _job(saved: Json) -> MergeJob:
    pins = {"base": Pin.of(saved["base"]), "sources": tuple(map(Pin.of, saved["sources"]))}
    publication = Publication(**saved["publication"]) if saved["publication"] else None
    return MergeJob(**saved | pins | {"revisions": tuple(saved["revisions"]), "publication": publication})


def _failure(saved: Json) -> Failure:
    sentences = tuple((str(what), str(remedy)) for what, remedy in saved["sentences"])
    return Failure(exit_code=saved["exit_code"], sentences=sentences)


def failure_of(error: AdapterMergeError) -> Failure:
    """An error as the state keeps it."""
    sentences = error.sentences if isinstance(error, ReportedFailure) else ((error.what, error.remedy),)
    return Failure(exit_code=error.exit_code, sentences=tuple((redact(what), redact(do)) for what, do in sentences))
