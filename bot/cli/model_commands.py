"""`verify`, `publish`, `compare`: of a model that is merged already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bot.cli.click_options import DEBUG, FILE, NEW_FILE, SPEAKING, VERBOSE, fields
from bot.cli.option_groups import Command, OneOf
from bot.cli.printing import print_done, print_json, print_parts
from bot.cli.requests import adapter_ref, model_ref, options_from, the_hub
from bot.errors import NotVerified
from bot.events import TextLine
from bot.options import Options, Ref, Request
from bot.terminal.console import Console

DIFFERENT = 1  # of `compare --exit-code`, by git's custom; no failure has this code
REVERIFYING = [name for name in Options.__dataclass_fields__ if name != "engine"]


@click.command(cls=Command)
@click.argument("merged", metavar="MERGED")
@fields(Request, "base")
@click.option(
    "--adapter",
    "adapters",
    metavar="REF",
    multiple=True,
    help="The adapter; of several, each in turn. Default: those that verification.json names.",
)
@fields(Options, *REVERIFYING)
@fields(Request, "eval_text", "eval_tasks", "eval_limit", "report", "force")
@click.option(
    "--check-attestation",
    "attestations",
    type=FILE,
    metavar="FILE",
    multiple=True,
    help="Hold the model to these in-toto statements, signed or not; signatures are for `gh attestation verify`.",
)
@click.option(
    "--signed-by",
    metavar="WHO",
    help="Whose the model's signature must be: key:FILE (public), certificate:ROOT[,ROOT…] or sigstore:IDENTITY[,ISSUER].",
)
@fields(Request, "attestation", help="Write an in-toto statement of what this proof found here.")
@VERBOSE
@SPEAKING
def verify(
    merged: str,
    base: str | None,
    adapters: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    quiet: bool,
    debug: bool,
    **typed: Any,
) -> int:
    """Re-prove a merged repo or folder, ours or anybody's."""
    from bot.plan_text import held_against
    from bot.report_text import everything, summary
    from bot.reverify_by_shard import reverify_where_it_fits
    from bot.verdict_text import causes

    console = Console(quiet=quiet)
    attestation, page = typed.pop("attestation"), typed.pop("report")
    measuring = {
        name: typed.pop(name)
        for name in ("eval_text", "eval_tasks", "eval_limit", "force", "attestations", "signed_by")
    }
    report = reverify_where_it_fits(
        model_ref(merged),
        model_ref(base) if base else None,
        [adapter_ref(adapter) for adapter in adapters],
        options_from(typed),
        the_hub(),
        console,
        attestation=attestation,
        page=page,
        **measuring,
    )
    console.close()
    if as_json:
        click.echo(report.document.canonical().decode(), nl=False)
    elif quiet:  # what failed was said when it failed
        for warning in (finding for finding in report.findings if finding.status == "warn"):
            click.echo(f"  ! {warning.id}: {warning.why}", err=True)
        for cause in causes(report.document):
            click.echo(f"  {cause}", err=True)
    else:
        found_out = everything(report.document) if verbose else summary(report.document)
        print_parts(
            (TextLine(text="held against:"), held_against(report.document.inputs), TextLine(text=""), *found_out)
        )
    return 0 if report.verdict == "verified" else NotVerified.exit_code


@click.command(cls=Command)
@click.argument("merged", metavar="MERGED")
@click.option("--output", "-o", "page", metavar="FILE", type=NEW_FILE, required=True, help="The page to write (HTML).")
@DEBUG
def report(merged: str, page: Path, debug: bool) -> int:
    """Draw the report of a merge that was verified before: a page of what the verification.json of MERGED says, a repo, a
    folder, or that file itself. Nothing is verified again."""
    from bot.merged_folder import recorded_report
    from bot.report_page.writing import require_page_folder, write_page

    require_page_folder(page)
    write_page(page, recorded_report(model_ref(merged), the_hub()))
    click.echo(str(page))
    return 0


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@fields(Request, "target", required=True, help="The repo to publish to.")
@fields(Request, "publish", type=OneOf(["auto", "pr", "push"]))
@fields(Request, "private", "force", "dry_run")
@SPEAKING
def publish(folder: Path, as_json: bool, quiet: bool, debug: bool, **typed: Any) -> int:
    """Publish a folder that `merge` finished."""
    from dataclasses import asdict

    from bot.merged_folder import publish_folder
    from bot.plan_text import publication_lines

    console = Console(quiet=quiet)
    request = Request(adapter=Ref(text=str(folder), folder=folder), **typed)
    publication = publish_folder(folder, request, the_hub(), console)
    console.close()
    if as_json:
        print_json(asdict(publication))
    elif not quiet:
        print_done(publication_lines(publication))
    return 0


@click.command(cls=Command)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--exit-code", is_flag=True, help="Exit with 1 where they differ, as git diff does; --quiet implies it.")
@SPEAKING
def compare(first: str, second: str, exit_code: bool, as_json: bool, quiet: bool, debug: bool) -> int:
    """Compare two checkpoints, tensor by tensor. Exit 0 also when they differ, unless --exit-code is given."""
    from bot.compare import comparison_table
    from bot.merged_folder import compare_models

    console = Console(quiet=quiet)
    comparison = compare_models(model_ref(first), model_ref(second), the_hub(), console)
    console.close()
    if as_json:
        print_json(comparison)
    elif not quiet:
        print_parts(comparison_table(comparison))
    return DIFFERENT if (exit_code or quiet) and comparison["different"] else 0
