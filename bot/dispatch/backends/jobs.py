"""Runs on Hugging Face Jobs: our image, on the cheapest machine that the plan fits on, for no longer than it should take.

A Job is known again by its label, which is the request's id. It gets the token in ADAPTER_MERGE_HUB_TOKEN: what the bot may
write, it writes there and not here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from bot import __version__
from bot.dispatch.backends import Busy, Unsure
from bot.dispatch.backends.sizing import cheapest, needs_of, plan_environment, seconds_for
from bot.dispatch.command import arguments, fate_of_log, target_of
from bot.dispatch.records import Fate, Order, Run, RunRequest
from bot.errors import Forbidden, NotFound, Outside, Usage

if TYPE_CHECKING:
    from bot.hub import Hub
    from bot.hub.jobs import HubJob, JobMachine

LABEL = "adapter-merge"
TOKEN = "ADAPTER_MERGE_HUB_TOKEN"
IMAGE = f"ghcr.io/adapter-merge/adapter-merge:{__version__}"
LOG = 20_000  # lines of a log's end that are searched for the result
BRIEF = (1.0, 4.0)  # seconds before each further try of a call: other requests wait meanwhile
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def image_on(machine: JobMachine) -> str:
    """This version's image: on a machine with a GPU the one whose torch can use it, as release.yml names it."""
    return f"{IMAGE}-cuda" if machine.gpu else IMAGE


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """`image` None: this version's for the machine. `flavor` and `timeout` (seconds) None: as the plan says. `namespace` None: the
    token's own account."""

    image: str | None = None
    flavor: str | None = None
    timeout: int | None = None
    namespace: str | None = None


class JobsBackend:
    """`hub`: with the token that writes. `environment`: this process's, for the plan. A backend as `bot.dispatch.backends` says."""

    NAME = "jobs"
    SHOWN_AFTER = 60.0  # the list of Jobs may be behind
    LOOK_EVERY = 15.0

    def __init__(self, settings: JobSettings, hub: Hub, token: str, environment: Mapping[str, str]) -> None:
        self.settings, self.hub = settings, hub
        self._token, self._environment = token, environment

    def check(self) -> None:
        """Raises Forbidden for a token that may start no Jobs, Usage for a machine that there is not."""
        if not self._token:
            raise Usage(
                f"The backend jobs needs a token: {TOKEN} is not set.",
                remedy="Set it to a token that may start Jobs and write to the merged repos.",
            )
        assert self._namespace
        if self.settings.flavor:
            self._machine_named(self.settings.flavor)

    @cached_property
    def _namespace(self) -> str:
        from bot.hub.jobs import require_jobs

        return require_jobs(self.hub, self.settings.namespace)

    @cached_property
    def _machines(self) -> list[JobMachine]:
        from bot.hub.jobs import job_machines

        return job_machines(self.hub)

    def _machine_named(self, flavor: str) -> JobMachine:
        known = {machine.flavor: machine for machine in self._machines}
        if flavor not in known:
            raise Usage(f"--flavor {flavor} is no machine for Jobs.", remedy=f"There are {', '.join(known)}.")
        return known[flavor]

    def send(self, request: RunRequest) -> Run:
        """Start the Job, where the token may write its result."""
        from bot.hub.jobs import JobOrder, start_job
        from bot.hub.sentences import HubBusy

        order = request.order
        command = ("adapter-merge", *arguments(order))
        self._require_target(order)
        machine, timeout = self._machine_for(order)
        name = re.sub(r"[^\w-]", "-", f"merge-{order.adapter.rpartition('/')[2]}", flags=re.ASCII)[:80]
        wanted = JobOrder(
            image=self.settings.image or image_on(machine),
            command=command, flavor=machine.flavor, timeout=timeout, namespace=self._namespace,
            secrets={"HF_TOKEN": self._token}, labels={LABEL: request.id, "name": name},
        )  # fmt: skip
        try:
            job = start_job(self.hub, wanted)
        except HubBusy as error:
            if _is_limited(error):
                raise Busy(error.what, remedy=error.remedy, seconds=error.wait or 300.0) from error
            raise Unsure(error.what, remedy=error.remedy) from error
        return _run(job, costs(machine, timeout))

    def _machine_for(self, order: Order) -> tuple[JobMachine, int]:
        """(machine, seconds that it may run)."""
        flavor, timeout = self.settings.flavor, self.settings.timeout
        if flavor and timeout:  # a person has taken the plan's place
            return self._machine_named(flavor), timeout
        needs = needs_of(order, plan_environment(self._environment))
        machine = self._machine_named(flavor) if flavor else cheapest(self._machines, needs)
        return machine, timeout or seconds_for(needs)

    def _require_target(self, order: Order) -> None:
        """Raise Forbidden now where the Job would fail to publish after hours of work."""
        if order.kind != "merge":
            return
        options = dict(order.options)
        if options.get("publish") == "none":
            return
        target = target_of(order.adapter, order.options)
        existing = self.hub.target(target)
        if existing is None:
            self.hub.require_create(target)
        elif options.get("publish") == "push" or (existing.empty and options.get("publish") != "pr"):
            self.hub.require_write(target)
        else:
            self.hub.require_pulls(target)

    def find(self, request: RunRequest) -> Run | None:
        """The Job with the request's label."""
        from bot.hub.jobs import job_labelled

        job = job_labelled(self.hub, self._namespace, LABEL, request.id)
        return _run(job) if job else None

    def look(self, request: RunRequest) -> Fate:
        """By the Job's stage, and once it has ended by the last JSON in its log."""
        from bot.hub.jobs import look_at_job

        namespace, job_id = _address(request)
        job = look_at_job(self.hub, namespace, job_id)
        if not job.ended:
            return Fate(status="queued" if job.stage == "SCHEDULING" else "running")
        kind = "run" if request.order.kind == "merge" else request.order.kind
        fate = fate_of_log(kind, job.exit_code, self.log(request, LOG))
        if fate is not None:
            return fate
        reason, remedy = _end_of(job)
        return Fate(status="failed", reason=reason, remedy=remedy, exit_code=Outside.exit_code)

    def log(self, request: RunRequest, lines: int) -> list[str]:
        """The end of the Job's log."""
        from bot.hub.jobs import job_log

        try:
            return job_log(self.hub, *_address(request), lines)
        except (NotFound, Forbidden):
            return []


