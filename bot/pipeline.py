"""The sentence: pull, plan, merge, prove, publish. Each stage is one call; nothing is decided twice.

Request → pull → Sources → plan → Plan → merge → Merged → verify → Report → card → publish → Publication → Outcome
"""

from __future__ import annotations

import hashlib
import importlib
import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Literal

from bot import trained_base
from bot.adapters.combine import Predicted, notation
from bot.adapters.combine.prediction import combined_in, plan_for_all_adapters, predict_combined, with_combined_adapter
from bot.card import preview, render
from bot.errors import AdapterMergeError, Damaged, Usage
from bot.events import Emit, Note, Stage, TextBlock, beating
from bot.input_files import holding, unchanging
from bot.machine import free_beside, look
from bot.merge import left_behind, locked_partial_dir, merge
from bot.metadata.licenses import require
from bot.options import deciding
from bot.plan import is_change, make_plan, pin_of
from bot.plan.card_notes import with_notes_on_cards
from bot.plan_text import merged_terms, plan_table
from bot.publish import (
    ExpectedResult,
    PublishSettings,
    apply_settings,
    find_existing,
    publish,
    require_not_an_input,
    require_reach,
    warn_of_reach,
)
from bot.pull import base_of, dropping, fetch, original_at_hand, pin, require_headers, with_sound_files
from bot.records import (
    RECIPE,
    Json,
    Local,
    Merged,
    Outcome,
    Plan,
    Publication,
    Ref,
    Report,
    Request,
    Source,
    Sources,
)
from bot.special_tokens import is_token
from bot.verify import Subject, table, verify, write

if TYPE_CHECKING:
    from bot.hub import Hub


def run(request: Request, hub: Hub, emit: Emit, bases: dict[Ref, Source] | None = None) -> Outcome:
    """All of it. What the plan forbids and what fails its proof are outcomes; what the world breaks is raised.

    `bases`: those that an earlier run pinned, see `bot.pull.pin`. What is damaged in the Hub's cache is fetched once more.
    """
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
    if plan.refusals:
        require_headers(sources, hub)
        return Outcome(status="refused", plan=plan)
    target = None if request.publish == "none" else target_of(request)
    if target:
        require_not_an_input(target, inputs_and_base_asked_for(request, sources, plan), hub)
    if target and not request.force and (known := find_existing(plan.fingerprint, target, hub, emit, request.publish)):
        _drop_scratch(request, plan, hub)
        if not request.dry_run:
            known = apply_settings(known, _publish_settings(request, sources, plan), hub, emit)
        return Outcome(status="unchanged", plan=plan, publication=known)
    if target is None:
        return Outcome(status="dry-run", plan=plan) if request.dry_run else make(request, sources, plan, hub, emit)
    card = preview(sources.base, sources.adapter, sources.adapters, request.license, hub.address)
    result = ExpectedResult.of(sources, card, request.private, emit)
    if request.dry_run:
        warn_of_reach(target, request.publish, hub, emit, result)
        return Outcome(status="dry-run", plan=plan)
    require_reach(target, request.publish, hub, result)
    inputs = _ready(request, sources, plan, hub, emit)
    # The place stays ours until the merge is published: another run would put its own folder there meanwhile.
    with locked_partial_dir(_output(request, plan, hub), plan.fingerprint) as partial:
        made = _build(partial, inputs, request, sources, plan, hub, emit)
        if made.status == "not-verified":
            return made
        published = _published(made, partial, request, hub, emit)
    if isinstance(published, AdapterMergeError):
        raise published
    status: Literal["published", "unchanged"] = "unchanged" if published.status == "unchanged" else "published"
    return replace(made, status=status, publication=published, folder=request.output)


def make(request: Request, sources: Sources, plan: Plan, hub: Hub, emit: Emit) -> Outcome:
    """Fetch, merge, prove, and give the folder its name: `merged`, or `not-verified`. Publishes nothing."""
    inputs = _ready(request, sources, plan, hub, emit)
    with locked_partial_dir(_output(request, plan, hub), plan.fingerprint) as partial:
        return _build(partial, inputs, request, sources, plan, hub, emit)


def _ready(request: Request, sources: Sources, plan: Plan, hub: Hub, emit: Emit) -> Local:
    """The inputs on this disk. Raises Usage first where the output would take the place of something else."""
    _refuse_to_overwrite(_output(request, plan, hub), request)
    return fetch(sources, plan, hub, emit)


