"""`serve`, `dispatch`: the Hub bot. Nothing is merged in these processes, and torch is not imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bot.cli.bot_account import announcer, converse, silence
from bot.cli.click_options import DEBUG, SPEAKING, fields, options
from bot.cli.option_groups import Command
from bot.cli.printing import print_json, print_text
from bot.cli.requests import the_hub
from bot.dispatch.backend_choice import BackendOptions, Surroundings, backend_of, state_file
from bot.errors import Outside, Usage
from bot.events import Note

if TYPE_CHECKING:
    from bot.dispatch.records import Fate, RunRequest

SECRET = "ADAPTER_MERGE_WEBHOOK_SECRET"
STATE = click.option(
    "--state",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What the bot remembers. Default: adapter-merge/bot.db in the user's state folder.",
)
ALLOWED = options(
    click.option("--allow", metavar="PATTERN", multiple=True, help="An adapter that may start a merge: owner/name, or 'owner/*'."),
    click.option("--tags", metavar="PATTERN", multiple=True, help="Tags that start one, as 'v*'. Default: every tag."),
)  # fmt: skip
RUNNING = options(STATE, fields(BackendOptions))
TELLING = click.option(
    "--announce",
    is_flag=True,
    help="Tell of each run in a comment on its adapter; needs ADAPTER_MERGE_HUB_TOKEN.",
)
EVERY_RUN = click.option(
    "--option",
    "wanted",
    metavar="NAME=VALUE",
    multiple=True,
    help="An option of every run, by its name as an input of the action: quantize=nf4.",
)
LISTENING = click.option(
    "--commands-from",
    metavar="NAME",
    multiple=True,
    help="With --announce: an account whose /merge, /verify, /plan in discussions count, as do those of the repos' owners.",
)


@click.command(cls=Command)
@ALLOWED
@EVERY_RUN
@RUNNING
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", default=8000, show_default=True, help="0 takes any free port.")
@click.option(
    "--secret-file",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help=f"Holds the webhook's secret. Default: the variable {SECRET}.",
)
@click.option("--no-page", is_flag=True, help="Show no page at /.")
@TELLING
@LISTENING
@DEBUG
def serve(
    allow: tuple[str, ...],
    tags: tuple[str, ...],
    wanted: tuple[str, ...],
    state: Path | None,
    host: str,
    port: int,
    secret_file: Path | None,
    no_page: bool,
    announce: bool,
    commands_from: tuple[str, ...],
    debug: bool,
    **chosen: Any,
) -> int:
    """Listen to the Hub: a tag pushed to an allowed adapter starts one merge. Stop it with Ctrl-C; nothing is lost."""
    from bot.dispatch.allow import Allowed
    from bot.dispatch.background import Background
    from bot.dispatch.by_hand import options_of_all
    from bot.dispatch.dispatcher import Dispatcher
    from bot.dispatch.server import ORDERLY, Settings, address_of, listen
    from bot.dispatch.server import serve as serve_until_ended
    from bot.dispatch.store import Store
    from bot.terminal.console import Console

    allowed, secret = Allowed.of(allow, tags), secret_from(secret_file)
    every = options_of_all(wanted, allowed)
    listener = listen(host, port)
    hub, console = the_hub(), Console(quiet=False)
    path = state or state_file(os.environ)
    store = Store(path)
    # A server that is started again while GitHub or the Hub is down hears the Hub all the same.
    away: list[Outside] = []
    around = Surroundings(state=path, hub=hub, environment=os.environ)
    backend = backend_of(BackendOptions(**chosen), around, away.append)
    for error in away:
        console(Note(text=f"{error} Until then, requests wait.", level="warning"))
    conversing = (
        converse(store, hub, allowed, console, commands_from) if announce else silence(hub, allowed, commands_from)
    )
    settings = Settings(secret=secret, allowed=allowed, hub=hub.address, page=not no_page, options=every)
    print_text(f"Listening at {address_of(listener)}/webhook; merges run by the backend {backend.NAME}.")
    dispatcher = Dispatcher(store, backend, conversing.resolve, console)
    dispatcher.checked = not away
    tell = Background(conversing.tell)
    try:
        serve_until_ended(store, settings, dispatcher, conversing.commands, listener, tell)
    finally:
        if tell.finish(ORDERLY):
            store.close()
    return 0


@click.command(cls=Command)
@click.argument("adapter", metavar="ADAPTER")
@RUNNING
@click.option(
    "--option",
    "wanted",
    metavar="NAME=VALUE",
    multiple=True,
    help="An option of the run, by its name as an input of the action: dtype=float16.",
)
@TELLING
@click.option("--wait", is_flag=True, help="Follow the run, print the end of its log, and end with its exit code.")
@SPEAKING
def dispatch(
    adapter: str,
    state: Path | None,
    wanted: tuple[str, ...],
    announce: bool,
    wait: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **chosen: Any,
) -> int:
    """Start the merge of ADAPTER (owner/name@tag) where the backend runs it."""
    from bot.dispatch.by_hand import dispatch_by_hand, order_by_hand
    from bot.dispatch.store import Store
    from bot.terminal.console import Console

    hub, console = the_hub(), Console(quiet=quiet)
    order = order_by_hand(adapter, wanted)
    path = state or state_file(os.environ)
    store = Store(path)
    try:
        backend = backend_of(BackendOptions(**chosen), Surroundings(state=path, hub=hub, environment=os.environ))
        tell = announcer(store, console) if announce else lambda: None
        request = dispatch_by_hand(order, store, backend, hub, console, wait=wait, after=tell)
        if wait and not as_json:
            for line in backend.log(request, 20):
                click.echo(f"  {line}", err=True)
    finally:
        console.close()
        store.close()
    if as_json:
        _print_as_json(request)
    elif not quiet:
        _print(request)
    return exit_code_of(request.fate)


def _print_as_json(request: RunRequest) -> None:
    fate, run = request.fate, request.run
    print_json({
        "request": request.id, "backend": request.backend, "run": run.id if run else None, "run_url": run.url if run else None,
        "run_note": run.note if run else "",
        "status": fate.status if fate else request.state, "url": fate.url if fate else "", "reason": request.reason,
        "remedy": request.remedy, "exit_code": fate.exit_code if fate else None,
    })  # fmt: skip


def _print(request: RunRequest) -> None:
    fate, run = request.fate, request.run
    status = fate.status if fate and fate.final else "dispatched"
    where = (run.url, run.note and f"({run.note})") if run else ()
    words = (f"{status}: request {request.id}", *where, fate.url if fate else "", request.reason, request.remedy)
    print_text(" ".join(filter(None, words)))


def exit_code_of(fate: Fate | None) -> int:
    """The run's own exit code, once it has ended; 0 as long as it goes on."""
    if fate is None or not fate.final:
        return 0
    if fate.exit_code is None:
        return Outside.exit_code if fate.status == "failed" else 0
    return fate.exit_code


def secret_from(file: Path | None) -> str:
    """The webhook's secret. Raises Usage where there is none: a server without one would take orders from everybody."""
    try:
        # Without what a file or a shell adds at its ends: no header could carry that.
        secret = (file.read_text(encoding="utf-8") if file else os.environ.get(SECRET, "")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}.",
                    remedy="Name a file that holds nothing but the secret, and that this user may read.") from error  # fmt: skip
    if not secret:
        source = f"{file} is empty." if file else f"The webhook's secret is missing: {SECRET} is not set."
        raise Usage(source, remedy=f"Set {SECRET} to the webhook's, or name a file that holds it with --secret-file.")
    return secret
