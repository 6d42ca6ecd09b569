"""Webhooks: who is told of what. What is sent to them: `deliveries`."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .database import Database
from .errors import HttpError
from .jobs import Job
from .records import Repo, Webhook, WebhookJob

QUERY = "SELECT webhook.*, job.owner, job.spec, job.secrets FROM webhook LEFT JOIN webhook_job AS job ON job.webhook = webhook.id"


def _webhook(row: sqlite3.Row) -> Webhook:
    return Webhook(
        id=row["id"],
        user=row["user"],
        url=row["url"],
        secret=row["secret"],
        watched=tuple(json.loads(row["watched"])),
        domains=tuple(json.loads(row["domains"])),
        disabled=bool(row["disabled"]),
        job=WebhookJob(owner=row["owner"], spec=json.loads(row["spec"]), secrets=json.loads(row["secrets"]))
        if row["spec"]
        else None,
    )


def of_user(db: Database, user: str) -> list[Webhook]:
    """The user's subscriptions."""
    rows = db.read.execute(f"{QUERY} WHERE user = ? ORDER BY webhook.rowid", (user,)).fetchall()
    return [_webhook(row) for row in rows]


def get(db: Database, user: str, webhook_id: str) -> Webhook:
    """One of the user's subscriptions."""
    row = db.read.execute(f"{QUERY} WHERE id = ? AND user = ?", (webhook_id, user)).fetchone()
    if row is None:
        raise HttpError(404, "Webhook not found")
    return _webhook(row)


def by_id(db: Database, webhook_id: str) -> Webhook | None:
    """A subscription, whosever it is; None where it is gone."""
    row = db.read.execute(f"{QUERY} WHERE id = ?", (webhook_id,)).fetchone()
    return _webhook(row) if row else None


def save(db: Database, webhook: Webhook) -> Webhook:
    """Create or change a subscription."""
    with db.write() as rows:
        rows.execute(
            "INSERT INTO webhook VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET url = excluded.url, "
            "secret = excluded.secret, watched = excluded.watched, domains = excluded.domains, "
            "disabled = excluded.disabled",
            (
                webhook.id,
                webhook.user,
                webhook.url,
                webhook.secret,
                json.dumps(webhook.watched),
                json.dumps(webhook.domains),
                webhook.disabled,
            ),
        )
        rows.execute("DELETE FROM webhook_job WHERE webhook = ?", (webhook.id,))
        if (job := webhook.job) is not None:
            values = (webhook.id, job.owner, json.dumps(job.spec), json.dumps(job.secrets))
            rows.execute("INSERT INTO webhook_job VALUES (?, ?, ?, ?)", values)
    return webhook


def switch(db: Database, webhook: Webhook, *, disabled: bool) -> Webhook:
    """Let it hear nothing, or hear again."""
    return save(db, replace(webhook, disabled=disabled))


def delete(db: Database, webhook: Webhook) -> None:
    """Unsubscribe."""
    with db.write() as rows:
        rows.execute("DELETE FROM webhook WHERE id = ?", (webhook.id,))
        rows.execute("DELETE FROM webhook_job WHERE webhook = ?", (webhook.id,))


def changed(webhook: Webhook, body: Mapping[str, Any], source: Job | None = None) -> Webhook:
    """A subscription with the fields that an API body names; refuses one that leads nowhere. `source`: the Job that it names."""
    url, job = body.get("url", webhook.url), webhook.job
    if body.get("url"):
        job = None
    if source is not None:
        url, job = (
            "",
            WebhookJob(owner=source.owner, spec=source.spec, secrets=_secrets(job, body.get("secrets") or {})),
        )
    elif body.get("secrets"):
        raise HttpError(400, "secrets need a jobSourceId")
    if not url and job is None:
        raise HttpError(400, "A webhook needs a url or a jobSourceId")
    return replace(
        webhook,
        url=url,
        secret=body.get("secret", webhook.secret),
        watched=tuple(body.get("watched", webhook.watched)),
        domains=tuple(body.get("domains", webhook.domains)),
        job=job,
    )


def _secrets(job: WebhookJob | None, named: Mapping[str, str]) -> dict[str, str]:
    """Those that are named take the place of what is stored, "" removes one, and the others stay."""
    return {name: value for name, value in ((job.secrets if job else {}) | dict(named)).items() if value}


def new(user: str) -> Webhook:
    """An empty subscription with a fresh id."""
    return Webhook(
        id=secrets.token_hex(12), user=user, url="", secret=None, watched=(), domains=("repo", "discussion"),
        disabled=False,
    )  # fmt: skip


def watching(db: Database, repo: Repo, scope: str) -> list[Webhook]:
    """The subscriptions that an event of this scope concerns."""
    domain = scope.split(".", 1)[0]
    rows = db.read.execute(f"{QUERY} WHERE disabled = 0 ORDER BY webhook.rowid").fetchall()
    return [w for w in map(_webhook, rows) if domain in w.domains and _watches(w.watched, repo)]


def _watches(watched: Sequence[Mapping[str, str]], repo: Repo) -> bool:
    for item in watched:
        subject = repo.owner if item.get("type") in ("user", "org") else repo.name
        if item.get("type") in ("user", "org", repo.kind) and item.get("name", "").lower() == subject.lower():
            return True
    return False
