"""Hugging Face Jobs: start one, find it again by a label, look at it, read its log; and the machines there are.

Sources: https://huggingface.co/docs/hub/jobs, https://huggingface.co/docs/huggingface_hub/guides/jobs
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from bot.errors import Forbidden, NotFound
from bot.hub.errors import Unserved, translate_errors
from bot.hub.sentences import TOKENS

if TYPE_CHECKING:
    from bot.hub.client import Hub

START = "job.write"  # as the Hub names the permission
LISTED = 20  # Jobs with one label that are looked at: there is one, or somebody copies our labels
PER_HOUR = {"minute": 60.0, "hour": 1.0, "second": 3600.0}
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
BILLING = "https://huggingface.co/settings/billing"


@dataclass(frozen=True, kw_only=True)
class JobMachine:
    """A machine that a Job may ask for. `memory`, `disk` in bytes; `hourly`: dollars; `gpu`: its model, "" where it has none."""

    flavor: str
    shown: str
    memory: int
    disk: int
    hourly: float
    gpu: str = ""


@dataclass(frozen=True, kw_only=True)
class JobOrder:
    """A Job to be started. `timeout`: seconds. `secrets` are shown to nobody; `labels` are how it is found again."""

    image: str
    command: tuple[str, ...]
    flavor: str
    timeout: int
    namespace: str
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HubJob:
    """A Job as it stands. `stage`: SCHEDULING, RUNNING, COMPLETED, ERROR, CANCELED or DELETED; `message`: the Hub's own words."""

    id: str
    namespace: str
    url: str
    stage: str
    message: str

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.stage in ("COMPLETED", "ERROR", "CANCELED", "DELETED")

    @property
    def exit_code(self) -> int | None:
        """What its command ended with, where the Hub says so."""
        code = re.search(r"exit code:? (\d+)", self.message, re.IGNORECASE)
        return int(code[1]) if code else 0 if self.stage == "COMPLETED" else None


def job_machines(hub: Hub) -> list[JobMachine]:
    """The machines that the Hub has for Jobs, the cheapest first; none whose size it does not tell."""
    where = hub.where_writing("list the machines for Jobs")

    def read() -> list[JobMachine]:
        return [machine for each in hub.outputs.list_jobs_hardware() if (machine := _machine(each))]

    return sorted(hub.patiently(where, read), key=lambda machine: (machine.hourly, machine.memory, machine.flavor))


def _machine(listed: Any) -> JobMachine | None:
    memory, disk, hours = _bytes(listed.ram), _bytes(listed.ephemeral_storage), PER_HOUR.get(listed.unit_label)
    if memory is None or disk is None or hours is None:
        return None
    return JobMachine(
        flavor=listed.name,
        shown=listed.pretty_name,
        memory=memory,
        disk=disk,
        hourly=hours * listed.unit_cost_micro_usd / 1e6,
        gpu=listed.accelerator.model if listed.accelerator else "",
    )


def _bytes(text: str) -> int | None:
    """`16 GB` as 16 000 000 000; None for what is no size."""
    size = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?i?B)\s*", text, re.IGNORECASE)
    return int(float(size[1]) * UNITS[size[2].upper()]) if size else None


def require_jobs(hub: Hub, namespace: str | None) -> str:
    """The account whose Jobs they are: the token's own, or `namespace`. Raises Forbidden where the token may not start any there."""
    who = hub.whoami()
    namespace = namespace or who.name
    if not who.is_in(namespace):
        raise Forbidden(
            f"Jobs cannot be started as {namespace}: the token's owner {who.name} is not in it.",
            remedy="Name an organization of that account with --namespace, or use a member's token.",
        )
    if who.role == "read":
        raise Forbidden(
            "The token can only read, so it cannot start Jobs.",
            remedy=f"Use a token of role write, or a fine-grained one with {START} ({TOKENS}).",
        )
    if who.lacks((START,), namespace):
        raise Forbidden(
            f"This fine-grained token may not start Jobs as {namespace}: it lacks {START} there (it has {who.held}).",
            remedy=f"Let the token start and manage Jobs of {namespace} ({TOKENS}).",
        )
    return namespace


def start_job(hub: Hub, order: JobOrder) -> HubJob:
    """Start it, in one try: whether an unanswered one was started is not known here. Raises Forbidden, with how to pay, too."""
    where = hub.where_writing(f"start a Job as {order.namespace}")
    try:
        with translate_errors(where):
            return _job(
                hub.outputs.run_job(
                    image=order.image,
                    command=list(order.command),
                    env=dict(order.environment),
                    secrets=dict(order.secrets),
                    flavor=order.flavor,
                    timeout=order.timeout,
                    labels=dict(order.labels),
                    namespace=order.namespace,
                )
            )
    except Forbidden as refused:
        if getattr(getattr(refused.__cause__, "response", None), "status_code", 0) == 402:
            raise Forbidden(
                f"The account {order.namespace} has no credit for Jobs.",
                remedy=f"Add credit ({BILLING}), or choose another --backend.",
            ) from refused
        refused.remedy = f"Use a token of role write, or a fine-grained one with {START} on {order.namespace}."
        raise


def job_labelled(hub: Hub, namespace: str, name: str, value: str) -> HubJob | None:
    """The first Job that was started with this label."""
    where = hub.where_writing(f"list the Jobs of {namespace}")

    def read() -> list[HubJob]:
        listed = hub.outputs.list_jobs(namespace=namespace, labels={name: value})
        return [_job(job) for job in islice(listed, LISTED)]

    return next(reversed(hub.patiently(where, read)), None)


def look_at_job(hub: Hub, namespace: str, job_id: str) -> HubJob:
    """How it stands. Raises NotFound."""
    where = hub.where_writing(f"look at the Job {job_id}")
    try:
        return hub.patiently(where, lambda: _job(hub.outputs.inspect_job(job_id=job_id, namespace=namespace)))
    except Unserved as missing:
        raise NotFound(
            f"The Job {job_id} of {namespace} is not there.", remedy="Dispatch the adapter again."
        ) from missing


def job_log(hub: Hub, namespace: str, job_id: str, lines: int) -> list[str]:
    """The last lines of what it printed, its two streams together."""
    where = hub.where_writing(f"read the log of the Job {job_id}")

    def read() -> list[str]:
        return list(deque(hub.outputs.fetch_job_logs(job_id=job_id, namespace=namespace, tail=lines), lines))

    return hub.patiently(where, read)


def end_job(hub: Hub, namespace: str, job_id: str) -> None:
    """Cancel it; harmless where it has ended."""
    where = hub.where_writing(f"cancel the Job {job_id}")
    hub.patiently(where, lambda: hub.outputs.cancel_job(job_id=job_id, namespace=namespace))


def _job(info: Any) -> HubJob:
    return HubJob(
        id=str(info.id),
        namespace=str(info.owner.name),
        url=str(info.url),
        stage=str(getattr(info.status.stage, "value", info.status.stage)),
        message=str(info.status.message or ""),
    )
