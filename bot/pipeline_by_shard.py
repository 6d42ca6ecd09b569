"""The sentence where base and result do not lie on this disk: each weight file is made, proven and sent before the next one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bot import by_shard
from bot.adapters.combine.prediction import predict_combined
from bot.attestation import attest, require_writable, utc_now
from bot.card_and_page import write_card_and_page
from bot.errors import Usage
from bot.events import Emit
from bot.input_files import unchanging
from bot.one_adapter import one_adapter
from bot.output_folder import scratch_folder
from bot.partial_folder import locked_partial_dir
from bot.proof import named_inputs
from bot.publish import SentBefore, open_target
from bot.pull import dropping, fetch, needed
from bot.records import Outcome, Plan, Publication, Request, Sources
from bot.target import publish_made, target_of

if TYPE_CHECKING:
    from bot.by_shard import MadeByShard, Merge
    from bot.hub import Hub


def run_by_shard(request: Request, sources: Sources, plan: Plan, hub: Hub, emit: Emit) -> Outcome:
    """Make and publish a planned merge."""
    require_writable(request.attestation, None)
    if request.sign is not None or request.eval_tasks is not None:
        raise Usage(
            "A model that is made one weight file after the other is never whole here, to be signed or evaluated.",
            remedy="Leave out --sign and --eval, or merge with --disk whole where there is room.",
        )
    started = utc_now()
    with shard_merge(request, sources, plan, hub, emit) as (what, partial):
        return publish_shards(by_shard.make(what, partial, hub, emit), what, partial, hub, emit, started)


@contextmanager
def shard_merge(
    request: Request, sources: Sources, plan: Plan, hub: Hub, emit: Emit, part: str = ""
) -> Iterator[tuple[Merge, Path]]:
    """A merge by weight files, and the folder to make its other files in: the target is there, and all inputs but the base's
    weights are here. `part`: of the merge, which has a folder of its own."""
    target = target_of(request)
    wanted = needed(sources, plan)
    wanted["base"] -= by_shard.weight_files_of(sources.base)
    small = fetch(sources, {role: sorted(names) for role, names in wanted.items()}, hub, emit)
    repos = tuple(named_inputs(plan).repos)
    proposing = open_target(target, request.publish, request.private, repos, hub, emit)
    to = by_shard.Destination(repo=target, proposing=proposing, copies=sources.base.repo is not None, part=part)
    together = predict_combined(sources, request.combination)
    folder = scratch_folder(hub.scratch, plan.fingerprint, f"{target} {part}" if part else target)
    with locked_partial_dir(folder, plan.fingerprint) as partial:
        with dropping(hub), one_adapter(together, small, hub, emit) as inputs, unchanging(inputs.files):
            yield by_shard.Merge(plan=plan, inputs=inputs, sources=sources, request=request, to=to), partial
        shutil.rmtree(partial, ignore_errors=True)


def publish_shards(
    made: MadeByShard, what: Merge, partial: Path, hub: Hub, emit: Emit, started: str | None = None
) -> Outcome:
    """The one commit of a merge whose weight files are on the Hub already. `started`: when it was begun, where that is known."""
    report, plan = made.report, what.plan
    together = predict_combined(what.sources, what.request.combination)
    write_card_and_page(partial, report, what.sources, together, what.request, plan, hub.address)
    if what.request.attestation is not None:
        attest(what.request.attestation, partial, report, hub.address, started)
    if report.verdict != "verified":
        made.clear()
        return Outcome(status="not-verified", plan=plan, report=report)

    def commit(before: SentBefore) -> Publication:
        return publish_made(partial, report.document, what.request, hub, emit, before)

    published = made.publish(commit, emit)
    status: Literal["unchanged", "published"] = "unchanged" if published.status == "unchanged" else "published"
    return Outcome(status=status, plan=plan, report=report, publication=published)
