"""What a command prints: its result on standard output, refusals and errors on standard error."""

from __future__ import annotations

import json
import os
import traceback
from typing import TYPE_CHECKING, Any

import click

from bot.errors import AdapterMergeError
from bot.terminal.workflow_commands import defused

if TYPE_CHECKING:
    from bot.records import Outcome, Plan


def print_text(text: str) -> None:
    """A result; in a workflow's log, words out of other people's repos are no commands."""
    click.echo(defused(text) if os.environ.get("GITHUB_ACTIONS") == "true" else text)


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
        click.echo("\n".join(outcome_lines(outcome)))
    return 0


def print_refusals(plan: Plan) -> int:
    """Every refusal; the exit code: 0 without any, 6 where only this machine is in the way, else 3."""
    from bot.plan_text import refusal_lines

    for line in refusal_lines(plan):
        click.echo(line, err=True)
    return min((refusal.exit_code for refusal in plan.refusals), default=0)


def print_error(error: AdapterMergeError, *, debug: bool) -> int:
    """What happened and what to do; the exit code."""
    if debug:
        traceback.print_exc()
    click.echo(f"✗ {error.what}\n  {error.remedy}", err=True)
    return error.exit_code


def error_json(error: AdapterMergeError) -> dict[str, Any]:
    """The same as JSON."""
    code = {"code": error.code} if error.code else {}
    return {"error": {"what": error.what, "remedy": error.remedy, "exit_code": error.exit_code, **code}}
