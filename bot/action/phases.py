"""The phases: each does its part of the sentence with the one token it needs, and saves what it did.

preflight (write token) → fetch (read token) → merge (none, and no network) → publish (write token, no model)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bot.action.event import WorkflowEvent
from bot.action.github_tag import at_pushed_tag
from bot.action.hub_replay import RecordingHub, ReplayHub
from bot.action.identity import as_publisher, publishing
from bot.action.inputs import Inputs, adapters_of, called
from bot.action.state import ATTESTATION, Failure, MergeJob, ReportedFailure, StateStore, failure_of
from bot.action.tokens import RunTokens
from bot.card import preview
from bot.errors import AdapterMergeError, Refused, Usage
from bot.events import Emit, Note, Stage
from bot.hub import Hub
from bot.machine import torch_has_cuda
from bot.merged_folder import publish_folder
from bot.pipeline import make, planned, show_plan
from bot.plan_text import not_verified, plan_kept
from bot.proof import tag_of
from bot.publish import (
    PublishSettings,
    apply_settings,
    find_existing,
    of_sources,
    require_fit,
    require_not_an_input,
    require_reach,
)
from bot.pull import fetch as download
from bot.pull import pin
from bot.records import Outcome, Plan, Publication, Ref, Request, Sources
from bot.report_document import NAME, PAGE, Pin
from bot.run_each import require_none_replaced
from bot.target import input_repos, target_of


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What every phase is given."""

    inputs: Inputs
    event: WorkflowEvent
    tokens: RunTokens
    store: StateStore
    emit: Emit


# --- preflight ----------------------------------------------------------------------------------------------------


def preflight(run: RunContext) -> None:
    """See with the write token whether the targets can be published to; what stands in the way is reported later.

    A run that turns out to be unchanged, or a dry run, needs no such right: so this never fails by itself.
    """
    reach: dict[str, Failure] = {}
    for request in run.inputs.requests:
        target = _target(request, run)
        if target is None:
            continue
        try:
            with publishing(target, run.tokens, run.store.memory) as hub:
                if not run.tokens.by_identity:  # an identity's token is for this one repo, and for nothing else
                    require_reach(target, request.publish, hub)
                who = hub.whoami_or_none()
                run.store.memory.publisher = who.name or None if who else None
        except AdapterMergeError as error:
            reach[target] = failure_of(error)
    run.store.change(reach=reach)


# --- fetch --------------------------------------------------------------------------------------------------------


def fetch(run: RunContext) -> None:
    """Pin and plan every adapter, refuse early, find what is published already; then download the rest."""
    store = run.store
    require_none_replaced(run.inputs.requests)
    jobs = [
        MergeJob(number=number, adapter=called(request), target=_target(request, run))
        for number, request in enumerate(run.inputs.requests)
    ]
    store.change(jobs=tuple(jobs), plan_only=run.event.plan_only)
    hub = RecordingHub(store.memory, read_token=run.tokens.read, write_token=run.tokens.write or run.tokens.read)
    hub.tell(run.emit)
    plans = [_plan(index, run, hub) for index in range(len(jobs))]
    for index, (sources, plan) in enumerate(plans):
        store.update(index)
        if not store.state.jobs[index].status:
            _require_reach(store.state.jobs[index], store)
            if store.state.jobs[index].target:
                license = run.inputs.requests[index].license
                hub.check_card(preview(sources.base, sources.adapter, sources.adapters, license, hub.address))
            download(sources, plan, hub, run.emit)


def _plan(index: int, run: RunContext, hub: Hub) -> tuple[Sources, Plan]:
    """One adapter's plan. Raises ReportedFailure with all refusals; what needs no merge gets its status."""
    request, store = run.inputs.requests[index], run.store
    if run.event.plan_only:
        request = replace(request, options=replace(request.options, allow_pickle=False))
    if os.environ.get("NVIDIA_VISIBLE_DEVICES") == "void" and torch_has_cuda():
        # The GPU is kept for the merge, which looks for it, and for room on it, again; a torch that cannot use one is reported
        # now.
        verify = "auto" if request.options.verify == "full" else request.options.verify
        request = replace(request, options=replace(request.options, device="auto", verify=verify))
    store.update(index)
    run.emit(Stage(name="pull", title=f"Reading base and adapter {called(request)}"))
    request = _with(request, [at_pushed_tag(ref, run.event.pushed_tag, hub, run.emit) for ref in adapters_of(request)])
    store.update(index, revisions=tuple(ref.revision for ref in adapters_of(request)))
    sources, plan = _planned(request, run, hub)
    target = store.state.jobs[index].target
    if target:
        require_not_an_input(target, input_repos(request, sources, plan), hub)
    show_plan(plan, run.emit)
    planned = {"plan": plan_kept(plan), "base": Pin.of(plan.base), "fingerprint": plan.fingerprint}
    store.update(index, **planned, sources=tuple(map(Pin.of, plan.adapters or (plan.adapter,))), tag=tag_of(sources))
    _require_no_refusal(plan)
    if run.event.plan_only:
        store.update(index, status="dry-run")
    elif known := _existing(request, target, plan, run, hub):
        store.update(index, status="unchanged", verified=known.proof is not None, publication=known)
    elif target:
        # What this phase's token does not see is looked at again with the target's own, before anything is sent.
        require_fit(of_sources(sources, request.private, run.emit), request.private, hub.target(target))
    return sources, plan


def _require_no_refusal(plan: Plan) -> None:
    if plan.refusals:
        code = min(refusal.exit_code for refusal in plan.refusals)
        raise ReportedFailure(code, tuple((refusal.reason, refusal.remedy) for refusal in plan.refusals))


