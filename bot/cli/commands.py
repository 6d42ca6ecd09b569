"""The commands of `adapter-merge`, in the order in which an error lists them."""

from __future__ import annotations

import click

from bot import __version__
from bot.cli.bot_commands import dispatch, serve
from bot.cli.install_commands import bot
from bot.cli.local_commands import demo, doctor, hub
from bot.cli.merge_commands import finish, merge, plan, run
from bot.cli.model_commands import compare, publish, report, verify
from bot.cli.option_groups import Group, hyphened
from bot.cli.poll_commands import poll

EPILOG = """\b
A REF is owner/name or owner/name@revision on the Hub, or a folder (./x, /x, or an existing path).
An adapter may lie in a folder of its repo: owner/name/checkpoint-500.
Exit codes: 0 done or unchanged, 2 usage, 3 refused by the plan, 4 not verified,
5 the Hub or the network failed, 6 this machine is too small, 70 our bug, 130 interrupted."""
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "token_normalize_func": hyphened}


@click.group(cls=Group, epilog=EPILOG, context_settings=SETTINGS)
@click.version_option(__version__, message="adapter-merge %(version)s")
def cli() -> None:
    """Turn a fine-tuned adapter into a published, proven model."""


for command in (
    plan,
    merge,
    run,
    finish,
    verify,
    report,
    publish,
    compare,
    serve,
    poll,
    dispatch,
    bot,
    hub,
    demo,
    doctor,
):
    cli.add_command(command)
