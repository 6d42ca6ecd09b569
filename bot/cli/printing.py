"""What a command prints: its result on standard output, refusals and errors on standard error."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from bot.errors import AdapterMergeError
from bot.events import Parts, TextLine, Tone
from bot.terminal.screen import Screen

if TYPE_CHECKING:
    from bot.records import Outcome, Plan


def print_parts(parts: Parts) -> None:
    """A result: drawn on a terminal, plain text elsewhere."""
    Screen(sys.stdout).show(parts)


def print_text(text: str, tone: Tone = "plain") -> None:
    """A result of words alone."""
    print_parts((TextLine(text=text, tone=tone),))


def print_json(value: Any) -> None:
    """A result for a program."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_outcome(outcome: Outcome, *, quiet: bool) -> int:
    """How a run ended, in a line or two; the exit code. Raises NotVerified."""
    from bot.plan_text import not_verified, outcome_lines

    if outcome.status == "refused":
        return print_refusals(outcome.plan)
    if outcome.status == "not-verified":
        raise not_verified(outcome)
    if not quiet:
        print_done(outcome_lines(outcome))
    return 0


def print_done(lines: Sequence[str]) -> None:
    """How something ended well: the first line says it."""
    first, *more = lines
    print_parts((TextLine(text=first, tone="good"), *(TextLine(text=line) for line in more)))


def print_refusals(plan: Plan) -> int:
    """Every refusal; the exit code: 0 without any, 6 where only this machine is in the way, else 3."""
    from bot.plan_text import refusal_lines

    for line in refusal_lines(plan):
        _complain(line)
    return min((refusal.exit_code for refusal in plan.refusals), default=0)


def print_error(error: AdapterMergeError, *, debug: bool) -> int:
    """What happened and what to do; the exit code."""
    if debug:
        traceback.print_exc()
    _complain(f"✗ {error.what}")
    _complain(f"  {error.remedy}")
    return error.exit_code


def _complain(line: str) -> None:
    """A line on standard error; what went wrong begins with a cross."""
    Screen(sys.stderr).show((TextLine(text=line, tone="bad" if line.startswith("✗") else "plain"),))


def error_json(error: AdapterMergeError) -> dict[str, Any]:
    """The same as JSON."""
    code = {"code": error.code} if error.code else {}
    return {"error": {"what": error.what, "remedy": error.remedy, "exit_code": error.exit_code, **code}}