def _existing(request: Request, target: str | None, plan: Plan, run: RunContext, hub: Hub) -> Publication | None:
    if target is None or request.force:
        return None
    return find_existing(plan.fingerprint, target, hub, run.emit, request.publish)


def _planned(request: Request, run: RunContext, hub: Hub) -> tuple[Sources, Plan]:
    sources = pin(request, hub, run.emit)
    if sources.adapter.repo is None and run.event.tag:
        # An adapter in the GitHub repo itself: the tag that was pushed there is the adapter's tag.
        sources = replace(sources, adapter=replace(sources.adapter, tags=(run.event.tag,)))
    return sources, planned(sources, request, run.store.work, hub)


def _with(request: Request, adapters: Sequence[Ref]) -> Request:
    first, *more = adapters
    return replace(request, adapter=first, more=tuple(more))


def _require_reach(job: MergeJob, store: StateStore) -> None:
    reason = store.state.reach.get(job.target or "")
    if reason is not None:
        raise ReportedFailure(reason.exit_code, reason.sentences)


# --- merge --------------------------------------------------------------------------------------------------------


def merge(run: RunContext) -> None:
    """Merge and prove what was fetched, from the cache alone. Raises NotVerified; nothing is published then."""
    store = run.store
    hub = ReplayHub(store.memory)
    for index, job in enumerate(_jobs(run)):
        if job.status:
            continue
        store.update(index)
        outcome = _merge(run.inputs.requests[index], job, run, hub)
        assert outcome.folder is not None
        store.update(index, folder=str(outcome.folder), verified=outcome.status == "merged")
        store.save_report(job, (outcome.folder / NAME).read_bytes())
        if outcome.status == "not-verified":
            store.update(index, status="not-verified")
            raise not_verified(outcome)
        if job.target is None:
            store.update(index, status="dry-run")


def _merge(request: Request, job: MergeJob, run: RunContext, hub: Hub) -> Outcome:
    pairs = zip(adapters_of(request), job.revisions, strict=True)
    request = _with(request, [ref if ref.repo is None else replace(ref, revision=revision) for ref, revision in pairs])
    sources, plan = _planned(request, run, hub)
    if plan.fingerprint != job.fingerprint:
        raise Refused(
            f"{job.adapter} or its base changed after it was fetched.", remedy="Run the workflow again from its start."
        )
    _require_no_refusal(plan)
    for note in plan.notes:
        if note.startswith("device:"):  # a GPU that only this phase was handed
            run.emit(Note(text=note))
    output = run.store.merged(job)
    for left in (output, output.with_name(f"{output.name}.unverified")):
        shutil.rmtree(left, ignore_errors=True)  # an earlier try's
    reports = run.store.report_dir(job)
    reports.mkdir(parents=True, exist_ok=True)
    request = replace(
        request,
        output=output,
        attestation=reports / ATTESTATION,
        report=reports / PAGE if run.inputs.asks else None,
        publish_report="repo" in run.inputs.report,
    )
    return make(request, sources, plan, hub, run.emit)


# --- publish ------------------------------------------------------------------------------------------------------


def publish(run: RunContext) -> None:
    """Publish every proven merge and carry the tags. No model is loaded."""
    store = run.store
    for index, job in enumerate(_jobs(run)):
        store.update(index)
        if job.target is None or job.status == "dry-run":
            continue
        done = as_publisher(job.target, run.tokens, store.memory, partial(_publish, index, job, run))
        status = "unchanged" if done.status == "unchanged" else "published"
        store.update(index, status=status, publication=done)


def _publish_settings(job: MergeJob, request: Request) -> PublishSettings:
    repos = (("base", job.base.repo), *(("adapter", source.repo) for source in job.sources))
    return PublishSettings(fingerprint=job.fingerprint, repos=repos, private=request.private, tag=job.tag)


def _publish(index: int, job: MergeJob, run: RunContext, hub: Hub) -> Publication:
    hub.tell(run.emit)
    if job.publication is not None:
        settings = _publish_settings(job, run.inputs.requests[index])
        done = apply_settings(job.publication, settings, hub, run.emit)
        _fetch_report(run.store, job, done, hub)
        return done
    if job.folder is None:
        raise Usage("There is no merged folder to publish.", remedy="Run the merge phase first.")
    done = publish_folder(Path(job.folder), run.inputs.requests[index], hub, run.emit)
    shutil.rmtree(job.folder)  # it is on the Hub now
    return done


def _fetch_report(store: StateStore, job: MergeJob, done: Publication, hub: Hub) -> None:
    """The report of the merge that the target holds already, so that an unchanged run shows its evidence too."""
    if done.repo is None or done.revision is None or store.document(job) is not None:
        return
    text = hub.target_text(done.repo, done.revision, NAME)
    if text is not None:
        store.save_report(job, text)


def _jobs(run: RunContext) -> tuple[MergeJob, ...]:
    """The jobs that fetch left. Raises Usage where this phase was asked for other adapters than that one."""
    jobs = run.store.state.jobs
    if [job.adapter for job in jobs] != [called(request) for request in run.inputs.requests]:
        raise Usage(
            "This phase was asked for other adapters than the fetch phase.", remedy="Give all phases the same inputs."
        )
    return jobs


def _target(request: Request, run: RunContext) -> str | None:
    return None if request.publish == "none" or run.event.plan_only else target_of(request)


PHASES: dict[str, Callable[[RunContext], None]] = {
    "preflight": preflight,
    "fetch": fetch,
    "merge": merge,
    "publish": publish,
}
