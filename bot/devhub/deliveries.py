"""Events on their way to webhooks: tried again where they are refused, and given up with the webhook where that goes on.

Every delivery has an id, which goes with each of its tries and with each replay (`Webhook-Id`). An answer that is not 2xx, and none
at all, is a failure: it is tried again after a pause, and too many in a row suspend the webhook.
Sources: https://huggingface.co/docs/hub/webhooks, https://huggingface.co/docs/hub/jobs-webhooks
"""

from __future__ import annotations

import heapq
import itertools
import json
import secrets
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from . import webhooks
from .database import Database
from .errors import HttpError
from .jobs import Jobs
from .records import Webhook

TIMEOUT = 10.0  # seconds that an answer is waited for
PAUSES = (0.05, 0.2, 1.0)  # seconds before each further try; the Hub itself takes minutes
SUSPENDED_AFTER = 20  # failures of one webhook in a row
KEPT = 10_000  # deliveries that can be replayed


@dataclass(frozen=True, kw_only=True)
class WebhookDelivery:
    """One try: the answer's status, or the error that kept it from arriving. `id`: the delivery's, the same in every try; `job`: the
    Job that it started."""

    id: str
    webhook: str
    url: str
    payload: dict[str, Any]
    status: int | None
    error: str | None
    attempt: int = 1
    job: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Pending:
    id: str
    webhook: str
    payload: dict[str, Any]
    attempt: int = 1


class Deliveries:
    """Sends payloads one after the other from a background thread; a failure is recorded, never raised."""

    def __init__(self, db: Database, jobs: Jobs) -> None:
        self.log: list[WebhookDelivery] = []
        self.pauses, self.suspended_after = PAUSES, SUSPENDED_AFTER
        self._db, self._jobs = db, jobs
        self._waiting: list[tuple[float, int, _Pending]] = []  # (when, in which order, what)
        self._order = itertools.count()
        self._sent: dict[str, _Pending] = {}
        self._failures: dict[str, int] = {}
        self._busy = self._over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="devhub-webhooks", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Stop once the payload being sent is through; what is still queued is dropped."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join(timeout=TIMEOUT)

    def drain(self, timeout: float) -> None:
        """Wait until everything queued so far is sent, or given up."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout)

    def put(self, webhook: Webhook, payload: dict[str, Any]) -> None:
        """Send a payload soon."""
        payload = payload | {"webhook": {"id": webhook.id, "version": 3}}
        self._push(_Pending(id=secrets.token_hex(12), webhook=webhook.id, payload=payload))

    def replay(self, delivery: str) -> None:
        """Send a past delivery once more, under its own id and to where its webhook leads now."""
        if delivery not in self._sent:
            raise HttpError(404, "Delivery not found")
        self._push(self._sent[delivery])

    def forgive(self, webhook: str) -> None:
        """Its failures count no more: it was enabled again."""
        self._failures.pop(webhook, None)

    def _push(self, pending: _Pending, pause: float = 0.0) -> None:
        with self._changed:
            heapq.heappush(self._waiting, (time.monotonic() + pause, next(self._order), pending))
            self._changed.notify_all()

    def _run(self) -> None:
        while (pending := self._next()) is not None:
            try:
                self._deliver(pending)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _next(self) -> _Pending | None:
        with self._changed:
            while not self._over:
                left = self._waiting[0][0] - time.monotonic() if self._waiting else None
                if left is not None and left <= 0:
                    self._busy = True
                    return heapq.heappop(self._waiting)[2]
                self._changed.wait(left)
        return None

    def _deliver(self, pending: _Pending) -> None:
        webhook = webhooks.by_id(self._db, pending.webhook)
        if webhook is None or webhook.disabled:
            return None
        tried = self._start_job(webhook, pending) if webhook.job else _send(webhook, pending)
        self._sent[pending.id] = _Pending(id=pending.id, webhook=webhook.id, payload=pending.payload)
        if len(self._sent) > KEPT:
            self._sent.pop(next(iter(self._sent)))
        self.log.append(tried)
        if tried.status is not None and 200 <= tried.status < 300:
            return self.forgive(webhook.id)
        self._failures[webhook.id] = self._failures.get(webhook.id, 0) + 1
        if self._failures[webhook.id] >= self.suspended_after:
            webhooks.switch(self._db, webhook, disabled=True)
        elif pending.attempt <= len(self.pauses):
            again = _Pending(
                id=pending.id, webhook=webhook.id, payload=pending.payload, attempt=pending.attempt + 1
            )  # fmt: skip
            self._push(again, self.pauses[pending.attempt - 1])
        return None

    def _start_job(self, webhook: Webhook, pending: _Pending) -> WebhookDelivery:
        """A Job like the one that the webhook was made from: its command and environment, the webhook's secrets, no volumes."""
        assert webhook.job is not None
        repo = pending.payload.get("repo") or {}
        heard = {
            "WEBHOOK_PAYLOAD": json.dumps(pending.payload),
            "WEBHOOK_REPO_ID": str(repo.get("name", "")),
            "WEBHOOK_REPO_TYPE": str(repo.get("type", "")),
            "WEBHOOK_ID": pending.id,
        }
        spec = {name: value for name, value in webhook.job.spec.items() if name != "volumes"}
        spec["environment"] = (spec.get("environment") or {}) | heard
        hidden = dict(webhook.job.secrets) | ({"WEBHOOK_SECRET": webhook.secret} if webhook.secret else {})
        initiator = {"type": "webhook", "id": webhook.id}
        status, job, error = 201, None, None
        try:
            job = self._jobs.start(webhook.job.owner, spec, hidden, initiator).id
        except HttpError as refusal:
            status, error = refusal.status, refusal.message
        return WebhookDelivery(
            id=pending.id, webhook=webhook.id, url="", payload=pending.payload, status=status, error=error,
            attempt=pending.attempt, job=job,
        )  # fmt: skip


def _send(webhook: Webhook, pending: _Pending) -> WebhookDelivery:
    headers = {"Content-Type": "application/json", "User-Agent": "devhub-webhooks", "Webhook-Id": pending.id}
    if webhook.secret:
        headers["X-Webhook-Secret"] = webhook.secret
    status, error = None, None
    try:
        request = urllib.request.Request(webhook.url, json.dumps(pending.payload).encode(), headers)
        # A proxy from the environment must not stand between a local hub and a local receiver.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=TIMEOUT) as response:
            status = response.status
    except urllib.error.HTTPError as refusal:
        status, error = refusal.code, str(refusal)
    except (OSError, ValueError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    return WebhookDelivery(
        id=pending.id, webhook=webhook.id, url=webhook.url, payload=pending.payload, status=status, error=error,
        attempt=pending.attempt,
    )  # fmt: skip
