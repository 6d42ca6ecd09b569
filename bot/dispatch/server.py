"""The server: deliveries in, a page out, and the dispatcher beside it. uvicorn carries it; it ends in order on Ctrl-C and SIGTERM."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from bot.dispatch.allow import Allowed
from bot.dispatch.dispatcher import Dispatcher
from bot.dispatch.metrics import CONTENT_TYPE, exposition
from bot.dispatch.page import render_page
from bot.dispatch.store import Store
from bot.dispatch.webhook_intake import SLOWEST, Commands, Intake
from bot.errors import AdapterMergeError, Usage

# A page that loads nothing and runs nothing; its style stands in it.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# When the server ends, deliveries under way get these seconds, then the dispatcher; after five the process ends, see bot.signals.
ORDERLY, LAST_STEP = 3, 1.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`secret`: of the webhook. `hub`: the Hub's address, for links. `page`: whether `/` shows anything. `options`: of every run."""

    secret: str
    allowed: Allowed
    hub: str
    page: bool = True
    options: tuple[tuple[str, str], ...] = ()


def make_app(store: Store, settings: Settings, commands: Commands, wake: Callable[[], None]) -> Starlette:
    """The application: `POST /webhook`, and to look at `/`, `/healthz`, `/metrics`."""
    intake = Intake(store, settings.allowed, settings.secret, commands, wake, settings.options)

    async def health(request: Request) -> Response:
        try:
            await run_in_threadpool(store.check)
        except AdapterMergeError as error:
            return JSONResponse({"status": "unavailable", "reason": str(error)}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return Response(await run_in_threadpool(exposition, store, intake), media_type=CONTENT_TYPE)

    async def page(request: Request) -> Response:
        return HTMLResponse(await run_in_threadpool(render_page, store, settings.hub), headers=HEADERS)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        writer = asyncio.create_task(intake.run())
        yield
        writer.cancel()
        with suppress(asyncio.CancelledError):
            await writer

    looked_at = [Route("/healthz", health), Route("/metrics", metrics), *([Route("/", page)] if settings.page else [])]
    return Starlette(routes=[Route("/webhook", intake.receive, methods=["POST"]), *looked_at], lifespan=lifespan)


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound already, so that a port in use is told before anything else. Raises Usage."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)  # what comes from now on waits for uvicorn, and is not refused
    except (OSError, OverflowError) as error:
        listener.close()
        raise Usage(
            f"{host}:{port} cannot be listened at: {getattr(error, 'strerror', None) or str(error).rstrip('.')}.",
            remedy="Name another --port or --host, or end the program that has it.",
        ) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Where it listens, as a URL."""
    host, port, *_ = listener.getsockname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Punctual(H11Protocol):
    """uvicorn's connection, closed where the head of a request does not come in SLOWEST seconds: uvicorn itself waits without end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there: its request is expected."""
        super().connection_made(transport)
        self._expect(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone: nothing is expected any more."""
        self._late.cancel()
        super().connection_lost(exc)

    def _expect(self, answered: Any) -> None:
        self._late = self.loop.call_later(SLOWEST, self._look, answered)

    def _look(self, answered: Any) -> None:
        """`answered`: the newest request at the last look, if its answer was complete by then."""
        between = self.cycle is None or self.cycle.response_complete
        if between and self.cycle is answered:
            self.transport.close()
        else:
            self._expect(self.cycle if between else object())


def make_server(app: Starlette) -> uvicorn.Server:
    """uvicorn as we have it: quiet, and not patient with anybody."""
    config = uvicorn.Config(
        app,
        http=Punctual,
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=ORDERLY,
        h11_max_incomplete_event_size=16_384,
        server_header=False,
    )
    return uvicorn.Server(config)


def serve(
    store: Store,
    settings: Settings,
    dispatcher: Dispatcher,
    commands: Commands,
    listener: socket.socket,
    after: Callable[[], None],
) -> None:
    """Serve until Ctrl-C or SIGTERM, which are its proper end. `after`: done after every round of the dispatcher, such as telling
    of runs."""
    stop, wake = Event(), Event()
    # A daemon: a call that hangs, to the Hub or to a backend, does not keep the server from ending. What it sends is found again.
    worker = Thread(target=dispatcher.run, args=(stop, wake, after), name="dispatcher", daemon=True)
    server = make_server(make_app(store, settings, commands, wake.set))
    worker.start()
    try:
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    finally:
        stop.set()
        wake.set()
        worker.join(LAST_STEP)
        listener.close()
