"""The sentence: pull, plan, merge, prove, publish. Each stage is one call; nothing is decided twice.

Request → pull → Sources → plan → Plan → merge → Merged → verify → Report → card → publish → Publication → Outcome
"""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Literal

from bot.adapters.combine import notation
from bot.adapters.combine.prediction import plan_for_all_adapters, predict_combined, with_combined_adapter
from bot.attestation import attest, require_writable, utc_now
from bot.card import preview, with_notes_on_cards
from bot.card_and_page import write_card_and_page
from bot.errors import AdapterMergeError, Damaged
from bot.evaluation import require_harness
from bot.events import Emit, Note, Stage, TextBlock, beating
from bot.input_files import unchanging
from bot.machine import free_beside, look
from bot.merge import merge
from bot.metadata.licenses import require
from bot.one_adapter import one_adapter
from bot.output_folder import drop_scratch, finish, refuse_to_overwrite, scratch_folder
from bot.partial_folder import left_behind, locked_partial_dir
from bot.plan import make_plan, pin_of
from bot.plan_text import plan_table
from bot.proof import prove
from bot.publish import (
    ExpectedResult,
    apply_settings,
    find_existing,
    require_not_an_input,
    require_reach,
    warn_of_reach,
)
from bot.pull import dropping, fetch, pin, require_headers, with_sound_files
from bot.records import Local, Outcome, Plan, Publication, Ref, Request, Source, Sources
from bot.report_page.writing import require_page_folder
from bot.signing import require_signer, sign
from bot.target import input_repos, publish_made, publish_settings, publish_target

if TYPE_CHECKING:
    from bot.hub import Hub

NOT_ATTESTED = (
    "Nothing was merged, so that no attestation was written; `adapter-merge verify {} --attestation FILE` writes one."
)
NOTHING_DRAWN = "Nothing was merged, so that no report was written; `adapter-merge report {} --output FILE` draws the published one."

NOT_SIGNED = (
    "This merge is published already, so that nothing was signed; with --force it is made, signed and sent again."
)


def run(request: Request, hub: Hub, emit: Emit, bases: dict[Ref, Source] | None = None) -> Outcome:
    """All of it. What the plan forbids and what fails its proof are outcomes; what the world breaks is raised.

    `bases`: those that an earlier run pinned, see `bot.pull.pin`. What is damaged in the Hub's cache is fetched once more.
    """
    require_writable(request.attestation, request.output)
    require_page_folder(request.report)
    require_signer(request.sign)
    require_harness(request.eval_tasks, request.eval_limit)
    if not request.dry_run:
        _import_ahead(request)
    bases = {} if bases is None else bases

    def attempt() -> Outcome:
        try:
            return _run(request, hub, emit, bases)
        except Damaged:
            bases.clear()  # their headers may be damaged too
            raise

    return with_sound_files(attempt, hub, emit)


def _run(request: Request, hub: Hub, emit: Emit, bases: dict[Ref, Source]) -> Outcome:
    sources, plan = plan_merge(request, hub, emit, bases)
    ended = ended_before(request, sources, plan, hub, emit)
    if ended is not None:
        return ended
    if publish_target(request) is None:
        return make(request, sources, plan, hub, emit)
    if plan.disk == "shards":
        from bot.pipeline_by_shard import run_by_shard  # only where it is needed

        return run_by_shard(request, sources, plan, hub, emit)
    inputs = _ready(request, sources, plan, hub, emit)
    # The folder stays locked until the merge is published: another run would put its own folder there meanwhile.
    with locked_partial_dir(_output(request, plan, hub), plan.fingerprint) as partial:
        made = _build(partial, inputs, request, sources, plan, hub, emit)
        if made.status == "not-verified":
            return made
        published = _published(made, partial, request, hub, emit)
    if isinstance(published, AdapterMergeError):
        raise published
    status: Literal["unchanged", "published"] = "unchanged" if published.status == "unchanged" else "published"
    return replace(made, status=status, publication=published, folder=request.output)


def ended_before(request: Request, sources: Sources, plan: Plan, hub: Hub, emit: Emit) -> Outcome | None:
    """How a run ends of which nothing is to be made: it is refused, there already, or a dry run. None where it goes on. Raises
    what would stop its publication."""
    if plan.refusals:
        require_headers(sources, hub)
        return Outcome(status="refused", plan=plan)
    target = publish_target(request)
    if target:
        require_not_an_input(target, input_repos(request, sources, plan), hub)
    if target and not request.force and (known := find_existing(plan.fingerprint, target, hub, emit, request.publish)):
        drop_scratch(scratch_folder(hub.scratch, plan.fingerprint, target), plan.fingerprint)
        if request.attestation is not None:
            emit(Note(text=NOT_ATTESTED.format(target), level="warning"))
        if request.sign is not None:
            emit(Note(text=NOT_SIGNED, level="warning"))
        if request.report is not None:
            emit(Note(text=NOTHING_DRAWN.format(target), level="warning"))
        if not request.dry_run:
            known = apply_settings(known, publish_settings(request, sources, plan), hub, emit)
        return Outcome(status="unchanged", plan=plan, publication=known)
    if target is None:
        return Outcome(status="dry-run", plan=plan) if request.dry_run else None
    card = preview(sources.base, sources.adapter, sources.adapters, request.license, hub.address)
    result = ExpectedResult.of(sources, card, request.private, emit)
    if request.dry_run:
        warn_of_reach(target, request.publish, hub, emit, result)
        return Outcome(status="dry-run", plan=plan)
    require_reach(target, request.publish, hub, result)
    return None


