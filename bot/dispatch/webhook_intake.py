"""Deliveries come in: authenticated, read, on the disk, and only then answered. Many that come at once share one transaction."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from hmac import compare_digest
from time import time
from typing import Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from bot.dispatch.allow import Allowed
from bot.dispatch.command import with_defaults
from bot.dispatch.payload import LONGEST, Comment, Reading, read_payload
from bot.dispatch.records import Delivery, Order
from bot.dispatch.store import Accepted, Store
from bot.errors import AdapterMergeError
from bot.untrusted import strict_json

LARGEST = 1 << 20  # bytes of a payload; the Hub's own are a few thousand
SLOWEST = 10.0  # seconds in which a body must have come
TOGETHER = 500  # deliveries of one transaction, at most

Written = tuple[Delivery, Sequence[Order]]


class Commands(Protocol):
    """Reads a comment for commands, and says which orders it means; whether its author may give them is asked later."""

    def __call__(self, comment: Comment) -> Sequence[Order]: ...


class Intake:
    """`secret`: what the Hub sends along with every delivery. `wake` is called when something was accepted. `options`: of every
    run."""

    def __init__(
        self,
        store: Store,
        allowed: Allowed,
        secret: str,
        commands: Commands,
        wake: Callable[[], None],
        options: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.store, self.allowed, self.commands, self.wake = store, allowed, commands, wake
        self.options = options
        self._secret = secret.encode()
        self._queue: asyncio.Queue[tuple[Written, asyncio.Future[Accepted]]] = asyncio.Queue()
        self.answers: dict[int, int] = {}  # how often each status was answered

    async def receive(self, request: Request) -> Response:
        """One delivery. 401 to a wrong secret; every other delivery is answered 2xx, as anything else is sent again and in the end
        gets the webhook suspended; but for 503 where nothing can be written, and 408 where the body does not come."""
        response = await self._answer(request)
        self.answers[response.status_code] = self.answers.get(response.status_code, 0) + 1
        return response

    async def _answer(self, request: Request) -> Response:
        # Latin-1 is what a header's bytes come as.
        if not compare_digest(request.headers.get("X-Webhook-Secret", "").encode("latin-1"), self._secret):
            return JSONResponse({"status": "unauthorized"}, 401)
        try:
            async with asyncio.timeout(SLOWEST):
                body = await _body(request)
        except (TimeoutError, ClientDisconnect):
            return JSONResponse({"status": "timeout"}, 408, headers={"Connection": "close"})
        delivery, orders = self._read(request.headers.get("Webhook-Id", ""), body)
        try:
            accepted = await self._write(delivery, orders)
        except AdapterMergeError as error:
            return JSONResponse({"status": "unavailable", "reason": error.what}, 503, headers={"Retry-After": "60"})
        if not accepted.new:
            return JSONResponse({"status": "ignored", "reason": "this delivery came before"})
        if not accepted.requests:
            why = delivery.verdict.removeprefix("ignored: ") if not orders else "all of it was asked for before"
            return JSONResponse({"status": "ignored", "reason": why})
        return JSONResponse({"status": "accepted", "requests": accepted.requests}, 202)

    def _read(self, name: str, body: bytes | None) -> Written:
        reading = _reading(body, self.allowed)
        if reading.comment is not None:
            orders = tuple(self.commands(reading.comment))
            words = ", ".join(f"/{order.kind}" for order in orders)
            reading = replace(reading, orders=orders, verdict=f"accepted: {words}" if orders else reading.verdict)
        fits = 0 < len(name) <= LONGEST and name.isprintable()
        delivery = Delivery(
            id=name if fits else "body:" + hashlib.sha256(body or b"").hexdigest(),
            received=time(),
            event=reading.event,
            repo=reading.repo,
            verdict=reading.verdict,
        )
        return delivery, [with_defaults(order, self.options) for order in reading.orders]

    async def _write(self, delivery: Delivery, orders: Sequence[Order]) -> Accepted:
        answer: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(((delivery, orders), answer))
        return await answer

    async def run(self) -> None:
        """Write what has come in, until cancelled."""
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty() and len(batch) < TOGETHER:
                batch.append(self._queue.get_nowait())
            try:
                accepted = await run_in_threadpool(self.store.accept, [written for written, _ in batch])
            except Exception as error:
                for _, answer in batch:
                    if not answer.done():  # its client may have gone
                        answer.set_exception(error)
                continue
            for (_, answer), result in zip(batch, accepted, strict=True):
                if not answer.done():
                    answer.set_result(result)
            if any(result.requests for result in accepted):
                self.wake()


async def _body(request: Request) -> bytes | None:
    """All of the body; None where it is larger than LARGEST. The rest of that is read and forgotten: whoever is cut off while he
    still sends sees no answer."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > LARGEST:
            pieces.clear()
        else:
            pieces.append(piece)
    return b"".join(pieces) if size <= LARGEST else None


def _reading(body: bytes | None, allowed: Allowed) -> Reading:
    if body is None:
        return Reading(event="", repo="", verdict=f"ignored: larger than {LARGEST >> 20} MiB")
    try:
        payload = strict_json.loads(body)
    except ValueError:
        return Reading(event="", repo="", verdict="ignored: not JSON")
    return read_payload(payload, allowed)
