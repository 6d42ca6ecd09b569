"""`hub`, `demo`, `doctor`: of this machine; no model of anybody's is merged."""

from __future__ import annotations

from pathlib import Path

import click

from bot.cli.click_options import DEBUG, SPEAKING
from bot.cli.option_groups import Command
from bot.cli.printing import print_json, print_parts
from bot.cli.requests import the_hub
from bot.events import TextTable, Tone

TONES: dict[str, Tone] = {"ok": "good", "warn": "remark", "fail": "bad"}


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--port", default=5999, show_default=True, help="0 takes any free port.")
@click.option("--xet", is_flag=True, help="Serve large files by Xet, as the Hub does, instead of plain LFS.")
@DEBUG
def hub(folder: Path, port: int, xet: bool, debug: bool) -> int:
    """Serve a local Hub from a folder, for trying things out offline. Stop it with Ctrl-C."""
    from bot.demo.serve import serve

    serve(folder, port=port, xet=xet)
    return 0


@click.command(cls=Command)
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


@click.command(cls=Command)
@click.argument("target", metavar="[REPO]", required=False)
@SPEAKING
def doctor(target: str | None, as_json: bool, quiet: bool, debug: bool) -> int:
    """Say what this machine, this token and the target REPO allow, before any download."""
    from bot.doctor import examine
    from bot.machine import look

    our_hub = the_hub()
    topics = examine(target, our_hub, look(our_hub.scratch))
    if as_json:
        print_json([{"topic": t, "status": s, "what": what, "remedy": remedy} for t, s, what, remedy in topics])
    else:
        shown = [each for each in topics if not quiet or each.status != "ok"]
        rows = tuple(
            (each.status, each.topic, f"{each.sentence} {each.remedy if each.status != 'ok' else ''}".rstrip())
            for each in shown
        )
        print_parts((TextTable(rows=rows, tones=tuple(TONES[each.status] for each in shown)),) if shown else ())
    return 5 if any(status == "fail" for _, status, *_ in topics) else 0
