"""adapter-merge: the commands. Thin: each one turns its options into a request and hands it to the pipeline.

Imports stay inside the commands, so that `--help` and `plan` start without torch.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bot import __version__
from bot.errors import OUR_BUG, AdapterMergeError, Interrupted, NotVerified, Usage, of_system
from bot.events import Event, Show
from bot.signals import end_on_signals, interrupted
from bot.terminal.console import Console
from bot.terminal.option_groups import Commands, OneOf, hyphened
from bot.terminal.streams import defused, guard_streams

if TYPE_CHECKING:
    from bot.hub import Hub
    from bot.records import Combination, Options, Outcome, Plan, Ref, Request

F = TypeVar("F", bound=Callable[..., Any])
DIFFERENT = 1  # of `compare --exit-code`, by git's custom; no failure has this code

INTERRUPTED = Interrupted("Interrupted.", remedy="The same command goes on from here, and publishes nothing twice.")
EPILOG = """\b
A REF is owner/name or owner/name@revision on the Hub, or a folder (./x, /x, or an existing path).
An adapter may lie in a folder of its repo: owner/name/checkpoint-500.
Exit codes: 0 done or unchanged, 2 usage, 3 refused by the plan, 4 not verified,
5 the Hub or the network failed, 6 this machine is too small, 70 our bug, 130 interrupted."""


def _options(*decorators: Callable[[Any], Any]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


ADAPTERS = click.argument("adapters", metavar="ADAPTER...", nargs=-1, required=True)
BASE = click.option("--base", metavar="REF", help="The base model. Default: the one the adapter's config names.")
DTYPE = click.option(
    "--dtype",
    type=OneOf(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    show_default=True,
    help="Storage dtype of the result; auto keeps the base's.",
)
BASE_WEIGHTS = click.option(
    "--base-weights",
    type=OneOf(["auto", "stored", "original", "simulate-nf4"]),
    default="auto",
    show_default=True,
    help="What to merge into: what the base's files hold (stored, dequantised where they are quantised), the 16-bit model "
    "that a quantised base was made from, or a 16-bit base as bitsandbytes would have quantised it (for an adapter trained "
    "with QLoRA). auto: stored.",
)
QUANTIZATION = click.option(
    "--quantization-config",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="How simulate-nf4 quantises: JSON with BitsAndBytesConfig's fields. Default: nf4 with double quantisation.",
)
QUANTIZE = click.option(
    "--quantize",
    type=OneOf(["none", "nf4", "fp4", "int8", "fp8", "same"]),
    default="none",
    show_default=True,
    help="Store the merged weights quantised, from their exact values; same: in the base's own form.",
)
OVERFLOW = click.option(
    "--overflow",
    type=OneOf(["refuse", "clamp"]),
    default="refuse",
    show_default=True,
    help="What to do with a number too large for the storage dtype (float16 ends at 65504): refuse the merge, or clamp it to "
    "the largest there is.",
)
EVAL_TEXT = click.option(
    "--eval-text",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A text to compare quantised bases and results on, beside the fixed prompts.",
)
VERIFY = click.option(
    "--verify",
    type=OneOf(["auto", "files", "weights", "full"]),
    default="auto",
    show_default=True,
    help="How hard to prove the merge; auto takes the highest level that fits this machine, never below weights.",
)
PICKLE = click.option("--allow-pickle", is_flag=True, help="Read an adapter that ships only as adapter_model.bin.")
REMOTE_CODE = click.option(
    "--trust-remote-code", is_flag=True, help="Let the full verification run the base's own code."
)
ENGINE = click.option(
    "--engine",
    type=OneOf(["auto", "streaming", "phantom", "in-memory"]),
    default="auto",
    show_default=True,
    help="How to merge. The method decides: auto takes its engine, another one is refused.",
)
DEVICE = click.option(
    "--device",
    type=OneOf(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where deltas are multiplied; auto takes a GPU for ranks of 128 and more, where torch can use one; cuda insists. "
    "The bytes are the same.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
QUIET = click.option("--quiet", is_flag=True, help="Print warnings and errors only.")
DEBUG = click.option("--debug", is_flag=True, help="Show a traceback with every error.")
FORCE = click.option("--force", is_flag=True, help="Do it again, or over what is there, instead of stopping.")
PRIVATE = click.option(
    "--private",
    type=OneOf(["auto", "true", "false"]),
    default="auto",
    show_default=True,
    help="Visibility of a new target, and of one that holds this merge already; auto: a new one is private if either input is.",
)
LICENSE = click.option(
    "--license", metavar="ID", help="License id for the card. Default: the stricter of the adapter's and the base's."
)
DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Plan and look at the target; download no weight and write nothing."
)
COMBINING = _options(
    click.option(
        "--combine",
        type=OneOf(["cat", "linear", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]),
        help="How several adapters become one. Default: cat, the weighted sum itself, which with weights of 1 is one "
        "adapter merged after the other, rounded once. The others are PEFT's approximations of it.",
    ),
    click.option("--weights", metavar="W,W,…", help="One weight for each adapter, negative ones too. Default: 1 each."),
    click.option(
        "--density",
        type=float,
        help="The share of values that ties, dare_linear, dare_ties and magnitude_prune keep. Default: 0.5.",
    ),
    click.option("--seed", type=int, help="Of the random pruning of dare_linear and dare_ties. Default: 0."),
    click.option("--rank", type=int, help="Of svd's result. Default: the largest rank of the adapters."),
    click.option(
        "--majority-sign",
        type=OneOf(["total", "frequency"]),
        help="Whether ties and dare_ties elect a sign by sum or by number. Default: total.",
    ),
)
MERGING = _options(
    BASE, BASE_WEIGHTS, QUANTIZATION, DTYPE, QUANTIZE, OVERFLOW, ENGINE, DEVICE, VERIFY, EVAL_TEXT, PICKLE, REMOTE_CODE
)
SPEAKING = _options(JSON, QUIET, DEBUG)


SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "token_normalize_func": hyphened}


@click.group(cls=Commands, epilog=EPILOG, context_settings=SETTINGS)
@click.version_option(__version__, message="adapter-merge %(version)s")
def cli() -> None:
    """Turn a fine-tuned adapter into a published, proven model."""


@cli.command()
@ADAPTERS
@MERGING
@COMBINING
@SPEAKING
def plan(adapters: tuple[str, ...], as_json: bool, quiet: bool, **chosen: Any) -> int:
    """Show what a merge would do. Reads headers and configs only; downloads no weight."""
    from bot.pipeline import plan_merge
    from bot.plan_text import plan_json

    console = Console(quiet=quiet)

    def emit(event: Event) -> None:
        if as_json or quiet or not isinstance(event, Show):
            console(event)
        else:  # what was asked for, and no mere word about the work
            console.close()
            _print(event.text)

    _, found = plan_merge(_request(adapters, **chosen), _hub(), emit)
    console.close()
    if as_json:
        _print_json(plan_json(found))
    return _refuse(found)


@cli.command()
@ADAPTERS
@click.option(
    "--output", "-o", metavar="DIR", required=True, type=click.Path(path_type=Path), help="The folder to make."
)
@MERGING
@COMBINING
@LICENSE
@FORCE
@DRY_RUN
@SPEAKING
def merge(adapters: tuple[str, ...], as_json: bool, quiet: bool, **chosen: Any) -> int:
    """Merge and verify into a folder; publish nothing. Several ADAPTERs are combined into one first."""
    return _run(_request(adapters, publish="none", **chosen), as_json=as_json, quiet=quiet)


@cli.command()
@ADAPTERS
@click.option("--each", is_flag=True, help="Merge each ADAPTER into a model of its own; the base is read in once.")
@click.option(
    "--to", "target", metavar="REPO", help="The repo to publish to. Default: the adapter's name with -merged."
)
@click.option(
    "--publish",
    type=OneOf(["auto", "pr", "push", "none"]),
    default="auto",
    show_default=True,
    help="auto: push to a new repo, open a pull request on one that exists.",
)
@click.option("--output", "-o", metavar="DIR", type=click.Path(path_type=Path), help="Keep the merged folder here.")
@MERGING
@COMBINING
@PRIVATE
@LICENSE
@FORCE
@DRY_RUN
@SPEAKING
def run(adapters: tuple[str, ...], each: bool, as_json: bool, quiet: bool, **chosen: Any) -> int:
    """All of it: pull, plan, merge, verify, publish. Several ADAPTERs are combined into one first, or with --each not."""
    if chosen["publish"] == "none" and chosen["output"] is None and not chosen["dry_run"]:
        raise Usage("With --publish none nothing would be left of the merge.", remedy="Name a folder with --output.")
    if each:
        return _run_each(adapters, as_json=as_json, quiet=quiet, **chosen)
    return _run(_request(adapters, **chosen), as_json=as_json, quiet=quiet)


@cli.command()
@click.argument("merged", metavar="MERGED")
@BASE
@click.option(
    "--adapter",
    "adapters",
    metavar="REF",
    multiple=True,
    help="The adapter; of several, each in turn. Default: those that verification.json names.",
)
@BASE_WEIGHTS
@QUANTIZATION
@DTYPE
@QUANTIZE
@OVERFLOW
@VERIFY
@EVAL_TEXT
@FORCE
@PICKLE
@REMOTE_CODE
@SPEAKING
def verify(
    merged: str, base: str | None, adapters: tuple[str, ...], as_json: bool, quiet: bool, debug: bool, **chosen: Any
) -> int:
    """Re-prove a merged repo or folder, ours or anybody's."""
    from bot.plan_text import held_against
    from bot.reverify import verify_again
    from bot.verify import canonical, table

    console = Console(quiet=quiet)
    given = [_adapter(adapter) for adapter in adapters]
    measuring = {name: chosen.pop(name) for name in ("eval_text", "force")}
    report = verify_again(_ref(merged), _maybe(base), given, _chosen_options(chosen), _hub(), console, **measuring)
    console.close()
    if as_json:
        click.echo(canonical(report.document).decode(), nl=False)
    elif quiet:  # what failed was said as it was found
        for remark in (found for found in report.findings if found.status == "warn"):
            click.echo(f"  ! {remark.id}: {remark.why}", err=True)
    else:
        _print("\n".join(["held against:", *held_against(report.document["inputs"]), "", table(report)]))
    return 0 if report.verdict == "verified" else NotVerified.exit_code


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", "target", metavar="REPO", required=True, help="The repo to publish to.")
@click.option(
    "--publish",
    "how",
    type=OneOf(["auto", "pr", "push"]),
    default="auto",
    show_default=True,
    help="auto: push to a new repo, open a pull request on one that exists.",
)
@PRIVATE
@FORCE
@DRY_RUN
@SPEAKING
def publish(folder: Path, target: str, how: Any, as_json: bool, quiet: bool, debug: bool, **chosen: Any) -> int:
    """Publish a folder that `merge` finished."""
    from dataclasses import asdict

    from bot.plan_text import publication_lines
    from bot.records import Ref, Request
    from bot.reverify import publish_folder

    console = Console(quiet=quiet)
    request = Request(adapter=Ref(text=str(folder), folder=folder), target=target, publish=how, **chosen)
    publication = publish_folder(folder, request, _hub(), console)
    console.close()
    if as_json:
        _print_json(asdict(publication))
    elif not quiet:
        click.echo("\n".join(publication_lines(publication)))
    return 0


