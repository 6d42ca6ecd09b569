"""Runs on this machine: `adapter-merge run` in a process of its own, one at a time, which a restart of the server does not end.

Each request has a folder below `runs`, named by its id:
  command.json   what to run; touched whenever a runner is started
  lock           held by the runner, and by its command, for as long as they live
  starts         a line for each start
  log            what the command says while it works (standard error)
  output.json    its standard output
  exit           its exit code, written last: whatever has this has ended
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from bot.dispatch.command import arguments, dumped, fate_of
from bot.dispatch.records import Fate, Run, RunRequest
from bot.errors import MachineTooSmall, Outside

STARTS = 3  # of one request: a machine that went down, or a kill, is no fault of the merge
RUNNER = "bot.dispatch.backends.local_runner"


class LocalBackend:
    """`runs`: the folder of all of them. A backend as `bot.dispatch.backends` describes it."""

    NAME = "local"
    SHOWN_AFTER = 10.0  # a runner that was started just before a kill has taken its lock by then
    LOOK_EVERY = 2.0

    def __init__(self, runs: Path) -> None:
        self.runs = runs

    def check(self) -> None:
        """Raises MachineTooSmall where the folder cannot be written."""
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            probe = self.runs / f".{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise MachineTooSmall(
                f"{self.runs} cannot be written: {error.strerror}.",
                remedy="Name another --state file; runs lie beside it.",
            ) from error

    def send(self, request: RunRequest) -> Run:
        """Start its runner. A second runner of one request ends at once, so that starting it again does no harm."""
        arguments(request.order)  # raises Usage before anything is written
        folder = self.runs / request.id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fresh = folder / "command.json.tmp"
            fresh.write_text(dumped(request.order), encoding="utf-8")
            fresh.replace(folder / "command.json")
        except OSError as error:
            raise Outside(
                f"The run could not be started: {error.strerror}.",
                remedy=f"Make room in {self.runs}, or give the right to it.",
            ) from error
        self._start(folder)
        return Run(id=request.id)

    def find(self, request: RunRequest) -> Run | None:
        """Its folder, where a runner has begun."""
        folder = self.runs / request.id
        return Run(id=request.id) if (folder / "exit").exists() or _is_held(folder / "lock") else None

    def look(self, request: RunRequest) -> Fate:
        """Queued, running, or how it ended. A runner that is gone without an end is started again, STARTS times in all."""
        folder = self.runs / request.id
        if _is_held(folder / "lock"):
            return Fate(status="running" if (folder / "log").exists() else "queued")
        if (folder / "exit").exists():
            return self._end(request, folder)
        if self._begins(folder):
            return Fate(status="queued")
        if _lines(folder / "starts") < STARTS and (folder / "command.json").exists():
            self._start(folder)
            return Fate(status="queued")
        return Fate(
            status="failed",
            reason="The run was ended from outside before it came to a result.",
            remedy=f"Look at {folder / 'log'} and at the system's log, then dispatch it again.",
            exit_code=Outside.exit_code,
        )

    def log(self, request: RunRequest, lines: int) -> list[str]:
        """The last lines of what it said."""
        try:
            with (self.runs / request.id / "log").open(encoding="utf-8", errors="replace") as opened:
                return [line.rstrip("\n") for line in deque(opened, lines)]
        except OSError:
            return []

    def _end(self, request: RunRequest, folder: Path) -> Fate:
        kind = "run" if request.order.kind == "merge" else request.order.kind
        try:
            code, output = int((folder / "exit").read_text()), (folder / "output.json").read_bytes()
        except (OSError, ValueError) as error:
            raise Outside(f"{folder} cannot be read: {error}.", remedy="Give this user the right to it.") from error
        return fate_of(kind, code, output, self.log(request, 20))

    def _begins(self, folder: Path) -> bool:
        """Whether its runner was started just now, and may not have come to take its lock."""
        with suppress(OSError):
            return 0 <= time.time() - (folder / "command.json").stat().st_mtime < self.SHOWN_AFTER
        return False

    def _start(self, folder: Path) -> None:
        # A session of its own: what ends the server, Ctrl-C too, does not end the merge.
        try:
            os.utime(folder / "command.json")
            subprocess.Popen(
                [sys.executable, "-P", "-m", RUNNER, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                close_fds=True,
            )
        except OSError as error:
            raise Outside(
                f"The run could not be started: {error.strerror}.", remedy="Free some memory, or end other programs."
            ) from error


def _is_held(lock: Path) -> bool:
    """Whether a living process has the lock. Looked at with a shared one, so that two who look do not see each other."""
    try:
        with lock.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _lines(path: Path) -> int:
    with suppress(OSError):
        return path.read_text(encoding="utf-8").count("\n")
    return 0
