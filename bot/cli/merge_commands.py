"""`plan`, `merge`, `run`: from adapters to a model. Imports stay inside the commands, so that `--help` starts at once."""

from __future__ import annotations

from typing import Any

import click

from bot.cli.click_options import ADAPTERS, COMBINING, MERGING, SPEAKING, fields
from bot.cli.option_groups import Command
from bot.cli.printing import error_json, print_error, print_json, print_outcome, print_refusals, print_text
from bot.cli.requests import combination_of, request_of, the_hub
from bot.errors import AdapterMergeError, Usage
from bot.events import Event, TextBlock
from bot.options import Request
from bot.terminal.console import Console


@click.command(cls=Command)
@ADAPTERS
@MERGING
@COMBINING
@SPEAKING
def plan(adapters: tuple[str, ...], as_json: bool, quiet: bool, **typed: Any) -> int:
    """Show what a merge would do. Reads headers and configs only; downloads no weight."""
    from bot.pipeline import plan_merge
    from bot.plan_text import plan_json

    console = Console(quiet=quiet)

    def emit(event: Event) -> None:
        if as_json or quiet or not isinstance(event, TextBlock):
            console(event)
        else:  # the result, which belongs on standard output
            console.close()
            print_text(event.text)

    _, made = plan_merge(request_of(adapters, **typed), the_hub(), emit)
    console.close()
    if as_json:
        print_json(plan_json(made))
    return print_refusals(made)


@click.command(cls=Command)
@ADAPTERS
@fields(Request, "output", required=True, help="The folder to make.")
@MERGING
@COMBINING
@fields(Request, "license", "attestation", "force", "dry_run")
@SPEAKING
def merge(adapters: tuple[str, ...], as_json: bool, quiet: bool, **typed: Any) -> int:
    """Merge and verify into a folder; publish nothing. Several ADAPTERs are combined into one first."""
    return _run(request_of(adapters, publish="none", **typed), as_json=as_json, quiet=quiet)


@click.command(cls=Command)
@ADAPTERS
@click.option("--each", is_flag=True, help="Merge each ADAPTER into a model of its own; the base is read in once.")
@fields(Request, "target", "publish", "output")
@MERGING
@COMBINING
@fields(Request, "private", "license", "attestation", "force", "dry_run")
@SPEAKING
def run(adapters: tuple[str, ...], each: bool, as_json: bool, quiet: bool, **typed: Any) -> int:
    """All of it: pull, plan, merge, verify, publish. Several ADAPTERs are combined into one first, or with --each not."""
    if typed["publish"] == "none" and typed["output"] is None and not typed["dry_run"]:
        raise Usage("With --publish none nothing would be left of the merge.", remedy="Name a folder with --output.")
    if each:
        return _run_each(adapters, as_json=as_json, quiet=quiet, **typed)
    return _run(request_of(adapters, **typed), as_json=as_json, quiet=quiet)


def _run(request: Request, *, as_json: bool, quiet: bool) -> int:
    from bot.pipeline import run as run_pipeline

    console = Console(quiet=quiet)
    outcome = run_pipeline(request, the_hub(), console)
    console.close()
    if as_json:
        from bot.plan_text import outcome_json

        print_json(outcome_json(outcome))
    return print_outcome(outcome, quiet=quiet or as_json)


def _run_each(adapters: tuple[str, ...], *, as_json: bool, quiet: bool, **typed: Any) -> int:
    """Every adapter into a model of its own; the exit code is the worst of theirs."""
    from bot.plan_text import outcome_json
    from bot.run_each import run_each

    if typed["target"]:
        raise Usage(
            "With --each every adapter has a target of its own.",
            remedy="Leave out --to: each goes to its adapter's name with -merged.",
        )
    if combination_of(typed):
        raise Usage(
            "With --each nothing is combined.", remedy="Leave out --each, or the options that combine adapters."
        )
    if typed["attestation"]:
        raise Usage(
            "With --each there is an attestation for each merge, and --attestation names one file.",
            remedy="Leave it out, and merge one by one, or let `verify --attestation` write each.",
        )
    console = Console(quiet=quiet)
    requests = [request_of((adapter,), **typed) for adapter in adapters]
    results, codes = [], []
    for ended in run_each(requests, the_hub(), console):
        try:
            if ended.error is not None:
                raise ended.error
            assert ended.outcome is not None
            results.append({"ref": ended.request.adapter.text, **outcome_json(ended.outcome)})
            codes.append(print_outcome(ended.outcome, quiet=quiet or as_json))
        except AdapterMergeError as error:
            if ended.outcome is None:
                results.append({"ref": ended.request.adapter.text, **error_json(error)})
            codes.append(print_error(error, debug=bool(typed["debug"])))
    console.close()
    if as_json:
        print_json(results)
    return max(codes)
