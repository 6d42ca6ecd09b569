"""Jobs: a command that an account runs on the Hub's machines. Here it is a process of this machine; its image is not looked at.

A Job gets the environment and the secrets that it was given, what the Hub's machines have of themselves (`PLATFORM`), and nothing of
this process's own. It works in a temporary folder. What it prints is kept, line by line, beside the Hub's database.
"""

from __future__ import annotations

import json
import os
import secrets as randomness
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .database import Database, now
from .errors import HttpError

AT_ONCE = 2  # Jobs that run beside each other; the others wait
TIMEOUT = 1800  # seconds that a Job may run if nobody says, as on the Hub
PATIENCE = 5.0  # seconds between the polite signal and the other one
ENDED = ("COMPLETED", "ERROR", "CANCELED", "DELETED")
OURS = [sys.executable, "-P", "-m", "bot"]
HERE = {"python": [sys.executable], "python3": [sys.executable], "adapter-merge": OURS}
# What a process needs to start at all; whatever else is set here is not the Job's.
PLATFORM = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT")


@dataclass(kw_only=True)
class Job:
    """`spec`: as the API got it, without the secrets. `secrets`: in memory only. `initiator`: who or what started it."""

    id: str
    owner: str
    spec: dict[str, Any]
    secrets: dict[str, str] = field(repr=False)
    initiator: dict[str, Any]
    created: str
    started: str | None = None
    finished: str | None = None
    stage: str = "SCHEDULING"
    message: str | None = None
    wanted_end: str | None = None  # the stage that somebody asked for
    process: subprocess.Popen[bytes] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.stage in ENDED


