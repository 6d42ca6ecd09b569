"""GitHub's workflow commands: the one place that spells `::command::` lines, and that keeps other text from being one."""

from __future__ import annotations

import re

COMMAND = re.compile(r"^(\s*):(?=:)|##(?=\[)", re.MULTILINE)


def command(name: str, text: str = "", **properties: str) -> str:
    """A command's line, as the runner reads it. Properties that are empty are left out."""
    given = ",".join(f"{key}={_property(value)}" for key, value in properties.items() if value)
    return f"::{name}{' ' if given else ''}{given}::{_message(text)}"


def defused(text: str) -> str:
    """Text for a log: words out of other people's repos must not be taken for commands (`::…`, `##[…]`)."""
    return COMMAND.sub(lambda match: f"{match[1]}: " if match[1] is not None else "# #", text.replace("\r", ""))


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Where `:` and `,` would end it."""
    return _message(text).replace(":", "%3A").replace(",", "%2C")
