"""`plan`, `merge`, `run`: from adapters to a model. Imports stay inside the commands, so that `--help` starts at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bot.cli.click_options import ADAPTERS, COMBINING, FOLDER, MERGING, SPEAKING, VERBOSE, fields
from bot.cli.option_groups import Command
from bot.cli.printing import error_json, print_done, print_error, print_json, print_outcome, print_parts, print_refusals
from bot.cli.requests import combination_of, request_of, the_hub
from bot.errors import AdapterMergeError, Usage
from bot.events import Event, TextBlock
from bot.options import Request
from bot.terminal.console import Console

if TYPE_CHECKING:
    from bot.records import Outcome


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
            print_parts(event.parts)

    _, made = plan_merge(request_of(adapters, **typed), the_hub(), emit)
    console.close()
    if as_json:
        print_json(plan_json(made))
    return print_refusals(made)


@click.command(cls=Command)
@ADAPTERS
@fields(Request, "output", help="The folder to make.")
@click.option("--shard", metavar="K/N", help="Make, prove and send only the K-th of N parts, for `finish` to commit.")
@click.option("--receipt", type=FOLDER, metavar="FILE", help="With --shard: what `finish` needs to know of the part.")
@fields(Request, "target", "publish", "private")
@MERGING
@COMBINING
@fields(Request, "license", "report", "attestation", "sign", "force", "dry_run")
@VERBOSE
@SPEAKING
def merge(adapters: tuple[str, ...], as_json: bool, quiet: bool, verbose: bool, **typed: Any) -> int:
    """Merge and verify into a folder; publish nothing. Several ADAPTERs are combined into one first.

    With --shard K/N: one of N machines that share out a merge of a model too large for one; `finish` makes the one commit.
    """
    shard, receipt = typed.pop("shard"), typed.pop("receipt")
    if shard is not None:
        return _make_part(adapters, shard, receipt, as_json=as_json, quiet=quiet, verbose=verbose, **typed)
    for field in ("target", "publish", "private"):
        given = typed.pop(field)
        if given not in (None, "auto"):
            raise Usage("merge publishes nothing.", remedy="Use run, or share out the merge with --shard K/N.")
    if receipt is not None:
        raise Usage(
            "A receipt is of a part of a merge.", remedy="Name the part with --shard K/N, or leave out --receipt."
        )
    if typed["output"] is None:
        raise Usage("Missing option '--output' / '-o'.", remedy="Name the folder to make with --output DIR.")
    return _run(request_of(adapters, publish="none", **typed), Console(quiet=quiet, verbose=verbose), as_json, quiet)


def _make_part(
    adapters: tuple[str, ...],
    shard: str,
    receipt: Path | None,
    *,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **typed: Any,
) -> int:
    from bot.budget import readable
    from bot.by_shard.receipts import Part, Receipt
    from bot.share_out import make_part

    part = Part.parse(shard)
    if receipt is None:
        raise Usage("A part of a merge needs a receipt.", remedy="Name the file to write with --receipt FILE.")
    if typed["output"] is not None:
        raise Usage("A part of a merge goes to the Hub, not into a folder.", remedy="Leave out --output.")
    if typed["publish"] == "none":
        raise Usage("A part of a merge goes to the Hub.", remedy="Leave out --publish none.")
    for name in ("report", "attestation", "sign", "eval_tasks"):
        if typed.get(name) is not None:
            raise Usage(
                "A part of a merge has no report, statement, signature or evaluation of its own.",
                remedy="Leave out --report, --attestation, --sign and --eval; `verify` makes the first two of what `finish` commits.",
            )
    console = Console(quiet=quiet, verbose=verbose)
    made = make_part(request_of(adapters, **typed), part, receipt, the_hub(), console)
    console.close()
    if not isinstance(made, Receipt):
        return _print(made, as_json=as_json, quiet=quiet)
    if as_json:
        print_json({"status": "merged", "part": str(part), "receipt": str(receipt), "files": made.sizes})
    elif not quiet:
        size, count = readable(sum(made.sizes.values())), len(made.files)
        print_done([f"✓ part {part} made, proven and sent: {count} weight file{'' if count == 1 else 's'}, {size}"])
    return 0


@click.command(cls=Command)
@click.argument("receipts", metavar="RECEIPT...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@SPEAKING
def finish(receipts: tuple[Path, ...], as_json: bool, quiet: bool, debug: bool) -> int:
    """Make the one commit of a merge that was shared out (`merge --shard K/N`), from the RECEIPTs of all its parts."""
    from bot.share_out import finish as finish_parts

    console = Console(quiet=quiet)
    outcome = finish_parts(receipts, the_hub(), console)
    console.close()
    return _print(outcome, as_json=as_json, quiet=quiet)


@click.command(cls=Command)
@ADAPTERS
@click.option("--each", is_flag=True, help="Merge each ADAPTER into a model of its own; the base is read in once.")
@fields(Request, "target", "publish", "output")
@MERGING
@COMBINING
@fields(Request, "private", "license", "report", "publish_report", "attestation", "sign", "force", "dry_run")
@VERBOSE
@SPEAKING
def run(adapters: tuple[str, ...], each: bool, as_json: bool, quiet: bool, verbose: bool, **typed: Any) -> int:
    """All of it: pull, plan, merge, verify, publish. Several ADAPTERs are combined into one first, or with --each not."""
    if typed["publish"] == "none" and typed["output"] is None and not typed["dry_run"]:
        raise Usage("With --publish none nothing would be left of the merge.", remedy="Name a folder with --output.")
    console = Console(quiet=quiet, verbose=verbose)
    if each:
        return _run_each(adapters, console, as_json, quiet, **typed)
    return _run(request_of(adapters, **typed), console, as_json, quiet)


def _run(request: Request, console: Console, as_json: bool, quiet: bool) -> int:
    from bot.pipeline import run as run_pipeline

    outcome = run_pipeline(request, the_hub(), console)
    console.close()
    return _print(outcome, as_json=as_json, quiet=quiet)


def _print(outcome: Outcome, *, as_json: bool, quiet: bool) -> int:
    if as_json:
        from bot.plan_text import outcome_json

        print_json(outcome_json(outcome))
    return print_outcome(outcome, quiet=quiet or as_json)


def _run_each(adapters: tuple[str, ...], console: Console, as_json: bool, quiet: bool, **typed: Any) -> int:
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
    if typed["report"]:
        raise Usage(
            "With --each there is a report for each merge, and --report names one file.",
            remedy="Leave it out; `adapter-merge report` draws each from its verification.json.",
        )
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
