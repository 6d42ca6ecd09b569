"""The sentence: pull, plan, merge, prove, publish. Each stage is one call; nothing is decided twice.

Request → pull → Sources → plan → Plan → merge → Merged → verify → Report → card → publish → Publication → Outcome
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from threading import Thread
from typing import Literal

from bot.assets import files_to_prove, read_json
from bot.budget import choose_level, verify_memory
from bot.card import render, retarget
from bot.errors import AdapterMergeError, MachineTooSmall, NotFound, NotVerified, Refused, Usage
from bot.events import Emit, Show, Stage
from bot.hub import Hub
from bot.machine import look
from bot.merge import left_behind, merge, place
from bot.plan import make_plan, pin_of
from bot.publish import already, carry_tag, publish, require_reach
from bot.pull import fetch, pin
from bot.records import (
    RECIPE,
    AddDelta,
    Cast,
    Copy,
    Json,
    Local,
    Merged,
    Options,
    Outcome,
    Plan,
    Publication,
    Ref,
    Report,
    Request,
    Role,
    Sources,
)
from bot.show import plan_table
from bot.verify import Subject, table, verify, write


def run(request: Request, hub: Hub, emit: Emit) -> Outcome:
    """All of it. What the plan forbids and what fails its proof are outcomes; what the world breaks is raised."""
    if not request.dry_run:
        _import_ahead()
    sources, plan = plan_merge(request, hub, emit)
    if plan.refusals:
        return Outcome(status="refused", plan=plan)
    target = None if request.publish == "none" else target_of(request)
    if target and not request.force and (known := already(plan.fingerprint, target=target, hub=hub)):
        published = known if request.dry_run else carry_tag(known, _tag(sources), hub, emit)
        return Outcome(status="unchanged", plan=plan, publication=published)
    if request.dry_run:
        return Outcome(status="dry-run", plan=plan)
    if target:
        require_reach(target, request.publish, hub)
    made = make(request, sources, plan, hub, emit)
    if made.status == "not-verified" or target is None:
        return made
    assert made.folder is not None
    assert made.report is not None
    try:
        publication = _publish(made.folder, made.report.document, request, hub, emit)
    except AdapterMergeError:
        if request.output is None:
            with place(made.folder, plan.fingerprint) as partial:
                made.folder.rename(partial)  # the next try goes on from its finished shards
        raise
    if request.output is None:
        shutil.rmtree(made.folder)  # it is on the Hub now
    status: Literal["published", "unchanged"] = "unchanged" if publication.status == "unchanged" else "published"
    return replace(made, status=status, publication=publication, folder=request.output)


def make(request: Request, sources: Sources, plan: Plan, hub: Hub, emit: Emit) -> Outcome:
    """Fetch, merge, prove, and give the folder its name: `merged`, or `not-verified`. Publishes nothing."""
    target = None if request.publish == "none" else target_of(request)
    output = request.output or _scratch(hub, plan.fingerprint, target)
    _refuse_to_overwrite(output, request)
    inputs = fetch(sources, plan, hub, emit)
    with place(output, plan.fingerprint) as partial:
        report = prove(merge(plan, inputs, partial, emit), inputs, sources, target, emit)
        card = render(
            report.document, target=target, base=sources.base, adapter=sources.adapter, license=request.license
        )
        (partial / "README.md").write_text(card, encoding="utf-8")
        folder = _finish(partial, output, report, request)
    status: Literal["merged", "not-verified"] = "merged" if report.verdict == "verified" else "not-verified"
    return Outcome(status=status, plan=plan, report=report, folder=folder)


def verify_again(merged: Ref, base: Ref | None, adapter: Ref | None, options: Options, hub: Hub, emit: Emit) -> Report:
    """Re-prove a merged repo or folder. Inputs that are not given are those that its verification.json names."""
    emit(Stage(name="pull", title="Reading the merged model and its inputs"))
    folder = whole_folder(merged, hub)
    recorded = read_report(folder)
    inputs = (recorded or {}).get("inputs") or {}
    request = Request(
        adapter=adapter or _recorded_ref(inputs, "adapter"), base=base or _recorded_ref(inputs, "base"), options=options
    )
    sources = pin(request, hub, emit)
    local = fetch(sources, files_to_prove(sources), hub, emit)
    config = read_json(sources.base, "config.json")
    memory = verify_memory(tensor for header in sources.base.headers for tensor in header.tensors)
    level, not_run, refusals = choose_level(options, config, memory, look(folder))
    for refusal in refusals:
        kind = MachineTooSmall if refusal.exit_code == MachineTooSmall.exit_code else Refused
        raise kind(refusal.reason, remedy=refusal.remedy)
    facts = (recorded or {}).get("merge") or {}
    subject = Subject(
        folder=folder,
        base=local.base,
        adapter=local.adapter,
        inputs={"base": pin_of(sources.base), "adapter": pin_of(sources.adapter), "recipe": inputs.get("recipe")},
        recorded=recorded,
        merge=facts,
        dtype=(facts.get("options") or {}).get("dtype", options.dtype),
        ours="fingerprint" in facts,
        level=level,
        not_run=not_run,
        trust_remote_code=options.trust_remote_code,
    )
    return verify(subject, emit)


def plan_merge(request: Request, hub: Hub, emit: Emit) -> tuple[Sources, Plan]:
    """Pin both inputs and plan their merge; no weight is downloaded."""
    emit(Stage(name="pull", title="Reading base and adapter"))
    sources = pin(request, hub, emit)
    machine = look(request.output or hub.scratch)
    if request.output:  # what an earlier, killed run left there is gone on with, or removed
        machine = replace(machine, disk_free=machine.disk_free + left_behind(request.output))
    plan = make_plan(sources, request.options, machine)
    emit(Stage(name="plan", title="The plan"))
    emit(Show(text=plan_table(plan)))
    return sources, plan


def prove(merged: Merged, inputs: Local, sources: Sources, target: str | None, emit: Emit) -> Report:
    """Verify a merge of ours and put its verification.json into the folder."""
    plan = merged.plan
    subject = Subject(
        folder=merged.folder,
        base=inputs.base,
        adapter=inputs.adapter,
        inputs={"base": plan.base, "adapter": plan.adapter, "recipe": RECIPE},
        recorded=None,
        merge=facts(merged, sources, target),
        dtype="auto" if plan.options.dtype == "auto" else plan.dtype,
        ours=True,
        level=plan.level,
        not_run=plan.not_run,
        trust_remote_code=plan.options.trust_remote_code,
    )
    report = verify(subject, emit)
    emit(Show(text=table(report)))
    write(report, merged.folder)
    return report


def facts(merged: Merged, sources: Sources, target: str | None) -> Json:
    """What verification.json says of how the merge was made. No path, and nothing that another run would not repeat."""
    plan = merged.plan
    deltas = [op for op in plan.ops if isinstance(op, AddDelta)]
    kinds = Counter(type(op) for op in plan.ops)
    return {
        "method": plan.method,
        "engine": plan.engine,
        "dtype": plan.dtype,
        "fingerprint": plan.fingerprint,
        "options": {name: asdict(plan.options)[name] for name in ("dtype", "base_weights", "quantize")},
        "tensors": {"merged": kinds[AddDelta], "copied": kinds[Copy], "cast": kinds[Cast]},
        "ranks": sorted({op.rank for op in deltas}),
        "scalings": sorted({op.scaling for op in deltas}),
        "parameters": {"merged": sum(op.source.shape[0] * op.source.shape[1] for op in deltas)},
        "tag": _tag(sources),
        "target": target,
    }


def target_of(request: Request) -> str:
    """The repo to publish to: as asked, or `<adapter>-merged`. Raises Usage when there is no telling."""
    if request.target:
        return request.target
    if request.adapter.repo is None:
        raise Usage(
            "An adapter in a folder has no repo name to add -merged to.", remedy="Name the target with --to owner/name."
        )
    return f"{request.adapter.repo}-merged"


def _import_ahead() -> None:
    """Import the engine, and torch with it, while the inputs are read and hashed: a second less to wait."""
    Thread(target=importlib.import_module, args=("bot.engines.streaming",)).start()


def _tag(sources: Sources) -> str | None:
    """The adapter's tag to carry over: the one asked for, else one that points at the same commit."""
    tags = sources.adapter.tags
    return sources.adapter.revision if sources.adapter.revision in tags else next(iter(tags), None)


