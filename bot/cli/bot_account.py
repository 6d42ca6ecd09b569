"""The account by which the bot takes part in discussions, for the commands that can be told to."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bot.errors import Usage

if TYPE_CHECKING:
    from bot.dispatch.allow import Allowed
    from bot.dispatch.resolve import Resolver
    from bot.dispatch.store import Store
    from bot.dispatch.webhook_intake import Commands
    from bot.events import Emit
    from bot.hub import Hub


@dataclass(frozen=True, kw_only=True)
class Conversing:
    """How the bot takes part in discussions: what it tells, which commands it reads, and how it resolves what it is asked."""

    tell: Callable[[], None]
    commands: Commands
    resolve: Resolver


def silence(hub: Hub, allowed: Allowed, commands_from: tuple[str, ...]) -> Conversing:
    """Nothing is told, no command is read. Raises Usage."""
    from bot.dispatch.resolve import resolver

    if commands_from:
        raise Usage(
            "--commands-from is of no use where nothing is answered.", remedy="Add --announce, or leave it out."
        )
    return Conversing(tell=lambda: None, commands=lambda comment: (), resolve=resolver(hub, allowed))


def converse(store: Store, hub: Hub, allowed: Allowed, emit: Emit, commands_from: tuple[str, ...]) -> Conversing:
    """Runs are told of, and commands read. Raises Usage, Forbidden or Outside where the token may not comment."""
    from bot.dispatch.announce import Announcer, account_that_comments
    from bot.dispatch.comments import comment_resolver, read_commands
    from bot.dispatch.resolve import resolver

    account = account_that_comments(os.environ, emit)
    resolve = comment_resolver(hub, account, allowed, commands_from, resolver(hub, allowed))
    return Conversing(tell=Announcer(store, account, emit), commands=read_commands, resolve=resolve)


def announcer(store: Store, emit: Emit) -> Callable[[], None]:
    """What tells of runs. Raises Usage, Forbidden or Outside where the token may not."""
    from bot.dispatch.announce import Announcer, account_that_comments

    return Announcer(store, account_that_comments(os.environ, emit), emit)