@cli.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--exit-code", is_flag=True, help="Exit with 1 where they differ, as git diff does; --quiet implies it.")
@SPEAKING
def compare(first: str, second: str, exit_code: bool, as_json: bool, quiet: bool, debug: bool) -> int:
    """Compare two checkpoints, tensor by tensor. Exit 0 also when they differ, unless --exit-code is given."""
    from bot.compare import comparison_table
    from bot.reverify import compare_models

    console = Console(quiet=quiet)
    found = compare_models(_ref(first), _ref(second), _hub(), console)
    console.close()
    if as_json:
        _print_json(found)
    elif not quiet:
        _print(comparison_table(found))
    return DIFFERENT if (exit_code or quiet) and found["different"] else 0


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--port", default=5999, show_default=True, help="0 takes any free port.")
@click.option("--xet", is_flag=True, help="Serve large files by Xet, as the Hub does, instead of plain LFS.")
@DEBUG
def hub(folder: Path, port: int, xet: bool, debug: bool) -> int:
    """Serve a local Hub from a folder, for trying things out offline. Stop it with Ctrl-C."""
    from bot.demo.serve import serve

    serve(folder, port=port, xet=xet)
    return 0


@cli.command()
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Keep the local Hub's folder here; default: beside the download cache, where the next demo replaces it.",
)
@DEBUG
def demo(keep: Path | None, debug: bool) -> int:
    """The main job, offline: a small model and an adapter are trained, merged, proven and published on a local Hub."""
    from bot.demo.story import tell

    tell(keep)
    return 0