def _scratch(hub: Hub, fingerprint: str, target: str | None) -> Path:
    """A folder of our own for one merge to one target: two targets of the same merge never share it."""
    name = hashlib.sha256(f"{fingerprint} {target}".encode()).hexdigest()[:16]
    return hub.scratch / "merged" / name


def _refuse_to_overwrite(output: Path, request: Request) -> None:
    """Raise Usage where the output would take the place of something that is not an earlier merge of ours."""
    if request.output is None:
        return  # a folder of our own choosing is an earlier run's, cut off between its merge and its upload
    inputs = [ref.folder for ref in (request.adapter, request.base) if ref is not None and ref.folder is not None]
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


def publish_folder(folder: Path, request: Request, hub: Hub, emit: Emit) -> Publication:
    """Publish a folder that an earlier merge finished, with the report that lies in it, to the request's target."""
    document = read_report(folder)
    if document is None:
        raise NotVerified(
            f"{folder} has no verification.json.", remedy="Publish a folder that adapter-merge merge made."
        )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as parcel:
        # Links, and a card of its own: the folder stays as it is, for other targets too.
        for path in filter(Path.is_file, folder.rglob("*")):
            twin = Path(parcel) / path.relative_to(folder)
            twin.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, twin, follow_symlinks=False)
        _retarget(Path(parcel) / "README.md", document, target_of(request))
        return _publish(Path(parcel), document, request, hub, emit)