def jobs_backend(settings: JobSettings, environment: Mapping[str, str], endpoint: str | None = None) -> JobsBackend:
    """With the token from the environment, and a Hub of its own for it."""
    from bot.hub import Hub

    token = environment.get(TOKEN, "")
    return JobsBackend(settings, Hub(endpoint=endpoint, write_token=token or False, patience=BRIEF), token, environment)


def costs(machine: JobMachine, timeout: int) -> str:
    """What a Job costs, in a line: the machine's price, how long it may run, and what it can come to at the most."""
    hours = timeout / 3600
    most = f"at most {hours:.1f} h, ${math.ceil(round(100 * machine.hourly * hours, 1)) / 100:.2f}"
    return f"{machine.flavor}, ${machine.hourly:.2f} an hour (${machine.hourly / 60:.4f} a minute), {most}"


def seconds_in(text: str) -> int:
    """`90m`, `2h`, or seconds. Raises Usage."""
    written = re.fullmatch(r"(\d+)([smhd]?)", text.strip())
    if not written or not int(written[1]):
        raise Usage(f"--timeout {text} is no time.", remedy="Write for instance 90m or 6h.")
    return int(written[1]) * UNITS[written[2] or "s"]


def _run(job: HubJob, note: str = "") -> Run:
    return Run(id=f"{job.namespace}/{job.id}", url=job.url, note=note)


def _address(request: RunRequest) -> tuple[str, str]:
    """(namespace, Job)."""
    namespace, _, job_id = (request.run.id if request.run else "").rpartition("/")
    return namespace, job_id


def _is_limited(error: Outside) -> bool:
    return getattr(getattr(error.__cause__, "response", None), "status_code", 0) == 429


def _end_of(job: HubJob) -> tuple[str, str]:
    if job.stage == "CANCELED":
        return "The Job was canceled.", "Dispatch the adapter again, if that was not meant."
    if "timeout" in job.message.lower():
        return "The Job was ended: its time was over.", "Give it more with --timeout, and dispatch it again."
    return f"The Job ended without a result: {job.message or job.stage}.", "Its log says more."