@cli.command()
@click.argument("target", metavar="[REPO]", required=False)
@SPEAKING
def doctor(target: str | None, as_json: bool, quiet: bool, debug: bool) -> int:
    """Say what this machine, this token and the target REPO allow, before any download."""
    from bot.doctor import examine
    from bot.machine import look

    our_hub = _hub()
    topics = examine(target, our_hub, look(our_hub.scratch))
    if as_json:
        _print_json([{"topic": t, "status": s, "what": what, "remedy": remedy} for t, s, what, remedy in topics])
    else:
        width = max(len(topic) for topic, *_ in topics)
        for topic, status, what, remedy in topics:
            if not quiet or status != "ok":
                click.echo(
                    f"{status:<4}  {topic:<{width}}  {what}" + (f" {remedy}" if remedy and status != "ok" else "")
                )
    return 5 if any(status == "fail" for _, status, *_ in topics) else 0


# --- from options to records --------------------------------------------------------------------------------------


def _hub() -> Hub:
    from bot.hub import when_asked

    def make() -> Hub:
        from bot.hub import Hub

        return Hub(read_token=os.environ.get("HF_READ_TOKEN") or None)

    return when_asked(make)


def _ref(text: str) -> Ref:
    from bot.pull import parse_ref

    return parse_ref(text)


