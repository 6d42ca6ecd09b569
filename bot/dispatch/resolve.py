"""The tag looked at again, just before anything is sent: it may have been moved or deleted, or its repo renamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bot.dispatch.allow import Allowed
from bot.dispatch.records import Fate, Order
from bot.errors import NotFound, Outside

if TYPE_CHECKING:
    from bot.hub import Hub

REPORT = "verification.json"
ADAPTER = "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What the order means now: `adapter` as the Hub calls it today, and the commit."""

    adapter: str
    sha: str


@dataclass(frozen=True, kw_only=True)
class Gone:
    """Why there is nothing to run, in one sentence."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What it comes to without a run."""

    fate: Fate


Resolver = Callable[[Order], Resolved | Gone | Decided]


def resolver(hub: Hub, allowed: Allowed | None) -> Resolver:
    """Asks the Hub. `allowed`: a renamed repo must still be on the list; None: a person asked by name."""

    def resolve(order: Order) -> Resolved | Gone:
        if order.origin == "comment":  # who gave it has to be looked at, see bot.dispatch.comments
            raise Outside(
                "A command out of a discussion waits for a bot that answers.", remedy="Start it with --announce."
            )
        try:
            pinned = hub.pin_online(order.adapter, order.revision)
        except NotFound as missing:
            return Gone(reason=missing.what)
        if allowed is not None and not allowed.repo(pinned.repo):
            return Gone(
                reason=f"{order.adapter} is called {pinned.repo} now, which is not on the list of allowed adapters."
            )
        names = {entry.name for entry in pinned.files}
        if REPORT in names and order.kind == "merge":
            return Gone(reason=f"{pinned.repo} is the result of a merge.")
        if order.kind == "merge" and not any(name.rpartition("/")[2] == ADAPTER for name in names):
            return Gone(reason=f"{pinned.repo} holds no adapter: it has no {ADAPTER}.")
        return Resolved(adapter=pinned.repo, sha=pinned.sha)

    return resolve
