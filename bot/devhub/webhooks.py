"""Webhooks: what is subscribed, what is sent, and what became of it."""

from __future__ import annotations

import json
import queue
import secrets
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .database import Database
from .errors import HttpError
from .records import Repo, Webhook

TIMEOUT = 10.0


@dataclass(frozen=True, kw_only=True)
class WebhookDelivery:
    """One attempt: the answer's status, or the error that kept it from arriving."""

    webhook: str
    url: str
    payload: dict[str, Any]
    status: int | None
    error: str | None


def _webhook(row: sqlite3.Row) -> Webhook:
    return Webhook(
        id=row["id"],
        user=row["user"],
        url=row["url"],
        secret=row["secret"],
        watched=tuple(json.loads(row["watched"])),
        domains=tuple(json.loads(row["domains"])),
        disabled=bool(row["disabled"]),
    )


def of_user(db: Database, user: str) -> list[Webhook]:
    """The user's subscriptions."""
    rows = db.read.execute("SELECT * FROM webhook WHERE user = ? ORDER BY rowid", (user,)).fetchall()
    return [_webhook(row) for row in rows]


def get(db: Database, user: str, webhook_id: str) -> Webhook:
    """One of the user's subscriptions."""
    row = db.read.execute("SELECT * FROM webhook WHERE id = ? AND user = ?", (webhook_id, user)).fetchone()
    if row is None:
        raise HttpError(404, "Webhook not found")
    return _webhook(row)


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
    return webhook


def delete(db: Database, webhook: Webhook) -> None:
    """Unsubscribe."""
    with db.write() as rows:
        rows.execute("DELETE FROM webhook WHERE id = ?", (webhook.id,))


def changed(webhook: Webhook, body: Mapping[str, Any]) -> Webhook:
    """A subscription with the fields that an API body names; refuses one without a URL."""
    if not body.get("url", webhook.url):
        raise HttpError(400, "A webhook needs a url (this local hub runs no jobs)")
    return replace(
        webhook,
        url=body.get("url", webhook.url),
        secret=body.get("secret", webhook.secret),
        watched=tuple(body.get("watched", webhook.watched)),
        domains=tuple(body.get("domains", webhook.domains)),
    )


def new(user: str) -> Webhook:
    """An empty subscription with a fresh id."""
    return Webhook(
        id=secrets.token_hex(12), user=user, url="", secret=None, watched=(), domains=("repo", "discussion"),
        disabled=False,
    )  # fmt: skip


def watching(db: Database, repo: Repo, scope: str) -> list[Webhook]:
    """The subscriptions that an event of this scope concerns."""
    domain = scope.split(".", 1)[0]
    rows = db.read.execute("SELECT * FROM webhook WHERE disabled = 0 ORDER BY rowid").fetchall()
    return [w for w in map(_webhook, rows) if domain in w.domains and _watches(w.watched, repo)]


def _watches(watched: Sequence[Mapping[str, str]], repo: Repo) -> bool:
    for item in watched:
        subject = repo.owner if item.get("type") in ("user", "org") else repo.name
        if item.get("type") in ("user", "org", repo.kind) and item.get("name", "").lower() == subject.lower():
            return True
    return False


class Deliveries:
    """Sends payloads one after the other from a background thread; a failure is recorded, never raised."""

    def __init__(self) -> None:
        self.log: list[WebhookDelivery] = []
        self._queue: queue.Queue[tuple[Webhook, dict[str, Any]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="devhub-webhooks", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Stop once the payload being sent is through; what is still queued is dropped."""
        with self._queue.mutex:
            self._queue.queue.clear()
        self._queue.put(None)
        self._thread.join(timeout=TIMEOUT)

    def drain(self, timeout: float) -> None:
        """Wait until everything queued so far is sent."""
        deadline = time.monotonic() + timeout
        while self._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)

    def put(self, webhook: Webhook, payload: dict[str, Any]) -> None:
        """Send a payload soon."""
        self._queue.put((webhook, payload | {"webhook": {"id": webhook.id, "version": 3}}))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            self.log.append(_send(*item))
            self._queue.task_done()


def _send(webhook: Webhook, payload: dict[str, Any]) -> WebhookDelivery:
    headers = {"Content-Type": "application/json", "User-Agent": "devhub-webhooks"}
    if webhook.secret:
        headers["X-Webhook-Secret"] = webhook.secret
    status, error = None, None
    try:
        request = urllib.request.Request(webhook.url, json.dumps(payload).encode(), headers)
        # A proxy from the environment must not stand between a local hub and a local receiver.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=TIMEOUT) as response:
            status = response.status
    except urllib.error.HTTPError as refusal:
        status, error = refusal.code, str(refusal)
    except (OSError, ValueError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    return WebhookDelivery(webhook=webhook.id, url=webhook.url, payload=payload, status=status, error=error)
