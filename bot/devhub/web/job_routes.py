"""Jobs over HTTP: the endpoints that huggingface_hub's client calls."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import BaseRoute

from ..access import require_jobs
from ..accounts import account_id, is_org
from ..jobs import Job
from .call import Answer, Call, route, streaming_route
from .paging import page

PAGE = 50
LOOK = 0.05  # seconds between two looks at a log that is followed
KEEP_ALIVE = 30.0  # seconds


def hardware(call: Call) -> Answer:
    """GET /api/jobs/hardware: open to everybody."""
    return list(call.site.hardware)


def start(call: Call) -> Answer:
    """POST /api/jobs/{namespace}."""
    namespace = _namespace(call, "start a Job", write=True)
    spec = {name: value for name, value in call.json.items() if name != "secrets"}
    secrets = {str(name): str(value) for name, value in (call.json.get("secrets") or {}).items()}
    initiator = {"type": "user", "id": account_id(call.user), "name": call.user}
    return _shown(call, call.site.jobs.start(namespace, spec, secrets, initiator))


def list_jobs(call: Call) -> Answer:
    """GET /api/jobs/{namespace}, the newest first; `stage` and `label` (name=value) narrow it, each may be given several times."""
    jobs = call.site.jobs.every(_namespace(call, "list Jobs"))
    stages = {stage.upper() for stage in call.query.getlist("stage")}
    labels = [tuple(label.split("=", 1)) for label in call.query.getlist("label")]
    wanted = [
        job for job in jobs
        if (not stages or job.stage in stages) and set(labels) <= set((job.spec.get("labels") or {}).items())
    ]  # fmt: skip
    return page(call, [_shown(call, job) for job in wanted], size=PAGE)


def show(call: Call) -> Answer:
    """GET /api/jobs/{namespace}/{id}."""
    return _shown(call, _job(call, "look at a Job"))


def cancel(call: Call) -> Answer:
    """POST /api/jobs/{namespace}/{id}/cancel."""
    job = _job(call, "cancel a Job", write=True)
    call.site.jobs.cancel(job)
    return _shown(call, job)


async def logs(call: Call, request: Request) -> Answer:
    """GET /api/jobs/{namespace}/{id}/logs: server-sent events; it ends when the Job has ended and all is out."""
    job = await run_in_threadpool(_job, call, "read a Job's log")
    return StreamingResponse(_events(call, job, call.query.get("tail")), media_type="text/event-stream")


async def _events(call: Call, job: Job, tail: str | None) -> AsyncIterator[str]:
    lines = await run_in_threadpool(call.site.jobs.lines, job)
    sent = max(0, len(lines) - int(tail)) if tail and tail.isdigit() else 0
    heard = time.monotonic()
    while True:
        over = job.ended
        lines = await run_in_threadpool(call.site.jobs.lines, job, sent)
        for line in lines:
            yield f"data: {json.dumps(line)}\n\n"
        sent += len(lines)
        if over:
            return
        if lines or time.monotonic() - heard > KEEP_ALIVE:
            heard = time.monotonic()
            yield ": keep-alive\n\n"
        await asyncio.sleep(LOOK)


def _namespace(call: Call, what: str, *, write: bool = False) -> str:
    name = call.params["namespace"]
    require_jobs(call.viewer, name, what, write=write)
    return name


def _job(call: Call, what: str, *, write: bool = False) -> Job:
    return call.site.jobs.get(_namespace(call, what, write=write), call.params["id"])


def _shown(call: Call, job: Job) -> dict[str, Any]:
    organization = is_org(call.site.db, job.owner)
    shown: dict[str, Any] = {
        "id": job.id,
        "createdAt": job.created,
        "startedAt": job.started,
        "finishedAt": job.finished,
        "command": job.spec.get("command"),
        "arguments": job.spec.get("arguments") or [],
        "environment": job.spec.get("environment") or {},
        "secrets": dict.fromkeys(job.secrets, "(encrypted)"),
        "flavor": job.spec.get("flavor"),
        "labels": job.spec.get("labels"),
        "status": {"stage": job.stage, "message": job.message},
        "owner": {"id": account_id(job.owner), "name": job.owner, "type": "org" if organization else "user"},
        "initiator": job.initiator,
    }
    return shown | {name: job.spec[name] for name in ("dockerImage", "spaceId") if name in job.spec}


JOBS = "/api/jobs"
ROUTES: list[BaseRoute] = [
    route(JOBS + "/hardware", hardware),
    route(JOBS + "/{namespace}", start, "POST"),
    route(JOBS + "/{namespace}", list_jobs),
    route(JOBS + "/{namespace}/{id}", show),
    route(JOBS + "/{namespace}/{id}/cancel", cancel, "POST"),
    streaming_route(JOBS + "/{namespace}/{id}/logs", logs),
]
