"""One merge over several machines: each makes, proves and sends some of the weight files; one of them, or another, makes the commit.

The workers share nothing but the target on the Hub, to which each sends its files without a commit, and the receipts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bot import by_shard
from bot.by_shard.receipts import (
    Part,
    Receipt,
    of_one_merge,
    proven_files,
    request_from,
    request_json,
    with_revisions_asked_for,
)
from bot.errors import Outside, Refused
from bot.events import Emit, Note, Stage
from bot.pipeline import ended_before, plan_merge, planned, show_plan
from bot.pipeline_by_shard import publish_shards, shard_merge
from bot.pull import pin
from bot.records import Outcome, Request
from bot.shard_needs import ShardNeeds
from bot.target import target_of

if TYPE_CHECKING:
    from bot.hub import Hub


def make_part(request: Request, part: Part, path: Path, hub: Hub, emit: Emit) -> Receipt | Outcome:
    """Make, prove and send one part of the weight files, and write its receipt to `path`. Nothing is visible on the Hub.

    The outcome of a run where nothing is to be made: then there is no receipt. Raises NotVerified, with the receipt written, where an
    element is other than it must be.
    """
    request = replace(request, options=replace(request.options, disk="shards"))
    sources, plan = plan_merge(request, hub, emit)
    ended = ended_before(request, sources, plan, hub, emit)
    if ended is not None:
        return ended
    with shard_merge(request, sources, plan, hub, emit, str(part)) as (what, partial):
        needs = needs_of(part, what.needs)
        size = sum(need.shard.size for need in needs)
        emit(Note(text=f"Part {part}: {len(needs)} of {len(what.needs)} weight files, {size:,} bytes."))
        finished = by_shard.make_part(what, needs, partial, hub, emit)
    receipt = Receipt(
        part=part,
        fingerprint=plan.fingerprint,
        target=target_of(request),
        request=request_json(request, sources),
        files=tuple(finished),
        name=path.name,
    )
    receipt.write(path)
    proven_files([receipt], [each.name for each in finished])
    return receipt


def needs_of(part: Part, needs: Sequence[ShardNeeds]) -> list[ShardNeeds]:
    """The part's share: weight files that lie beside each other, of about as many bytes as any other part's."""
    total, before, share = sum(need.shard.size for need in needs), 0, []
    for need in needs:
        middle = before + need.shard.size / 2
        if int(middle * part.of / total) == part.number - 1:
            share.append(need)
        before += need.shard.size
    return share


def finish(receipts: Sequence[Path], hub: Hub, emit: Emit) -> Outcome:
    """The one commit of a merge whose parts were made elsewhere.

    Raises Refused for receipts that are missing, foreign or stale, NotVerified for unproven ones, and Outside where the Hub
    no longer holds what they speak of.
    """
    emit(Stage(name="pull", title=f"Reading {len(receipts)} receipts, base and adapter"))
    read = [Receipt.read(path) for path in receipts]
    asked = of_one_merge(read)
    request = request_from(asked)
    sources = with_revisions_asked_for(pin(request, hub, emit), asked)
    plan = planned(sources, request, hub.scratch, hub)
    show_plan(plan, emit)
    if plan.fingerprint != asked.fingerprint:
        raise Refused(
            "The receipts are of another merge than their inputs and options make.",
            remedy="Make all parts again, with this version.",
        )
    ended = ended_before(request, sources, plan, hub, emit)
    if ended is not None:
        return ended
    finished = proven_files(read, [shard.name for shard in plan.shards])
    _require_held(read, asked.target, hub)
    with shard_merge(request, sources, plan, hub, emit) as (what, partial):
        made = by_shard.put_together(what, finished, partial, hub, emit)
        return publish_shards(made, what, partial, hub, emit)


def _require_held(receipts: Sequence[Receipt], target: str, hub: Hub) -> None:
    """Raises Outside, and names the parts, where the Hub no longer holds what was sent."""
    sent = {each.sha256: each.size for receipt in receipts for each in receipt.files if not each.copied}
    lost = sent.keys() - hub.holds(target, "main", sent)
    parts = [str(receipt.part) for receipt in receipts if any(each.sha256 in lost for each in receipt.files)]
    if parts:
        raise Outside(
            f"The Hub no longer holds what part {', '.join(parts[:5])} sent.",
            remedy="Make those parts again (--shard): the Hub collects what nobody commits after a day or two.",
        )