def make(request: Request, sources: Sources, plan: Plan, hub: Hub, emit: Emit) -> Outcome:
    """Fetch, merge, prove, and give the folder its name: `merged`, or `not-verified`. Publishes nothing."""
    inputs = _ready(request, sources, plan, hub, emit)
    with locked_partial_dir(_output(request, plan, hub), plan.fingerprint) as partial:
        return _build(partial, inputs, request, sources, plan, hub, emit)


def _ready(request: Request, sources: Sources, plan: Plan, hub: Hub, emit: Emit) -> Local:
    """The inputs on this disk. Raises Usage first where the output would take the place of something else."""
    refuse_to_overwrite(request)
    return fetch(sources, plan, hub, emit)


def _build(
    partial: Path, inputs: Local, request: Request, sources: Sources, plan: Plan, hub: Hub, emit: Emit
) -> Outcome:
    """Merge into `partial`, prove it, and give it its name."""
    started, together = utc_now(), predict_combined(sources, request.combination)
    # The inputs must be the same from plan to proof.
    with dropping(hub), one_adapter(together, inputs, hub, emit) as inputs, unchanging(inputs.files):
        merged = merge(replace(plan, forced=request.force), inputs, partial, emit)
        report = prove(merged, inputs, sources, request, publish_target(request), hub, emit)
    write_card_and_page(partial, report, sources, together, request, plan, hub.address)
    if request.sign is not None and report.verdict == "verified":
        name = publish_target(request) or _output(request, plan, hub).name
        sign(partial, request.sign, name.rpartition("/")[2])
    folder = finish(partial, _output(request, plan, hub), report, request)
    if request.attestation is not None:
        attest(request.attestation, folder, report, hub.address, started)
    status: Literal["merged", "not-verified"] = "merged" if report.verdict == "verified" else "not-verified"
    return Outcome(status=status, plan=plan, report=report, folder=folder)


def _published(made: Outcome, partial: Path, request: Request, hub: Hub, emit: Emit) -> Publication | AdapterMergeError:
    """The publication, or the error that stopped it. A scratch folder is then removed, or kept for the next run to resume from."""
    assert made.folder is not None
    assert made.report is not None
    try:
        publication = publish_made(made.folder, made.report.document, request, hub, emit)
    except AdapterMergeError as error:
        if request.output is None:
            made.folder.rename(partial)
        return error
    if request.output is None:
        shutil.rmtree(made.folder)  # it is on the Hub now
    return publication


def plan_merge(request: Request, hub: Hub, emit: Emit, bases: dict[Ref, Source] | None = None) -> tuple[Sources, Plan]:
    """Pin all inputs and plan their merge; no weight is downloaded."""
    # An impossible combination is refused before anything is read.
    notation.with_defaults(request.combination, 1 + len(request.more))
    require(request.license)
    emit(Stage(name="pull", title=f"Reading base and adapter{'s' if request.more else ''}"))
    hub.tell(emit)
    with beating(emit, "pull", "Reading") as reading:
        sources = pin(request, hub, reading, bases)
    plan = planned(sources, request, request.output or hub.scratch, hub)
    show_plan(plan, emit)
    return sources, plan


def show_plan(plan: Plan, emit: Emit) -> None:
    """The plan's table and its warnings."""
    emit(Stage(name="plan", title="The plan"))
    emit(TextBlock(parts=(plan_table(plan),)))
    for warning in plan.warnings:
        emit(Note(text=warning, level="warning"))


def planned(sources: Sources, request: Request, output: Path, hub: Hub) -> Plan:
    """The plan for pinned inputs; where there are several adapters, for the combination of them."""
    machine = replace(look(output), cache_free=free_beside(hub.cache_dir, output))
    if request.output:  # what an earlier, killed run left there is resumed, or removed
        machine = replace(machine, disk_free=machine.disk_free + left_behind(request.output))
    together = predict_combined(sources, request.combination)
    given, publishing = with_combined_adapter(sources, together), request.publish != "none" and request.output is None
    plan = make_plan(given, request.options, machine, sources.adapters, publishing=publishing)
    if together is not None:
        plan = plan_for_all_adapters(plan, together, request.combination, map(pin_of, sources.adapters), machine)
    return with_notes_on_cards(plan, sources, request.license)


def _import_ahead(request: Request) -> None:
    """Import the engine while the inputs are read and hashed, and torch where the proof needs it: seconds less to wait."""
    names = ["bot.engines.streaming", *([] if request.options.verify == "files" else ["bot.checks.elementwise.sweep"])]
    Thread(target=lambda: [importlib.import_module(name) for name in names]).start()


def _output(request: Request, plan: Plan, hub: Hub) -> Path:
    """The folder asked for, or a scratch folder."""
    return request.output or scratch_folder(hub.scratch, plan.fingerprint, publish_target(request))
