"""The ASGI application: two origins, the request log, and the faults."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import socket
from email.utils import formatdate
from ipaddress import ip_address
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import HttpError
from ..faults import Fault
from ..site import Site
from . import (
    account_routes,
    collection_routes,
    discussion_routes,
    file_routes,
    job_routes,
    lfs_routes,
    page_routes,
    ref_routes,
    repo_routes,
    upload_routes,
    webhook_routes,
)
from .call import refusal

HUB_ROUTES = [
    *account_routes.ROUTES,
    *webhook_routes.ROUTES,
    *job_routes.ROUTES,
    *collection_routes.ROUTES,
    *upload_routes.ROUTES,
    *lfs_routes.ROUTES,
    *ref_routes.ROUTES,
    *file_routes.ROUTES,
    *discussion_routes.ROUTES,
    *repo_routes.ROUTES,
    *page_routes.ROUTES,
]
# All that a mirror of a package registry passes on: enough to download a model, and no more.
MIRRORED = re.compile(
    r"/api/models/[^/]+/[^/]+(/(revision|tree)/.+)?|/api/resolve-cache/models/.+|/(?!api/)[^/]+/[^/]+/resolve/.+"
)
PAGE = b"<!DOCTYPE html><html><head><title>Simple index</title></head><body><a href='models/'>models</a></body></html>"
LOG = logging.getLogger(__name__)
CDN_ROUTES = [*lfs_routes.CDN_ROUTES, *file_routes.CDN_ROUTES]


NEVER_ENDED: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]}


class _Cut(BaseException):
    """Ends a response in the middle, on purpose; not an Exception, or it would be answered with a 500."""


class Front:
    """Chooses the origin by the port that was connected to; logs, spoils and numbers every request."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._hub = _application(site, hub=True)
        self._cdn = _application(site, hub=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        on_cdn = scope["server"][1] == self._site.cdn_port
        raw = scope["raw_path"].partition(b"?")[0].decode("ascii", "replace")
        if not on_cdn:
            raw = raw.removeprefix(self._site.prefix) if raw.startswith(f"{self._site.prefix}/") else f"/outside{raw}"
        query = scope["query_string"].decode("ascii", "replace")
        target = f"{raw}?{query}" if query else raw
        fault = self._site.faults.take(scope["method"], target, "cdn" if on_cdn else "hub")
        # Routes match the quoted path: see call.py.
        scope = dict(scope, path=raw)
        answer = _Answer(self._site, scope, send, fault)
        try:
            if fault is not None and fault.delay:
                await asyncio.sleep(fault.delay)
            if fault is not None and fault.dropped:
                return await send(NEVER_ENDED)  # the only way to have the server close a connection
            if fault is not None and fault.status is not None:
                return await _reply(answer, fault.status, fault.body.encode(), dict(fault.headers))
            if not _called_by_address(scope):
                return await _reply(answer, 421, b"This Hub is called by its address, or localhost.", {})
            if on_cdn and any(name == b"authorization" for name, _ in scope["headers"]):
                return await _refuse_authorization(answer)
            if (
                self._site.mirror
                and not on_cdn
                and not (scope["method"] in ("GET", "HEAD") and MIRRORED.fullmatch(raw))
            ):
                return await _reply(answer, self._site.mirror, PAGE, {"Content-Type": "text/html; charset=utf-8"})
            app: ASGIApp = self._cdn if on_cdn else self._hub
            return await app(scope, receive, answer.send)
        except (_Cut, ClientDisconnect):
            # Returning before the response is complete makes uvicorn drop the connection.
            return None
        except Exception:
            # Already answered with a 500; said here, because uvicorn's own log is silenced.
            LOG.exception("The local Hub failed on %s %s", scope["method"], raw)
            return None


class _Answer:
    """Sends a response: adds the request id, logs the status, cuts where a fault says so."""

    def __init__(self, site: Site, scope: Scope, send: Send, fault: Fault | None) -> None:
        self._site, self._scope, self._send = site, scope, send
        added = fault.headers if fault is not None and fault.status is None else {}
        self._extra = [(name.lower().encode(), value.encode()) for name, value in added.items()]
        self._left = fault.cut_after if fault is not None and fault.status is None else None

    async def send(self, message: Message) -> None:
        """Pass one ASGI message on."""
        if message["type"] == "http.response.start":
            self._site.note(self._scope["method"], unquote(self._scope["path"]), message["status"])
            # uvicorn's own date is up to a second old, and the client drops the lines of a Job's log that are newer than it.
            date = formatdate(usegmt=True).encode()
            extra = [(b"date", date), (b"x-request-id", secrets.token_hex(12).encode()), *self._extra]
            message["headers"] = [*message.get("headers", []), *extra]
            if self._left == 0:  # also an answer without a body is not to arrive
                message = NEVER_ENDED
        elif self._left is not None and message["type"] == "http.response.body":
            body = message.get("body", b"")
            if not self._left:
                raise _Cut
            if len(body) > self._left:
                await self._send({**message, "body": body[: self._left], "more_body": True})
                raise _Cut
            self._left -= len(body)
        await self._send(message)


async def _reply(answer: _Answer, status: int, body: bytes, headers: dict[str, str]) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await answer.send({"type": "http.response.start", "status": status, "headers": raw})
    await answer.send({"type": "http.response.body", "body": body})


def _called_by_address(scope: Scope) -> bool:
    """Whether the Host header is an address or this machine's own name: a web page whose name was pointed here
    (DNS rebinding) would otherwise speak to this Hub with the rights of whoever looks at it."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("ascii", "replace")
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    if name.lower() in ("localhost", "host.docker.internal", socket.gethostname().lower()):
        return True
    try:
        return bool(ip_address(name.strip("[]")))
    except ValueError:
        return False


async def _refuse_authorization(answer: _Answer) -> None:
    """As S3 does with a signed URL: two ways to authenticate are one too many."""
    body = b"<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>"
    await _reply(answer, 400, body, {"Content-Type": "application/xml"})


def _crash(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"Internal error of the local Hub: {type(error).__name__}: {error}"}, status_code=500)


def _application(site: Site, *, hub: bool) -> Starlette:
    app = Starlette(
        routes=HUB_ROUTES if hub else CDN_ROUTES, exception_handlers={HttpError: refusal, Exception: _crash}
    )
    app.router.redirect_slashes = False
    app.state.site = site
    return app