def _adapter(text: str) -> Ref:
    from bot.pull import parse_ref

    return parse_ref(text, deeper=True)


def _maybe(text: str | None) -> Ref | None:
    return _ref(text) if text else None


def _chosen_options(chosen: dict[str, Any]) -> Options:
    from bot.records import Options

    names = (
        "base_weights",
        "quantize",
        "overflow",
        "dtype",
        "engine",
        "device",
        "verify",
        "allow_pickle",
        "trust_remote_code",
    )
    asked = {name: chosen[name] for name in names if name in chosen}
    if chosen.get("quantization_config"):
        asked["quantization"] = _quantization(chosen["quantization_config"], asked)
    return Options(**asked)


def _quantization(path: Path, asked: dict[str, Any]) -> tuple[tuple[str, str | int | bool], ...]:
    """The fields of a BitsAndBytesConfig, for simulate-nf4. Raises Usage."""
    if asked.get("base_weights") != "simulate-nf4":
        raise Usage("--quantization-config says how simulate-nf4 quantises.", remedy="Add --base-weights simulate-nf4.")
    try:
        found = json.loads(path.read_bytes())
        fields = found.items() if isinstance(found, dict) else None
    except (OSError, ValueError):
        fields = None
    if fields is None:
        raise Usage(f"{path} is not a JSON object.", remedy="Write BitsAndBytesConfig's fields, as in a config.json.")
    # Lists of names (llm_int8_skip_modules) as one text: what decides the bytes must be hashable, and as JSON.
    said = {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in fields}
    return tuple(sorted((name, value) for name, value in said.items() if isinstance(value, str | int | bool)))


def _combination(chosen: dict[str, Any]) -> Combination | None:
    """What the options say of how adapters are combined; None where they say nothing. Raises Usage."""
    from bot.records import Combination

    names = ("density", "seed", "rank", "majority_sign")
    asked = {name: chosen[name] for name in names if chosen.get(name) is not None}
    if chosen.get("combine"):
        asked["kind"] = chosen["combine"]
    if chosen.get("weights"):
        try:
            asked["weights"] = tuple(float(weight) for weight in chosen["weights"].split(","))
        except ValueError as error:
            raise Usage(
                f"The weights {chosen['weights']!r} are not numbers.", remedy="Write them as --weights 0.7,-0.3."
            ) from error
    return Combination(**asked) if asked else None


def _request(adapters: tuple[str, ...], base: str | None, debug: bool, **chosen: Any) -> Request:
    from bot.records import Request

    names = ("output", "target", "eval_text", "publish", "private", "license", "force", "dry_run")
    asked = {name: chosen[name] for name in names if name in chosen}
    adapter, *more = map(_adapter, adapters)
    return Request(
        adapter=adapter,
        more=tuple(more),
        combination=_combination(chosen),
        base=_maybe(base),
        options=_chosen_options(chosen),
        **asked,
    )


def _run(request: Request, *, as_json: bool, quiet: bool) -> int:
    from bot.pipeline import run as run_pipeline

    console = Console(quiet=quiet)
    outcome = run_pipeline(request, _hub(), console)
    console.close()
    if as_json:
        from bot.plan_text import outcome_json

        _print_json(outcome_json(outcome))
    return _tell(outcome, quiet=quiet or as_json)