def _build(
    partial: Path, inputs: Local, request: Request, sources: Sources, plan: Plan, hub: Hub, emit: Emit
) -> Outcome:
    """Merge into `partial`, prove it, and give it its name."""
    together = predict_combined(sources, request.combination)
    # What was proven was made of what was planned for.
    with dropping(hub), one_adapter(together, inputs, hub, emit) as inputs, unchanging(inputs.files):
        merged = merge(replace(plan, forced=request.force), inputs, partial, emit)
        report = prove(merged, inputs, sources, request, hub, emit)
    card = render(
        report.document,
        target=None if request.publish == "none" else target_of(request),
        base=sources.base,
        adapter=with_combined_adapter(sources, together).adapter,
        adapters=sources.adapters,
        license=request.license,
        assets=plan.assets,
        hub=hub.address,
    )
    (partial / "README.md").write_text(card, encoding="utf-8")
    folder = _finish(partial, _output(request, plan, hub), report, request)
    status: Literal["merged", "not-verified"] = "merged" if report.verdict == "verified" else "not-verified"
    return Outcome(status=status, plan=plan, report=report, folder=folder)


def _published(made: Outcome, partial: Path, request: Request, hub: Hub, emit: Emit) -> Publication | AdapterMergeError:
    """What came of publishing. A folder of our own choosing is removed, or left for the next try to go on from."""
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
    given = [held for held in inputs.files if held.role == "adapter"]
    with ExitStack() as stack:
        with holding(given) as keeper, beating(emit, "combine", "Combining"):
            keeper.follow(held.path for held in given)
            adapter = stack.enter_context(combined_in(hub.scratch, together, inputs.adapters))
        # They need not be hashed again, only stay the same.
        hashed = tuple(replace(held, sha256=None, oid=None) if held in given else held for held in inputs.files)
        yield replace(inputs, adapter=adapter, files=hashed)


def plan_merge(request: Request, hub: Hub, emit: Emit, bases: dict[Ref, Source] | None = None) -> tuple[Sources, Plan]:
    """Pin all inputs and plan their merge; no weight is downloaded."""
    notation.with_defaults(
        request.combination, 1 + len(request.more)
    )  # what cannot be meant is said before the first look
    require(request.license)
    emit(Stage(name="pull", title=f"Reading base and adapter{'s' if request.more else ''}"))
    hub.tell(emit)
    with beating(emit, "pull", "Reading") as told:
        sources = pin(request, hub, told, bases)
    plan = planned(sources, request, request.output or hub.scratch, hub)
    emit(Stage(name="plan", title="The plan"))
    emit(TextBlock(text=plan_table(plan)))
    for warning in plan.warnings:
        emit(Note(text=warning, level="warning"))
    return sources, plan


def planned(sources: Sources, request: Request, output: Path, hub: Hub) -> Plan:
    """The plan for pinned inputs; where there are several adapters, for the combination of them."""
    machine = replace(look(output), cache_free=free_beside(hub.cache_dir, output))
    if request.output:  # what an earlier, killed run left there is gone on with, or removed
        machine = replace(machine, disk_free=machine.disk_free + left_behind(request.output))
    together = predict_combined(sources, request.combination)
    plan = make_plan(with_combined_adapter(sources, together), request.options, machine, sources.adapters)
    if together is not None:
        plan = plan_for_all_adapters(plan, together, request.combination, map(pin_of, sources.adapters), machine)
    return with_notes_on_cards(plan, sources, request.license)


def prove(merged: Merged, inputs: Local, sources: Sources, request: Request, hub: Hub, emit: Emit) -> Report:
    """Verify a merge of ours and put its verification.json into the folder."""
    plan = merged.plan
    target = None if request.publish == "none" else target_of(request)
    subject = Subject(
        folder=merged.folder,
        base=inputs.base,
        adapter=inputs.adapter,
        inputs=named_inputs(plan),
        recorded=None,
        merge=facts(merged, sources, target),
        dtype="auto" if plan.options.dtype == "auto" else plan.dtype,
        ours=True,
        level=plan.level,
        required=plan.options.verify == "full",
        not_run=plan.not_run,
        trust_remote_code=plan.options.trust_remote_code,
        hashed=merged.sha256,
        base_weights=plan.base_weights,
        quantization=dict(plan.options.quantization),
        quantize=plan.options.quantize,
        clamps=plan.options.clamps,
        original=original_at_hand(sources.base, hub),
        eval_text=request.eval_text,
        force=request.force,
        trained=tuple(filter(None, map(trained_base.in_four_bits, sources.adapters))),
        adapters=inputs.adapters if plan.combination else (),
        combination=plan.combination,
    )
    report = verify(subject, emit)
    emit(TextBlock(text=table(report)))
    write(report, merged.folder)
    return report


def named_inputs(plan: Plan) -> Json:
    """The inputs as verification.json names them: the adapter, or all of several and how they are combined."""
    if plan.combination is None:
        return {"base": plan.base, "adapter": plan.adapter, "recipe": RECIPE}
    given = {"adapters": list(plan.adapters), "combination": plan.combination}
    return {"base": plan.base, **given, "recipe": RECIPE}


def inputs_and_base_asked_for(request: Request, sources: Sources, plan: Plan) -> Json:
    """The inputs as they were pinned, and the base as it was named, which is another where its 16-bit parent is merged into."""
    asked = (request.base or base_of(sources.adapter)).repo
    inputs = named_inputs(plan)
    return {**inputs, "base": [inputs["base"], {"repo": asked}]}