class Jobs:
    """Those of one Hub. `environment`: what the Hub's machines give to every Job, such as the Hub's address."""

    def __init__(self, db: Database, folder: Path) -> None:
        self.environment: dict[str, str] = {}
        self._db, self._folder = db, folder
        self._lock = threading.Lock()
        self._room = threading.Semaphore(AT_ONCE)
        self._live: dict[str, Job] = {}
        self._threads: list[threading.Thread] = []
        self._over = False
        for job in self._kept("json_extract(record, '$.stage') IN ('SCHEDULING', 'RUNNING')"):
            self._end(job, "ERROR", "The local Hub was ended while it ran.")

    def start(
        self, owner: str, spec: Mapping[str, Any], secrets: Mapping[str, str], initiator: Mapping[str, Any]
    ) -> Job:
        """Take a Job on; it runs when there is room. Refuses one without a command."""
        command = [*(spec.get("command") or []), *(spec.get("arguments") or [])]
        if not command or not all(isinstance(word, str) for word in command):
            raise HttpError(400, "A Job needs a command, which is a list of strings")
        with self._lock:
            if self._over:
                raise HttpError(503, "This Hub is being shut down")
            job = Job(
                id=randomness.token_hex(12), owner=owner, spec=dict(spec), secrets=dict(secrets), initiator=dict(initiator),
                created=now(),
            )  # fmt: skip
            self._live[job.id] = job
            self._keep(job)
            thread = threading.Thread(target=self._run, args=(job, command), name=f"devhub-job-{job.id}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return job

    def get(self, owner: str, job_id: str) -> Job:
        """One of an account's Jobs."""
        job = self._live.get(job_id) or next(iter(self._kept("id = ?", job_id)), None)
        if job is None or job.owner.lower() != owner.lower():
            raise HttpError(404, "Job not found")
        return job

    def every(self, owner: str) -> list[Job]:
        """An account's Jobs, the newest first."""
        kept = self._kept("owner = ? COLLATE NOCASE", owner)
        return [self._live.get(job.id, job) for job in reversed(kept)]

    def cancel(self, job: Job) -> None:
        """Let it end; harmless where it has."""
        self._ask_to_end(job, "CANCELED")

    def lines(self, job: Job, start: int = 0) -> list[dict[str, str]]:
        """What it has printed so far, from this line on, each with its time."""
        try:
            written = self._log(job).read_text(encoding="utf-8").split("\n")[:-1]
        except FileNotFoundError:
            return []
        stamped = [line.partition(" ") for line in written[start:]]
        return [{"timestamp": stamp, "data": text} for stamp, _, text in stamped]

    def drain(self, timeout: float) -> None:
        """Wait until all Jobs so far have ended."""
        deadline = time.monotonic() + timeout
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """End all of them: none outlives its Hub."""
        with self._lock:
            self._over = True
        for job in list(self._live.values()):
            self._ask_to_end(job, "CANCELED")
        self.drain(2 * PATIENCE)

    # --- the process --------------------------------------------------------------------------------------------------

    def _run(self, job: Job, command: list[str]) -> None:
        """Its whole life, in a thread of its own."""
        while not self._room.acquire(timeout=0.1):
            if job.wanted_end:
                return self._end(job, job.wanted_end, None)
        work = Path(tempfile.mkdtemp(prefix="devhub-job-"))
        try:
            self._work(job, command, work)
        finally:
            self._room.release()
            shutil.rmtree(work, ignore_errors=True)

    def _work(self, job: Job, command: list[str], work: Path) -> None:
        given = {name: str(value) for name, value in (job.spec.get("environment") or {}).items()}
        platform = {name: os.environ[name] for name in PLATFORM if name in os.environ}
        platform |= {"HOME": str(work), "TMPDIR": str(work), "PYTHONUNBUFFERED": "1", "JOB_ID": job.id}
        limit = float(job.spec.get("timeoutSeconds") or TIMEOUT)
        with self._lock:
            if job.wanted_end:
                return self._end(job, job.wanted_end, None)
            job.stage, job.started = "RUNNING", now()
            self._keep(job)
            try:
                job.process = subprocess.Popen(
                    [*HERE.get(command[0], command[:1]), *command[1:]],
                    cwd=work,
                    env=platform | self.environment | given | job.secrets,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                return self._end(job, "ERROR", f"Job failed to start: {error.strerror}: {command[0]}")
        late = threading.Timer(limit, self._ask_to_end, (job, "ERROR"))
        late.daemon = True
        late.start()
        try:
            self._read(job)
            code = job.process.wait()
        finally:
            late.cancel()
            _signal(job, signal.SIGKILL)  # what it left behind
        if job.wanted_end:
            self._end(job, job.wanted_end, "Job timeout" if job.wanted_end == "ERROR" else None)
        elif code == 0:
            self._end(job, "COMPLETED", None)
        else:
            self._end(job, "ERROR", f"Job failed with exit code: {code}. Reason: Error")
        return None

    def _read(self, job: Job) -> None:
        assert job.process is not None
        assert job.process.stdout is not None
        log = self._log(job)
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8", newline="\n") as opened:
            for line in job.process.stdout:
                text = line.decode("utf-8", "replace").rstrip("\r\n").replace("\r", " ")
                opened.write(f"{now()} {text}\n")
                opened.flush()

    def _ask_to_end(self, job: Job, stage: str) -> None:
        """Politely first. `stage`: what the end will be called."""
        with self._lock:
            if job.ended or job.wanted_end:
                return
            job.wanted_end = stage
        _signal(job, signal.SIGTERM)
        last = threading.Timer(PATIENCE, _signal, (job, signal.SIGKILL))
        last.daemon = True
        last.start()

    def _end(self, job: Job, stage: str, message: str | None) -> None:
        job.message, job.finished, job.stage = message, now(), stage
        with suppress(Exception):  # the Hub's database may be closed by now
            self._keep(job)

    # --- the records --------------------------------------------------------------------------------------------------

    def _log(self, job: Job) -> Path:
        return self._folder / f"{job.id}.log"

    def _keep(self, job: Job) -> None:
        names = ("spec", "initiator", "created", "started", "finished", "stage", "message")
        record = {name: getattr(job, name) for name in names}
        record["secrets"] = sorted(job.secrets)  # their names; the values never reach the disk
        with self._db.write() as rows:
            rows.execute("INSERT OR REPLACE INTO job VALUES (?, ?, ?)", (job.id, job.owner, json.dumps(record)))

    def _kept(self, which: str, *values: str) -> list[Job]:
        rows = self._db.read.execute(
            f"SELECT * FROM job WHERE {which} ORDER BY json_extract(record, '$.created'), rowid", values
        )
        records = [(row["id"], row["owner"], json.loads(row["record"])) for row in rows.fetchall()]
        return [
            Job(id=job_id, owner=owner, **record | {"secrets": dict.fromkeys(record["secrets"], "")})
            for job_id, owner, record in records
        ]


def _signal(job: Job, number: signal.Signals) -> None:
    """To all processes of the Job."""
    if job.process is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(job.process.pid, number)