def _run_each(adapters: tuple[str, ...], *, as_json: bool, quiet: bool, **chosen: Any) -> int:
    """Every adapter into a model of its own; the exit code is the worst of theirs."""
    from bot.plan_text import outcome_json
    from bot.run_each import run_each

    if chosen["target"]:
        raise Usage(
            "With --each every adapter has a target of its own.",
            remedy="Leave out --to: each goes to its adapter's name with -merged.",
        )
    if _combination(chosen):
        raise Usage(
            "With --each nothing is combined.", remedy="Leave out --each, or the options that combine adapters."
        )
    console = Console(quiet=quiet)
    requests = [_request((adapter,), **chosen) for adapter in adapters]
    found, codes = [], []
    for ended in run_each(requests, _hub(), console):
        try:
            if ended.error is not None:
                raise ended.error
            assert ended.outcome is not None
            found.append({"ref": ended.request.adapter.text, **outcome_json(ended.outcome)})
            codes.append(_tell(ended.outcome, quiet=quiet or as_json))
        except AdapterMergeError as error:
            if ended.outcome is None:
                found.append({"ref": ended.request.adapter.text, **_error_json(error)})
            codes.append(_say(error, bool(chosen["debug"])))
    console.close()
    if as_json:
        _print_json(found)
    return max(codes)


def _tell(outcome: Outcome, *, quiet: bool) -> int:
    """Say how it ended, in a line or two; return the exit code."""
    from bot.plan_text import not_verified, outcome_lines

    if outcome.status == "refused":
        return _refuse(outcome.plan)
    if outcome.status == "not-verified":
        raise not_verified(outcome)
    if not quiet:
        click.echo("\n".join(outcome_lines(outcome)))
    return 0


def _refuse(plan: Plan) -> int:
    """Say every refusal; the exit code: 0 without any, 6 where only this machine is in the way, else 3."""
    from bot.plan_text import refusal_lines

    for line in refusal_lines(plan):
        click.echo(line, err=True)
    return min((refusal.exit_code for refusal in plan.refusals), default=0)


def _error_json(error: AdapterMergeError) -> dict[str, Any]:
    code = {"code": error.code} if error.code else {}
    return {"error": {"what": error.what, "remedy": error.remedy, "exit_code": error.exit_code, **code}}


def _print(text: str) -> None:
    """A result; in a workflow's log, words out of other people's repos are no commands."""
    click.echo(defused(text) if os.environ.get("GITHUB_ACTIONS") == "true" else text)


def _print_json(found: Any) -> None:
    click.echo(json.dumps(found, indent=2, ensure_ascii=False, default=str))


# --- the one door out ---------------------------------------------------------------------------------------------


def main() -> None:
    """Run a command; every failure leaves as a sentence, a remedy and an exit code."""
    guard_streams()
    end_on_signals(f"✗ {INTERRUPTED.what}\n  {INTERRUPTED.remedy}\n")
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
        code = code or _say(error, False)
    sys.stderr.flush()
    return code


def _guarded(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    try:
        found = cli.main(args=arguments, prog_name="adapter-merge", standalone_mode=False)
        return found if isinstance(found, int) else 0
    except click.ClickException as error:
        if "--json" in arguments:
            _print_json(_error_json(Usage(error.format_message(), remedy="See --help.")))
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _say(INTERRUPTED, debug)
    except Exception as error:
        if interrupted():
            return _say(INTERRUPTED, debug)
        return _ended_by(error, arguments, debug)


def _ended_by(error: Exception, arguments: list[str], debug: bool) -> int:
    """Say what went wrong; the exit code."""
    if isinstance(error, AdapterMergeError):
        # The outcome of an unproven merge is printed already.
        if "--json" in arguments and not (arguments[0] in ("merge", "run") and isinstance(error, NotVerified)):
            _print_json(_error_json(error))
        return _say(error, debug)
    if isinstance(error, BrokenPipeError):
        return 0  # whoever read our output has seen enough
    if isinstance(error, OSError | MemoryError) and (known := of_system(error)):
        if "--json" in arguments:
            _print_json(_error_json(known))
        return _say(known, debug)
    traceback.print_exc()
    click.echo("This is a bug in adapter-merge. Please report it with the lines above.", err=True)
    return OUR_BUG


def _say(error: AdapterMergeError, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"✗ {error.what}\n  {error.remedy}", err=True)
    return error.exit_code
