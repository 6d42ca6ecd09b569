"""The command line. `commands` lists the commands, `exits` is the way in and out; torch is imported by no module here."""

from __future__ import annotations

from bot.cli.commands import cli as cli
from bot.cli.exits import _guarded as _guarded
from bot.cli.exits import main as main
