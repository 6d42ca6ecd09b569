"""`poll`: the bot without a server. Nothing is merged in this process, and torch is not imported."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from bot.cli.bot_account import converse, silence
from bot.cli.bot_commands import ALLOWED, EVERY_RUN, LISTENING, RUNNING, TELLING
from bot.cli.click_options import SPEAKING
from bot.cli.option_groups import Command
from bot.cli.printing import print_json, print_parts, print_text
from bot.cli.requests import the_hub
from bot.dispatch.backend_choice import BackendOptions, Surroundings, backend_of, state_file
from bot.events import Note, TextTable

if TYPE_CHECKING:
    from bot.dispatch.poll import Poll


@click.command(cls=Command)
@ALLOWED
@EVERY_RUN
@RUNNING
@TELLING
@LISTENING
@click.option("--dry-run", is_flag=True, help="Say what would be dispatched, and why the rest not; write nothing.")
@SPEAKING
def poll(
    allow: tuple[str, ...],
    tags: tuple[str, ...],
    wanted: tuple[str, ...],
    state: Path | None,
    announce: bool,
    commands_from: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **chosen: Any,
) -> int:
    """Look once for tags that nobody has merged yet, dispatch them, and end. For cron or a scheduled workflow."""
    from bot.dispatch.allow import Allowed
    from bot.dispatch.by_hand import options_of_all
    from bot.dispatch.dispatcher import Dispatcher
    from bot.dispatch.poll import dispatch_missing, look
    from bot.dispatch.store import Store
    from bot.terminal.console import Console

    allowed, hub, console = Allowed.of(allow, tags), the_hub(), Console(quiet=quiet)
    every = options_of_all(wanted, allowed)
    hub.tell(console)
    path = state or state_file(os.environ)
    # A dry run writes no state file: where there is none, it goes by one that is thrown away.
    with TemporaryDirectory() if dry_run and not path.exists() else nullcontext(None) as scratch:
        store = Store(Path(scratch) / "bot.db" if scratch else path)
        try:
            if dry_run:
                polled = look(hub, allowed, store, every)
            else:
                around = Surroundings(state=path, hub=hub, environment=os.environ)
                backend = backend_of(BackendOptions(**chosen), around)
                conversing = (
                    converse(store, hub, allowed, console, commands_from)
                    if announce
                    else silence(hub, allowed, commands_from)
                )
                dispatcher = Dispatcher(store, backend, conversing.resolve, console)
                polled = dispatch_missing(look(hub, allowed, store, every), store, dispatcher, conversing.tell, every)
            for problem in polled.problems:
                console(Note(text=str(problem), level="warning"))
        finally:
            console.close()
            store.close()
    _print(polled, as_json, quiet)
    return polled.exit_code


def _print(polled: Poll, as_json: bool, quiet: bool) -> None:
    """What was looked at, and what became of it."""
    if as_json:
        problems = [{"what": problem.what, "remedy": problem.remedy} for problem in polled.problems]
        print_json({"tags": [asdict(tag) for tag in polled.tags], "problems": problems})
    elif not quiet:
        rows = tuple(
            (tag.status, f"{tag.adapter}@{tag.tag}", f"{tag.why} {tag.run_url}".rstrip()) for tag in polled.tags
        )
        print_parts((TextTable(rows=rows),) if rows else ())
        if not polled.tags and not polled.problems:
            print_text("No tag of an allowed adapter fits.")
