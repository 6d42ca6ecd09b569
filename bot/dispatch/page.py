"""The page: what came in, what runs, what came of it. Read-only, without scripts or secrets; the templates escape all of it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, select_autoescape

from bot import __version__
from bot.dispatch.records import RunRequest
from bot.dispatch.store import Store
from bot.untrusted.redact import redact

TEMPLATES = Path(__file__).parents[1] / "templates" / "bot"
SHOWN = 50
WORDS = {
    "waiting": "waiting", "sending": "being sent", "sent": "sent", "queued": "queued", "running": "running", "published": "published",
    "unchanged": "unchanged", "dry-run": "planned", "verified": "verified", "refused": "refused", "not-verified": "not verified",
    "failed": "failed", "dropped": "dropped", "answered": "answered",
}  # fmt: skip


def render_page(store: Store, hub: str) -> str:
    """The page as HTML. `hub`: the Hub's address, for links to the adapters."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"when": _when, "link": _link, "short": _short}
    return environment.get_template("page.html").render(
        version=__version__,
        hub=hub,
        now=_when(store.clock()),
        counts=store.counts(),
        requests=[_row(request) for request in store.requests(SHOWN)],
        deliveries=store.deliveries(SHOWN),
    )


def _row(request: RunRequest) -> dict[str, Any]:
    fate = request.fate
    status = fate.status if fate and request.state in ("sent", "done", "failed") else request.state
    kept = " ".join(filter(None, (request.reason, request.remedy)))
    return {
        "id": request.id,
        "kind": request.order.kind,
        "adapter": request.order.adapter,
        "revision": request.order.revision or "",
        "sha": (request.order.sha or "")[:12],
        "origin": request.order.origin,
        "status": status,
        "words": WORDS.get(status, status),
        "why": redact(kept),
        "tries": request.attempts,
        "due": request.due if request.state == "waiting" and request.attempts else None,
        "verdict": fate.verdict if fate else "",
        "result": fate.url if fate else "",
        "run": request.run.url if request.run else "",
        "backend": request.backend,
        "created": request.created,
    }


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _short(url: str) -> str:
    """An address as it is read: what comes after the machine's name."""
    parts = urlsplit(url)
    return parts.path.strip("/") or parts.netloc


def _link(url: str) -> str:
    """An address that may stand in a link: http or https; "" for anything else."""
    return url if urlsplit(url).scheme in ("http", "https") else ""
