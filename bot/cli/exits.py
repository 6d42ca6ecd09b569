"""The way in and out: a command is run, and every failure leaves as a sentence, a remedy and an exit code."""

from __future__ import annotations

import gc
import os
import sys
import traceback

import click

from bot import blas
from bot.cli.commands import cli
from bot.cli.printing import error_json, print_error, print_json
from bot.errors import OUR_BUG, AdapterMergeError, Interrupted, NotVerified, Usage, of_system
from bot.signals import end_on_signals, interrupted
from bot.terminal.streams import guard_streams

INTERRUPTED = Interrupted("Interrupted.", remedy="The same command goes on from here, and publishes nothing twice.")


def main() -> None:
    """Run a command and end the process with its exit code."""
    guard_streams()
    end_on_signals(f"✗ {INTERRUPTED.what}\n  {INTERRUPTED.remedy}\n")
    blas.use_one_thread()
    gc.set_threshold(100_000)  # importing makes objects that stay: collecting in between costs a tenth of a second
    try:
        code = _flushed(_guarded(sys.argv[1:]))
    except KeyboardInterrupt:  # while another ending was told
        code = INTERRUPTED.exit_code
    # Not sys.exit: taking torch apart again costs half a second, and nothing is left to be closed.
    os._exit(code)


def _flushed(code: int) -> int:
    """The exit code once everything is out: a result that nobody could be told of is no success."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # whoever read our output has seen enough
    except AdapterMergeError as error:
        code = code or print_error(error, debug=False)
    sys.stderr.flush()
    return code


def _guarded(arguments: list[str]) -> int:
    """Run the command of these arguments; its exit code, whatever happens."""
    debug = "--debug" in arguments
    try:
        code = cli.main(args=arguments, prog_name="adapter-merge", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        if "--json" in arguments:
            print_json(error_json(Usage(error.format_message(), remedy="See --help.")))
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return print_error(INTERRUPTED, debug=debug)
    except Exception as error:
        if interrupted():
            return print_error(error if isinstance(error, Interrupted) else INTERRUPTED, debug=debug)
        return _failed(error, arguments, debug)


def _failed(error: Exception, arguments: list[str], debug: bool) -> int:
    """Say what went wrong; the exit code."""
    if isinstance(error, AdapterMergeError):
        # The outcome of an unproven merge is printed already.
        if "--json" in arguments and not (arguments[0] in ("merge", "run") and isinstance(error, NotVerified)):
            print_json(error_json(error))
        return print_error(error, debug=debug)
    if isinstance(error, BrokenPipeError):
        return 0  # whoever read our output has seen enough
    if isinstance(error, OSError | MemoryError) and (known := of_system(error)):
        if "--json" in arguments:
            print_json(error_json(known))
        return print_error(known, debug=debug)
    traceback.print_exc()
    click.echo("This is a bug in adapter-merge. Please report it with the lines above.", err=True)
    return OUR_BUG
