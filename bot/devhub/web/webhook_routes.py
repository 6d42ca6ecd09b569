"""Webhooks over HTTP."""

from __future__ import annotations

from typing import Any

from starlette.routing import BaseRoute

from .. import access, webhooks
from ..errors import HttpError
from ..jobs import Job
from ..records import Webhook, WebhookJob
from .call import Answer, Call, route


def _shown(webhook: Webhook) -> dict[str, Any]:
    return {
        "id": webhook.id,
        **({"url": webhook.url} if webhook.job is None else {"job": _spec(webhook.job)}),
        "watched": list(webhook.watched),
        "domains": list(webhook.domains),
        "secret": webhook.secret,
        "disabled": webhook.disabled,
    }


def _spec(job: WebhookJob) -> dict[str, Any]:
    names = ("dockerImage", "spaceId", "command", "arguments", "environment", "flavor", "labels")
    shown = {name: job.spec[name] for name in names if name in job.spec}
    return shown | {"secrets": sorted(job.secrets), "timeout": job.spec.get("timeoutSeconds")}


def _webhook(call: Call) -> Webhook:
    return webhooks.get(call.site.db, call.user, call.params["id"])


def _writing_user(call: Call) -> str:
    if call.viewer.role == "read":
        raise HttpError(403, 'This token has the role "read": use a token with write access to change webhooks.')
    return call.user


def list_webhooks(call: Call) -> Answer:
    """GET /api/settings/webhooks: a plain array."""
    return [_shown(webhook) for webhook in webhooks.of_user(call.site.db, call.user)]


def _source(call: Call) -> Job | None:
    """The Job that the body names as the one to start again at each event."""
    job_id = call.json.get("jobSourceId")
    if job_id is None:
        return None
    owners = [call.user, *call.viewer.orgs]
    jobs = [job for owner in owners for job in call.site.jobs.every(owner) if job.id == job_id]
    if not jobs:
        raise HttpError(404, "Job not found")
    access.require_jobs(call.viewer, jobs[0].owner, "start a Job", write=True)
    return jobs[0]


def create_webhook(call: Call) -> Answer:
    """POST /api/settings/webhooks."""
    webhook = webhooks.changed(webhooks.new(_writing_user(call)), call.json, _source(call))
    return {"webhook": _shown(webhooks.save(call.site.db, webhook))}


def show_webhook(call: Call) -> Answer:
    """GET /api/settings/webhooks/{id}."""
    return {"webhook": _shown(_webhook(call))}


def change_webhook(call: Call) -> Answer:
    """POST /api/settings/webhooks/{id}."""
    _writing_user(call)
    return {"webhook": _shown(webhooks.save(call.site.db, webhooks.changed(_webhook(call), call.json, _source(call))))}


def switch_webhook(call: Call) -> Answer:
    """POST /api/settings/webhooks/{id}/enable and …/disable."""
    _writing_user(call)
    webhook = webhooks.switch(call.site.db, _webhook(call), disabled=call.path.endswith("/disable"))
    call.site.deliveries.forgive(webhook.id)
    return {"webhook": _shown(webhook)}


def delete_webhook(call: Call) -> Answer:
    """DELETE /api/settings/webhooks/{id}."""
    _writing_user(call)
    webhooks.delete(call.site.db, _webhook(call))
    return {"success": True}


WEBHOOKS = "/api/settings/webhooks"
ROUTES: list[BaseRoute] = [
    route(WEBHOOKS, list_webhooks),
    route(WEBHOOKS, create_webhook, "POST"),
    route(WEBHOOKS + "/{id}", show_webhook),
    route(WEBHOOKS + "/{id}", change_webhook, "POST"),
    route(WEBHOOKS + "/{id}", delete_webhook, "DELETE"),
    route(WEBHOOKS + "/{id}/enable", switch_webhook, "POST"),
    route(WEBHOOKS + "/{id}/disable", switch_webhook, "POST"),
]
