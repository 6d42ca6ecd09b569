"""A merge started by a person: the same outbox, and on request the same end as if it had run here."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from bot.dispatch.allow import Allowed
from bot.dispatch.backends import Backend
from bot.dispatch.command import arguments
from bot.dispatch.dispatcher import Dispatcher
from bot.dispatch.records import FINAL, Order, RunRequest
from bot.dispatch.resolve import resolver
from bot.dispatch.store import Store
from bot.errors import Interrupted, Outside, Refused, Usage
from bot.events import Emit, Stage, StepProgress
from bot.hub.names import is_repo_id
from bot.hub.retries import rest

if TYPE_CHECKING:
    from bot.hub import Hub

NAP = 0.5  # seconds
FOLLOWED = 3.0  # seconds between two looks at the run, as somebody waits


def order_by_hand(text: str, options: Iterable[str]) -> Order:
    """`owner/name[@revision]` and NAME=VALUE pairs as an order. Raises Usage."""
    adapter, _, revision = text.partition("@")
    if not is_repo_id(adapter):
        raise Usage(f"{text} is no adapter on the Hub.", remedy="Write owner/name or owner/name@tag.")
    order = Order(
        key=f"hand {secrets.token_hex(8)}", adapter=adapter, revision=revision or None, sha=None, origin="hand", options=pairs(options)
    )  # fmt: skip
    arguments(order)
    return order


def pairs(options: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """NAME=VALUE each, taken apart. Raises Usage."""
    taken = []
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise Usage(f"--option {option} has no value.", remedy="Write NAME=VALUE, as dtype=float16.")
        taken.append((name, value))
    return tuple(taken)


def options_of_all(wanted: Iterable[str], allowed: Allowed) -> tuple[tuple[str, str], ...]:
    """NAME=VALUE pairs for every run of a bot. Raises Usage, also where several adapters would be published to one repo."""
    options = pairs(wanted)
    arguments(Order(key="", adapter="owner/name", revision=None, sha=None, origin="hand", options=options))
    target = dict(options).get("target-repo")
    if target is not None and not is_repo_id(target):
        raise Usage(f"target-repo is {target!r}.", remedy="Write owner/name.")
    if target is not None and (len(allowed.repos) > 1 or "*" in allowed.repos[0]):
        raise Usage(
            "target-repo is one repo, and several adapters are allowed.",
            remedy="Allow a single one with --allow owner/name, or leave target-repo out.",
        )
    return options


def dispatch_by_hand(
    order: Order,
    store: Store,
    backend: Backend,
    hub: Hub,
    emit: Emit,
    *,
    wait: bool,
    after: Callable[[], None] = lambda: None,
) -> RunRequest:
    """Send it now, and with `wait` follow it to its end. Raises Refused where there is nothing to run, Outside where it could not
    be sent: a person tries again himself. `after`: done after every step."""
    request = store.add(order, backend=backend.NAME)
    assert request is not None  # its key is a new one
    dispatcher = Dispatcher(store, backend, resolver(hub, None), emit, only=request.id)
    dispatcher.follow_every = min(FOLLOWED, backend.LOOK_EVERY)
    emit(Stage(name="dispatch", title=f"Dispatching {order.adapter}"))
    try:
        request = _until_sent(request, store, dispatcher, emit, after, wait=wait)
    except KeyboardInterrupt:
        raise _interrupted(store.request(request.id) or request, store) from None
    if request.state == "dropped":
        raise Refused(request.reason, remedy="Name another adapter, or another tag.")
    return request


def _until_sent(
    request: RunRequest, store: Store, dispatcher: Dispatcher, emit: Emit, after: Callable[[], None], *, wait: bool
) -> RunRequest:
    """The request once it was sent or given up, or with `wait` once its run has ended."""
    while True:
        worked = dispatcher.step()
        after()
        request = store.request(request.id) or request
        if request.state == "waiting" and request.attempts:
            store.drop(request, request.reason)
            raise Outside(request.reason, remedy=request.remedy)
        if request.state in FINAL or (request.state == "sent" and not wait):
            return request
        status = request.fate.status if request.fate else request.state
        emit(StepProgress(stage="dispatch", done=0, total=0, what=f"Run {status}"))
        if not worked:
            rest(NAP)


def _interrupted(request: RunRequest, store: Store) -> Interrupted:
    """Whoever stops waiting is told that the run does not stop with him."""
    if request.state == "waiting":
        error = Interrupted("Interrupted before the run was started.", remedy="Dispatch it again.")
        store.drop(request, error.what)
        return error
    at = f" at {request.run.url}" if request.run and request.run.url else ""
    return Interrupted(
        f"Interrupted: the run of request {request.id} goes on{at}.",
        remedy="The page of `serve` with the same --state file shows how it ends.",
    )
