"""The options of the commands, as click has them: those of bot/options.py, and those that only say how a command speaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bot.cli.option_groups import OneOf
from bot.options import Combination, Option, Options, Request, options_of

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
NEW_FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path)
SHORT = {"output": ("-o",)}


def options(*decorators: Decorator) -> Callable[[F], F]:
    """Several options as one decorator."""

    def decorate(command: F) -> F:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def fields(record: type, *names: str, **changes: Any) -> Decorator:
    """The options of these fields of a record, of all where none is named. `changes`: to what click is told of them."""
    chosen = [each for each in options_of(record) if not names or each.field in names]
    return options(*(click.option(*_flags(each), **_settings(each) | changes) for each in chosen))


def _flags(option: Option) -> tuple[str, ...]:
    return (f"--{option.name}", *SHORT.get(option.field, ()), option.field)


def _settings(option: Option) -> dict[str, Any]:
    settings = {"help": option.help, "metavar": option.metavar}
    if option.choices:
        return settings | {"type": OneOf(option.choices), "default": option.default, "show_default": True}
    if option.type is bool:
        return settings | {"is_flag": True}
    if option.writes:
        return settings | {"type": NEW_FILE}
    return settings | {"type": {"FILE": FILE, "DIR": FOLDER}.get(option.metavar or "", option.type)}


ADAPTERS = click.argument("adapters", metavar="ADAPTER...", nargs=-1, required=True)
COMBINING = fields(Combination, default=None)  # None: it was not said that adapters are combined
MERGING = options(fields(Request, "base"), fields(Options), fields(Request, "eval_text", "eval_tasks", "eval_limit"))
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
VERBOSE = click.option("--verbose", "-v", is_flag=True, help="Print every check, also those that passed.")
QUIET = click.option("--quiet", is_flag=True, help="Print warnings and errors only.")
DEBUG = click.option("--debug", is_flag=True, help="Show a traceback with every error.")
SPEAKING = options(JSON, QUIET, DEBUG)