def _retarget(readme: Path, document: Json, target: str) -> None:
    """Let the card name its new repo. A folder without a card is refused by the publisher, with its reason."""
    if readme.exists():
        text = readme.read_text(encoding="utf-8")
        readme.unlink()
        made_for = (document.get("merge") or {}).get("target")
        readme.write_text(retarget(text, made_for, target), encoding="utf-8")


def _publish(folder: Path, document: Json, request: Request, hub: Hub, emit: Emit) -> Publication:
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


# --- for verify_again ---------------------------------------------------------------------------------------------


def read_report(folder: Path) -> Json | None:
    """The verification.json of a folder, None where there is none. Raises Refused when it cannot be read."""
    path = folder / "verification.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise Refused(
            "verification.json is not JSON.", remedy="Fetch the folder again, or remove that file."
        ) from error
    return found if isinstance(found, dict) else None


def _recorded_ref(inputs: Json, role: Role) -> Ref:
    pinned = inputs.get(role) or {}
    repo, sha = pinned.get("repo"), pinned.get("sha")
    if not isinstance(repo, str) or not isinstance(sha, str):
        raise Usage(f"No verification.json names a Hub repo as the {role}.", remedy=f"Name it with --{role}.")
    return Ref(text=f"{repo}@{sha}", repo=repo, revision=sha)


def whole_folder(ref: Ref, hub: Hub) -> Path:
    """A folder with every file of a repo or folder."""
    if ref.folder is not None:
        if not ref.folder.is_dir():
            raise NotFound(f"There is no folder {ref.text}.", remedy="Check the path.")
        return ref.folder
    assert ref.repo is not None
    pinned = hub.pin(ref.repo, ref.revision)
    return hub.download(ref.repo, pinned.sha, [entry.name for entry in pinned.files])