def facts(merged: Merged, sources: Sources, target: str | None) -> Json:
    """What verification.json says of how the merge was made. No path, and nothing that another run would not repeat."""
    plan = merged.plan
    terms = merged_terms(plan)
    return {
        "method": plan.method,
        "engine": plan.engine,
        "dtype": plan.dtype,
        "fingerprint": plan.fingerprint,
        "options": deciding(plan.options)
        | ({} if plan.options.base_weights == "auto" else {"base_weights": plan.base_weights}),
        "tensors": dict(plan.tensors),
        "base_weights": plan.base_weights_why,
        "ranks": sorted({term.rank for term in terms}),
        "scalings": sorted({term.scaling for term in terms}),
        "tokens": {
            change.path: [change.before, change.after] for change in plan.config_changes if is_token(change.path)
        },
        "parameters": {"merged": sum(math.prod(op.target.shape) for op in plan.ops if is_change(op))},
        "tag": _tag(sources),
        "target": target,
    }


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
    return f"{request.adapter.as_repo}-merged" + ("" if form == "none" else f"-{form}")


def _import_ahead(request: Request) -> None:
    """Import the engine while the inputs are read and hashed, and torch where the proof needs it: seconds less to wait."""
    names = ["bot.engines.streaming", *([] if request.options.verify == "files" else ["bot.checks.elementwise.sweep"])]
    Thread(target=lambda: [importlib.import_module(name) for name in names]).start()


def _tag(sources: Sources) -> str | None:
    """The adapter's tag to carry over: the one asked for, else one that points at the same commit."""
    if sources.more:
        return None  # no one adapter's version is the version of them together
    tags = sources.adapter.tags
    return sources.adapter.revision if sources.adapter.revision in tags else next(iter(tags), None)


def _publish_settings(request: Request, sources: Sources, plan: Plan) -> PublishSettings:
    """What is asked for beside the merge itself."""
    inputs = named_inputs(plan)
    return PublishSettings(fingerprint=plan.fingerprint, inputs=inputs, private=request.private, tag=_tag(sources))


def _output(request: Request, plan: Plan, hub: Hub) -> Path:
    """The folder asked for, or one of our own for one merge to one target: two targets of the same merge never share it."""
    if request.output is not None:
        return request.output
    target = None if request.publish == "none" else target_of(request)
    name = hashlib.sha256(f"{plan.fingerprint} {target}".encode()).hexdigest()[:16]
    return hub.scratch / "merged" / name


def _drop_scratch(request: Request, plan: Plan, hub: Hub) -> None:
    """What a run that was killed after its commit left in a folder of our own; not where another run is at work."""
    output = _output(replace(request, output=None), plan, hub)
    if output.is_dir() or left_behind(output):
        with suppress(Usage), locked_partial_dir(output, plan.fingerprint) as partial:
            shutil.rmtree(output, ignore_errors=True)
            shutil.rmtree(partial, ignore_errors=True)


def _refuse_to_overwrite(output: Path, request: Request) -> None:
    """Raise Usage where the output would take the place of something that is not an earlier merge of ours."""
    if request.output is None:
        return  # a folder of our own choosing is an earlier run's, cut off between its merge and its upload
    inputs = [
        ref.folder
        for ref in (request.adapter, *request.more, request.base)
        if ref is not None and ref.folder is not None
    ]
    precious = [folder.resolve() for folder in (Path.cwd(), Path.home(), *inputs)]
    here = output.resolve()
    if any(here == folder or here in folder.parents for folder in precious):
        raise Usage(f"{output} is, or holds, a folder that must stay.", remedy="Name a new folder with --output.")
    if not output.exists():
        return
    if not request.force:
        raise Usage(f"{output} exists.", remedy="Name another --output, or pass --force to replace it.")
    if not (output / "verification.json").is_file():
        raise Usage(
            f"{output} exists and is not a merge of ours.",
            remedy="Name another --output; --force replaces merges only.",
        )


def _finish(partial: Path, output: Path, report: Report, request: Request) -> Path:
    """Give the folder its name: the one asked for only when it is proven."""
    if report.verdict != "verified":
        output = output.with_name(output.name + ".unverified")
        shutil.rmtree(output, ignore_errors=True)
    else:
        _refuse_to_overwrite(output, request)  # hours may have passed
    if not output.exists():
        return partial.rename(output)
    aside = output.with_name(f".{output.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    output.rename(aside)
    partial.rename(output)
    shutil.rmtree(aside)
    return output


def publish_made(folder: Path, document: Json, request: Request, hub: Hub, emit: Emit) -> Publication:
    """Publish a proven folder to the request's target. `document`: its verification.json."""
    return publish(
        folder,
        document,
        target=target_of(request),
        how=request.publish,
        private=request.private,
        force=request.force,
        tag=(document.get("merge") or {}).get("tag"),
        hub=hub,
        emit=emit,
        dry_run=request.dry_run,
    )
