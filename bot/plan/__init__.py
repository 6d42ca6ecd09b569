"""plan: from headers and configs alone, what a merge would do. Pure data; no weight is read, no torch is imported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bot import special_tokens, trained_base
from bot.assets import base_tokenizer_left_out, choose_assets, read_json, without_form
from bot.budget import by_layers, choose_level, disk_to_prove, machine_refusals, make_budget
from bot.checkpoint.shards import INDEX_NAME, OutputLayout, lay_out, torch_name
from bot.devices import choose_device, choose_proof_device, device_refusals
from bot.options import Options, deciding
from bot.plan import carry
from bot.plan.adapter_plan import AdapterPlan, plan_adapter
from bot.plan.base_weights import EffectiveBase, effective_base
from bot.plan.completeness import require_all_claimed
from bot.plan.disk import beside_weights, choose_disk
from bot.plan.input_refusals import base_refusals, code_refusals, with_new_rows
from bot.plan.new_heads import unsaved_modules
from bot.plan.outputs import Outputs, is_change, make_outputs
from bot.plan.quantize import Quantised, quantize
from bot.plan.refusal_texts import OTHER_BASE, SHOWN
from bot.plan.shared_blocks import quantize_refusals, written_per_depth
from bot.plan.tensor_counts import counts
from bot.records import (
    RECIPE,
    Asset,
    Budget,
    ConfigChange,
    Json,
    Level,
    Machine,
    Plan,
    ProofDevice,
    Refusal,
    Source,
    Sources,
)

BY_LAYERS = "No model fits into memory as a whole: the full verification runs each layer by layer, which takes longer."
ON_GPU_BY_LAYERS = (
    "No model fits into the GPU's memory as a whole: the full verification runs each there layer by layer."
)
HEAD_FIELDS = ("architectures", "tie_word_embeddings")  # of config.json: what they say decides which weight is the head


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """The merged model, whichever machine makes it. `options`: as asked, and what auto comes to. `refusals`: what in the
    inputs and options forbids it."""

    base: EffectiveBase
    options: Options
    adapter: AdapterPlan
    dtype: str
    outputs: Outputs
    quantised: Quantised
    layout: OutputLayout
    assets: tuple[Asset, ...]
    config_changes: tuple[ConfigChange, ...]
    refusals: tuple[Refusal, ...]
    shared_blocks: str | None
    notes: tuple[tuple[str, ...], tuple[str, ...]]  # before and after what the machine adds


def make_plan(
    sources: Sources, options: Options, machine: Machine, adapters: Sequence[Source] = (), *, publishing: bool = False
) -> Plan:
    """Plan a merge. Whatever forbids it is in `refusals`, all of it at once. `adapters`: those that `sources.adapter` is the
    combination of, where it is one; `publishing`: the result goes to the Hub, and need not stay on this disk."""
    model = _plan_model(sources, options)
    options = model.options
    layout, claims = model.layout, model.adapter.claims
    budget = make_budget(
        sources, layout.shards, layout.ops, model.assets, model.adapter.engine, model.outputs.ops, options.quantize
    )
    proof = _plan_proof(model, read_json(sources.base, "config.json"), budget, machine)
    device, device_notes = choose_device(options, layout.ops, machine)
    no_device = device_refusals(options, machine)
    lacking = machine_refusals(budget, machine)
    beside = beside_weights((sources.adapter, *adapters), layout.shards, budget)
    disk = choose_disk(sources, options, layout, model.adapter.engine, lacking, machine, beside, publishing=publishing)
    if disk.kind == "shards" and proof.level == "full":
        proof = replace(proof, level="weights", not_run=(("full", "needs the whole model on the disk"),), notes=())
    refusals = [*model.refusals, *proof.refusals, *disk.refusals, *no_device]
    if not any(is_change(op) for op in layout.ops) and not refusals:
        reason = "The adapter holds no weight that would change the base."
        refusals.append(Refusal(code="matches-nothing", reason=reason, remedy=OTHER_BASE))
    plan = Plan(
        base=pin_of(sources.base),
        adapter=pin_of(sources.adapter),
        options=options,
        method=model.adapter.method,
        engine=model.adapter.engine,
        base_weights=model.base.how,
        base_weights_why=model.base.why,
        device=device,
        proof_device=proof.device,
        dtype=model.dtype,
        level=proof.level,
        not_run=proof.not_run,
        ops=layout.ops,
        drops=model.outputs.drops,
        base_tensors=tuple(tensor for header in sources.base.headers for tensor in header.tensors),
        must_be_equal=tuple(claims.must_be_equal),
        idle=tuple(stored for stored, _ in claims.idle),
        shards=layout.shards,
        index=layout.index,
        index_name=layout.index_name,
        assets=model.assets,
        config_changes=model.config_changes,
        refusals=tuple(refusals),
        notes=(*model.notes[0], *dict.fromkeys((*device_notes, *proof.notes)), *model.notes[1]),
        budget=replace(budget, by_shard=disk.costs),
        disk=disk.kind,
        fingerprint=fingerprint(sources.base.sha, sources.adapter.pin, options, model.base.how),
        tensors=counts(model.outputs.ops, model.quantised.ops, model.outputs.drops, options.quantize),
        shared_blocks=model.shared_blocks,
        warnings=() if model.base.packed else trained_base.warnings(adapters or (sources.adapter,)),
    )
    require_all_claimed(plan, model.base.stored, sources.adapter.headers, model.adapter)
    return plan


@dataclass(frozen=True, kw_only=True)
class PlannedProof:
    """How far, and where, the merge is proven on this machine, and why no farther."""

    level: Level
    not_run: tuple[tuple[str, str], ...]
    device: ProofDevice
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]


def _plan_proof(model: PlannedModel, config: Json, budget: Budget, machine: Machine) -> PlannedProof:
    options, disk = model.options, disk_to_prove(budget, machine)
    remade = model.adapter.engine == "in-memory"  # of the base's weights, which then have to be there whole
    is_plain = not (budget.verify_disk or options.clamps or options.trust_remote_code or remade)
    layers = by_layers([op.target for op in model.layout.ops], config, is_plain=is_plain)
    device, notes = choose_proof_device(options, budget.verify_memory, machine, layers)
    level, not_run, refusals = choose_level(options, config, budget.verify_memory, machine, disk, device, layers)
    if model.base.unread and level == "full" and options.verify == "auto":
        level, not_run = "weights", (("full", carry.NOT_RUN),)
    if level == "full" and device.by_layers:
        notes = [*notes, ON_GPU_BY_LAYERS]
    elif level == "full" and device.kind == "cpu" and budget.verify_memory > machine.memory_available:
        notes = [*notes, BY_LAYERS]
    return PlannedProof(level=level, not_run=not_run, device=device, refusals=tuple(refusals), notes=tuple(notes))


def _plan_model(sources: Sources, options: Options) -> PlannedModel:
    base, adapter = sources.base, sources.adapter
    config = read_json(base, "config.json")
    effective = effective_base(base, options)
    main = torch_name(effective.main)
    wanted = None if options.dtype in ("auto", main) else options.dtype
    changes = plan_adapter(adapter, effective.stored, config, wanted, options)
    refusals = [*changes.refusals, *base_refusals(base, config), *effective.refusals]
    if not refusals:
        refusals += unsaved_modules(read_json(adapter, "adapter_config.json"), config, effective.stored, changes.claims)
    outputs = make_outputs(effective.headers, changes.claims, changes.decisions, effective.main)
    kept = carry.decide(effective, outputs, changes, options)
    effective, options = replace(effective, why=kept.why, edits=kept.edits), kept.options
    refusals += kept.refusals
    head = {name: changes.edits[name] for name in HEAD_FIELDS if name in changes.edits}
    quantised = quantize(outputs.ops, options, {**config, **head})
    layout = lay_out(base.headers, quantised.ops, read_json(base, INDEX_NAME) or None)
    more = written_per_depth(changes.decisions.per_depth, layout.ops)
    followed = special_tokens.follow(base, adapter, config)
    edits = {**effective.edits, **changes.edits, **quantised.edits, **followed.edits}
    assets, config_changes = choose_assets(base, adapter, wanted, edits, followed.asset)
    assets = assets if options.quantize == "same" else without_form(assets)
    refusals += quantize_refusals(changes.decisions.per_depth, options.quantize)
    refusals += [*quantised.refusals, *code_refusals(base, adapter, assets, options)]
    depths = (more.sentence,) if more else ()
    first = (*_notes(effective, wanted, outputs, options), *changes.notes, *depths, *kept.notes, *quantised.notes)
    return PlannedModel(
        base=effective,
        options=options,
        adapter=changes,
        dtype=wanted or main,
        outputs=outputs,
        quantised=quantised,
        layout=layout,
        assets=assets,
        config_changes=(*config_changes, *followed.changes),
        refusals=tuple(with_new_rows(refusals, adapter)),
        shared_blocks=more.sentence if more else None,
        notes=(first, (*followed.notes, *_left_out(base_tokenizer_left_out(base, adapter)))),
    )


def fingerprint(base_sha: str, adapter_sha: str, options: Options, how: str) -> str:
    """sha256 over the canonical JSON of all that decides the merged bytes. The same merge has the same fingerprint."""
    values = deciding(options) | {"base_weights": how}
    if how != "simulate-nf4":
        del values["quantization"]
    first = {name: values.pop(name) for name in ("dtype", "base_weights", "quantize")}
    # A later option is part of it only where it is not at its default: without it, a merge keeps the fingerprint it had.
    later = {name: value for name, value in values.items() if value != deciding(Options())[name]}
    decides = {"recipe": RECIPE, "base": base_sha, "adapter": adapter_sha, "options": first, **later}
    return hashlib.sha256(json.dumps(decides, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _notes(effective: EffectiveBase, wanted: str | None, outputs: Outputs, options: Options) -> tuple[str, ...]:
    notes = []
    if wanted:
        notes.append(f"Every {torch_name(effective.main)} tensor is rounded once to {wanted}.")
    if options.clamps:
        notes.append("Numbers that are too large for the dtype become its largest, as asked.")
    if outputs.drops:
        shown = ", ".join(drop.source.key for drop in outputs.drops[:SHOWN])
        more = f" and {len(outputs.drops) - SHOWN} more" if len(outputs.drops) > SHOWN else ""
        notes.append(f"Left out of the base ({outputs.drops[0].why}): {shown}{more}.")
    return (*notes, f"base-weights: {effective.why}.")


def _left_out(names: list[str]) -> tuple[str, ...]:
    if not names:
        return ()
    return (f"tokenizer: the adapter's; the base's {', '.join(names)} {'is' if len(names) == 1 else 'are'} left out.",)


def pin_of(source: Source) -> Json:
    """The source as verification.json names it: {repo, sha}, where an adapter lies deeper the folder, and the revision that was
    asked for, if one was."""
    pin: Json = {"repo": source.repo, "sha": source.sha}
    if source.subfolder:
        pin["subfolder"] = source.subfolder
    return {**pin, "revision": source.revision} if source.revision else pin


__all__ = ["fingerprint", "is_change", "make_plan", "pin_of"]
