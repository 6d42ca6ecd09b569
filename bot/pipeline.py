"""The sentence: pull, plan, merge, prove, publish. Each stage is one call; nothing is decided twice.

Request → pull → Sources → plan → Plan → merge → Merged → verify → Report → card → publish → Publication → Outcome
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Literal

from bot.adapters.combine import Predicted, notation
from bot.adapters.combine.prediction import combined_in, plan_for_all_adapters, predict_combined, with_combined_adapter
from bot.attestation import attest, require_writable, utc_now
from bot.card import preview, render, with_notes_on_cards
from bot.errors import AdapterMergeError, Damaged, Usage
from bot.evaluation import require_harness, write_results
from bot.events import Emit, Note, Stage, TextBlock, beating
from bot.input_files import holding, unchanging
from bot.machine import free_beside, look
from bot.merge import merge
from bot.metadata.licenses import require
from bot.output_folder import drop_scratch, finish, refuse_to_overwrite, scratch_folder
from bot.partial_folder import left_behind, locked_partial_dir
from bot.plan import make_plan, pin_of
from bot.plan_text import plan_table
from bot.proof import named_inputs, prove, tag_of
from bot.publish import (
    ExpectedResult,
    PublishSettings,
    SentBefore,
    apply_settings,
    find_existing,
    open_target,
    publish,
    require_not_an_input,
    require_reach,
    warn_of_reach,
)
from bot.pull import base_of, dropping, fetch, needed, pin, require_headers, with_sound_files
from bot.records import Local, Outcome, Plan, Publication, Ref, Report, Request, Source, Sources
from bot.report_document import PAGE, PICTURE, Document
from bot.report_page.writing import require_page_folder, write_page
from bot.signing import require_signer, sign

if TYPE_CHECKING:
    from bot.by_shard import MadeByShard, Merge
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
        return _by_shard(request, sources, plan, hub, emit)
    inputs = _ready(request, sources, plan, hub, emit)
    # The folder stays locked until the merge is published: another run would put its own folder there meanwhile.
    with locked_partial_dir(_output(request, plan, hub), plan.fingerprint) as partial:
        made = _build(partial, inputs, request, sources, plan, hub, emit)
        if made.status == "not-verified":
            return made
        published = _published(made, partial, request, hub, emit)
    if isinstance(published, AdapterMergeError):
        raise published
    return replace(made, status=_status(published), publication=published, folder=request.output)


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
            known = apply_settings(known, _publish_settings(request, sources, plan), hub, emit)
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


def _by_shard(request: Request, sources: Sources, plan: Plan, hub: Hub, emit: Emit) -> Outcome:
    """The same where base and result do not lie on this disk: each weight file is made, proven and sent before the next one."""
    from bot import by_shard

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
    from bot import by_shard

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
    _write_for_people(partial, report, what.sources, together, what.request, plan, hub)
    if what.request.attestation is not None:
        attest(what.request.attestation, partial, report, hub.address, started)
    if report.verdict != "verified":
        made.clear()
        return Outcome(status="not-verified", plan=plan, report=report)

    def commit(before: SentBefore) -> Publication:
        return publish_made(partial, report.document, what.request, hub, emit, before)

    published = made.publish(commit, emit)
    return Outcome(status=_status(published), plan=plan, report=report, publication=published)


def _status(published: Publication) -> Literal["published", "unchanged"]:
    return "unchanged" if published.status == "unchanged" else "published"


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
    _write_for_people(partial, report, sources, together, request, plan, hub)
    if request.sign is not None and report.verdict == "verified":
        name = publish_target(request) or _output(request, plan, hub).name
        sign(partial, request.sign, name.rpartition("/")[2])
    folder = finish(partial, _output(request, plan, hub), report, request)
    if request.attestation is not None:
        attest(request.attestation, folder, report, hub.address, started)
    status: Literal["merged", "not-verified"] = "merged" if report.verdict == "verified" else "not-verified"
    return Outcome(status=status, plan=plan, report=report, folder=folder)


def _write_for_people(
    folder: Path, report: Report, sources: Sources, together: Predicted | None, request: Request, plan: Plan, hub: Hub
) -> None:
    """The card with its picture, and the page where it is wanted."""
    from bot.report_page.heat_map_png import heat_map_png  # pictures are not for those who only plan

    picture = heat_map_png(report.document)
    card = render(
        report.document,
        target=publish_target(request),
        base=sources.base,
        adapter=with_combined_adapter(sources, together).adapter,
        adapters=sources.adapters,
        license=request.license,
        assets=plan.assets,
        hub=hub.address,
        pictured=picture is not None,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    write_results(folder, report.document)
    if picture is not None:
        (folder / PICTURE).write_bytes(picture)
    if request.publish_report:
        write_page(folder / PAGE, report.document)
    if request.report is not None:
        write_page(request.report, report.document)


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


@contextmanager
def one_adapter(together: Predicted | None, inputs: Local, hub: Hub, emit: Emit) -> Iterator[Local]:
    """The inputs with one adapter: where there are several, the combination of them, for as long as the block runs."""
    if together is None:
        yield inputs
        return
    emit(Stage(name="combine", title=f"Combining the adapters: {notation.words(together.how)}"))
    adapters = [held for held in inputs.files if held.role == "adapter"]
    with ExitStack() as stack:
        with holding(adapters) as keeper, beating(emit, "combine", "Combining"):
            keeper.follow(held.path for held in adapters)
            adapter = stack.enter_context(combined_in(hub.scratch, together, inputs.adapters))
        # They need not be hashed again, only stay the same.
        hashed = tuple(replace(held, sha256=None, oid=None) if held in adapters else held for held in inputs.files)
        yield replace(inputs, adapter=adapter, files=hashed)


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


def input_repos(request: Request, sources: Sources, plan: Plan) -> list[tuple[str, str | None]]:
    """(base or adapter, repo) of every input, and the base as it was asked for: another, where its 16-bit parent is merged into."""
    base, *adapters = named_inputs(plan).repos
    return [base, ("base", (request.base or base_of(sources.adapter)).repo), *adapters]


def publish_target(request: Request) -> str | None:
    """The repo to publish to; None where nothing is published."""
    return None if request.publish == "none" else target_of(request)


def target_of(request: Request) -> str:
    """The repo to publish to: as asked, or `<adapter>-merged`, the folder's name before it where the adapter lies deeper in its
    repo, `-nf4` and so on behind it. Raises Usage when there is no telling."""
    if request.target:
        return request.target
    if request.more:
        raise Usage("Several adapters in one model give it no name.", remedy="Name the target with --to owner/name.")
    if request.adapter.as_repo is None:
        raise Usage(
            "An adapter in a folder has no repo name to add -merged to.", remedy="Name the target with --to owner/name."
        )
    form = request.options.quantize
    return f"{request.adapter.as_repo}-merged" + ("" if form in ("auto", "none") else f"-{form}")


def _import_ahead(request: Request) -> None:
    """Import the engine while the inputs are read and hashed, and torch where the proof needs it: seconds less to wait."""
    names = ["bot.engines.streaming", *([] if request.options.verify == "files" else ["bot.checks.elementwise.sweep"])]
    Thread(target=lambda: [importlib.import_module(name) for name in names]).start()


def _publish_settings(request: Request, sources: Sources, plan: Plan) -> PublishSettings:
    """What is asked for beside the merge itself."""
    repos = tuple(named_inputs(plan).repos)
    return PublishSettings(fingerprint=plan.fingerprint, repos=repos, private=request.private, tag=tag_of(sources))


def _output(request: Request, plan: Plan, hub: Hub) -> Path:
    """The folder asked for, or a scratch folder."""
    return request.output or scratch_folder(hub.scratch, plan.fingerprint, publish_target(request))


def publish_made(
    folder: Path, document: Document, request: Request, hub: Hub, emit: Emit, before: SentBefore | None = None
) -> Publication:
    """Publish a proven folder to the request's target. `document`: its verification.json; `before`: what the Hub has of it."""
    return publish(
        folder,
        document,
        target=target_of(request),
        how=request.publish,
        private=request.private,
        force=request.force,
        tag=document.merge.tag,
        hub=hub,
        emit=emit,
        dry_run=request.dry_run,
        before=before,
    )
