"""plan: from headers and configs alone, what a merge would do. Pure data; no weight is read, no torch is imported."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bot import assets, special_tokens, trained_base
from bot.adapters import methods
from bot.adapters.lora import read_changes
from bot.adapters.lora_config import LoraSettings, read_settings
from bot.budget import choose_device, choose_level, disk_to_prove, machine_refusals, make_budget
from bot.checkpoint.locations import Names
from bot.checkpoint.shards import INDEX_NAME, lay_out, stored_targets, torch_name
from bot.plan import layer_replication, new_heads, tying
from bot.plan.base_weights import effective_base
from bot.plan.claims import AdapterClaims, claim
from bot.plan.outputs import Decisions, Outputs, make_outputs
from bot.plan.own_code import code_refusals
from bot.plan.peft_methods import claim_layers
from bot.plan.quantize import quantize
from bot.plan.refusal_texts import OTHER_BASE, SHOWN
from bot.plan.tensor_counts import counts
from bot.plan.unsaved_modules import unsaved_modules
from bot.records import (
    RECIPE,
    AddDelta,
    Cast,
    Copy,
    Header,
    Json,
    Machine,
    Op,
    Options,
    PeftMerge,
    Plan,
    Quantize,
    Refusal,
    Replace,
    SetRows,
    Source,
    Sources,
    Stored,
)

# The weights of a sentence-transformers module, e.g. 2_Dense, as a pickle: copied they would be code.
MODULE_WEIGHTS = re.compile(r"(\w+_)?\d+_\w+/[\w.-]+\.safetensors")
MODULE_PICKLE = re.compile(r"((?:\w+_)?\d+_\w+/)[^/]+\.(?:bin|pt|pth|ckpt|pkl)")
NEW_ROWS = "new_embeddings.safetensors"


@dataclass(kw_only=True)
class AdapterPlan:
    """What the planning of one adapter comes to, before it is laid out."""

    method: str
    engine: str
    claims: AdapterClaims
    decisions: Decisions
    edits: dict[str, Any] = field(default_factory=dict)  # of config.json, by dotted path
    used: set[str] = field(default_factory=set)  # adapter keys that PEFT's own layers take
    refusals: list[Refusal] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def make_plan(sources: Sources, options: Options, machine: Machine, given: Sequence[Source] = ()) -> Plan:
    """Plan a merge. Whatever forbids it is in `refusals`, all of it at once. `given`: where the adapter is the combination
    of several, those."""
    base, adapter = sources.base, sources.adapter
    config = assets.read_json(base, "config.json")
    effective = effective_base(base, options)
    stored, main = effective.stored, effective.main
    wanted = None if options.dtype in ("auto", torch_name(main)) else options.dtype
    adapter_plan = _plan_adapter(adapter, stored, config, wanted, options)
    refusals = [*adapter_plan.refusals, *_base_refusals(base, config), *effective.refusals]
    if not refusals:
        adapter_config = assets.read_json(adapter, "adapter_config.json")
        refusals += unsaved_modules(adapter_config, config, stored, adapter_plan.claims)
    outputs = make_outputs(effective.headers, adapter_plan.claims, adapter_plan.decisions, main)
    head: Json = {
        name: adapter_plan.edits[name]
        for name in ("architectures", "tie_word_embeddings")
        if name in adapter_plan.edits
    }
    quantised = quantize(outputs.ops, options, {**config, **head})
    refusals += quantised.refusals
    layout = lay_out(base.headers, quantised.ops, assets.read_json(base, INDEX_NAME) or None)
    followed = special_tokens.follow(base, adapter, config)
    edits = {**effective.edits, **adapter_plan.edits, **quantised.edits, **followed.edits}
    chosen, changes = assets.choose_assets(base, adapter, wanted, edits, followed.asset)
    refusals += code_refusals(base, adapter, chosen, options)
    budget = make_budget(sources, layout.shards, layout.ops, chosen, adapter_plan.engine)
    refusals = [_with_new_rows(refusal, adapter) for refusal in refusals] or _new_rows_alone(adapter)
    level, not_run, level_refusals = choose_level(
        options, config, budget.verify_memory, machine, disk_to_prove(budget, machine)
    )
    device, no_device, on_device = choose_device(options, layout.ops, machine)
    refusals += [*level_refusals, *machine_refusals(budget, machine), *no_device]
    if not any(is_change(op) for op in layout.ops) and not refusals:
        reason = "The adapter holds no weight that would change the base."
        refusals.append(Refusal(code="matches-nothing", reason=reason, remedy=OTHER_BASE))
    plan = Plan(
        base=pin_of(base),
        adapter=pin_of(adapter),
        options=options,
        method=adapter_plan.method,
        engine=adapter_plan.engine,
        base_weights=effective.how,
        device=device,
        dtype=wanted or torch_name(main),
        level=level,
        not_run=not_run,
        ops=layout.ops,
        drops=outputs.drops,
        base_tensors=tuple(tensor for header in base.headers for tensor in header.tensors),
        must_be_equal=tuple(adapter_plan.claims.must_be_equal),
        idle=tuple(stored for stored, _ in adapter_plan.claims.idle),
        shards=layout.shards,
        index=layout.index,
        index_name=layout.index_name,
        assets=chosen,
        config_changes=(*changes, *followed.changes),
        refusals=tuple(refusals),
        notes=(
            *_notes(main, wanted, outputs, options),
            f"base-weights: {effective.why}.",
            *adapter_plan.notes,
            *quantised.notes,
            *on_device,
            *followed.notes,
            *_left_out(assets.base_tokenizer_left_out(base, adapter)),
        ),
        budget=budget,
        fingerprint=fingerprint(base.sha, adapter.pin, options, effective.how),
        base_weights_why=effective.why,
        tensors=counts(outputs.ops, quantised.ops, outputs.drops, options.quantize),
        warnings=() if effective.packed else trained_base.warnings(given or (adapter,)),
    )
    _claim_everything(plan, stored, adapter.headers, adapter_plan)
    return plan


def is_change(op: Op) -> bool:
    """Whether an op gives a tensor values that are the adapter's doing."""
    made = op.make if isinstance(op, Quantize) else op
    return isinstance(made, AddDelta | Replace | SetRows | PeftMerge)


def fingerprint(base_sha: str, adapter_sha: str, options: Options, how: str) -> str:
    """sha256 over the canonical JSON of all that decides the merged bytes. The same merge has the same fingerprint."""
    decides = {
        "recipe": RECIPE,
        "base": base_sha,
        "adapter": adapter_sha,
        "options": {
            "dtype": options.dtype,
            "base_weights": how,
            "quantize": options.quantize,
        },
    }
    if options.overflow != "refuse":
        decides["overflow"] = options.overflow
    if options.quantization and how == "simulate-nf4":
        decides["quantization"] = dict(options.quantization)
    return hashlib.sha256(json.dumps(decides, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# --- what the adapter does ----------------------------------------------------------------------------------------


def _plan_adapter(
    adapter: Source, stored: Mapping[str, Stored], config: Json, wanted: str | None, options: Options
) -> AdapterPlan:
    adapter_config = assets.read_json(adapter, "adapter_config.json")
    method, refusals = methods.find_method(adapter_config)
    engine = methods.engine_for(adapter_config) if method else None
    name = method.name if method else str(adapter_config.get("peft_type"))
    if engine is None or any(refusal.code == "unknown-peft-type" for refusal in refusals):
        # A method that nobody merges: its one refusal stands for every adapter tensor.
        return AdapterPlan(
            method=name, engine="none", claims=AdapterClaims(), decisions=Decisions(wanted=wanted), refusals=refusals
        )
    if options.engine not in ("auto", engine):
        reason = f"{name} is merged by the {engine} engine, not by {options.engine}."
        remedy = "Leave --engine at auto."
        refusals.append(Refusal(code="engine", reason=reason, remedy=remedy))
    tensors = [tensor for header in adapter.headers for tensor in header.tensors]
    names = Names(stored, config)
    if engine == "streaming":
        return _plan_streaming(name, tensors, adapter_config, names, stored, config, wanted, refusals)
    layers = claim_layers(adapter_config, tensors, names, stored)
    return AdapterPlan(
        method=name,
        engine=engine,
        claims=layers.claims,
        decisions=Decisions(wanted=wanted, peft=layers.layers, untied=layers.untied),
        edits=tying.edits(config) if layers.untied else {},
        used=layers.used,
        refusals=[*refusals, *layers.refusals, *layers.claims.refusals()],
        notes=(*methods.notes_for(adapter_config), *((tying.UNTIED,) if layers.untied else ())),
    )


def _plan_streaming(
    name: str,
    tensors: list[Stored],
    adapter_config: Json,
    names: Names,
    stored: Mapping[str, Stored],
    config: Json,
    wanted: str | None,
    refusals: list[Refusal],
) -> AdapterPlan:
    """The LoRA family and trained tokens: everything in the checkpoint's own names."""
    settings, unread = read_settings(adapter_config)
    changes = read_changes(tensors, settings)
    copies, misplaced = layer_replication.find_replicas(settings.replication, config, stored)
    claims = claim(changes, settings, names, stored, copies)
    edits: dict[str, Any] = layer_replication.config_edits(copies, config)
    untie = tying.resolve_tying(claims, settings, names, stored)
    if untie:
        edits |= tying.edits(config)
    edits |= _vocabulary(claims, names, stored, config)
    dropped, head_edits = _new_head(claims, adapter_config, config, stored)
    tied = (names.embedding, names.head) if names.embedding and names.head and names.tied else None
    decisions = Decisions(
        wanted=wanted,
        replicas=copies,
        untied=tied if untie else None,
        follows=tied if tied and not untie and claims.changes(tied[0]) else None,
        dropped=dict.fromkeys(dropped, "part of a head that the merged model does not have"),
    )
    return AdapterPlan(
        method=settings.method if name == "LoRA" else name,
        engine="streaming",
        claims=claims,
        decisions=decisions,
        edits={**edits, **head_edits},
        refusals=[*refusals, *unread, *changes.refusals, *misplaced, *claims.refusals()],
        notes=(*((tying.UNTIED,) if untie else ()), *_swapped(claims, settings), *_idle(claims)),
    )


def _idle(claims: AdapterClaims) -> list[str]:
    """A word on modules that the model never calls."""
    if not claims.idle:
        return []
    return [
        f"{len(claims.idle)} modules of the adapter are k or v of layers that share those of another layer, and are never "
        f"called, e.g. {claims.idle[0][1]}: left out, once their B is seen to be zero."
    ]


def _swapped(claims: AdapterClaims, settings: LoraSettings) -> list[str]:
    """A word on stacked experts that were saved in another order than today's PEFT reads."""
    if not claims.swapped:
        return []
    version = f"peft_version {settings.version}" if settings.version else "no peft_version"
    return [
        f"{len(claims.swapped)} modules of stacked experts have their sides in the order of PEFT before 0.19.1 ({version})."
    ]


def _vocabulary(claims: AdapterClaims, names: Names, stored: Mapping[str, Stored], config: Json) -> dict[str, Any]:
    """`vocab_size`, wherever a config says the old one, when the adapter brought embeddings of another size."""
    embedding, head = names.embedding, names.head
    if embedding not in stored or embedding not in claims.values:
        return {}
    before, after = stored[embedding].shape[0], claims.values[embedding].values.shape[0]
    if before == after:
        return {}
    alone = head is not None and head in stored and not names.tied
    if alone and (head not in claims.values or claims.values[head].values.shape[0] != after):
        claims.refuse("vocabulary", f"{embedding} has {after} rows, {head} has {before}")
    nested = [(f"{name}.", inner) for name, inner in config.items() if isinstance(inner, dict)]
    return {
        f"{prefix}vocab_size": after for prefix, inner in [("", config), *nested] if inner.get("vocab_size") == before
    }


def _new_head(
    claims: AdapterClaims, adapter_config: Json, config: Json, stored: Mapping[str, Stored]
) -> tuple[list[str], dict[str, Any]]:
    """(base keys that are left out, config edits) of an adapter that brings a head of its own."""
    trained = [(whole.parameter, whole.values) for whole in claims.values.values() if whole.trained]
    resized = [
        (key, whole.values)
        for key, whole in claims.values.items()
        if whole.trained and key in stored and stored[key].shape != whole.values.shape
    ]
    if not claims.new:
        return [], new_heads.label_edits(resized)
    head_class = new_heads.new_class(adapter_config, config)
    if head_class is None:
        for key, whole in claims.new.items():
            claims.refuse("new-head", key, whole.values)
        claims.new.clear()
        return [], {}
    edits: dict[str, Any] = {"architectures": [head_class]}
    new = [(whole.parameter, whole.values) for whole in claims.new.values()]
    return new_heads.dropped_keys(config, head_class, stored, claims), edits | new_heads.label_edits([*new, *trained])


# --- refusals and notes -------------------------------------------------------------------------------------------


def _base_refusals(base: Source, config: Json) -> list[Refusal]:
    refusals = []
    if not config:
        reason = "The base has no config.json, so it is not a transformers model."
        refusals.append(Refusal(code="no-config", reason=reason, remedy="Name the base with --base owner/name."))
    names = {entry.name for entry in base.files}
    pickled = [
        name
        for name in names
        if (found := MODULE_PICKLE.fullmatch(name)) and f"{found[1]}model.safetensors" not in names
    ]
    if pickled and "modules.json" in names:
        reason = (
            f"The base has a module whose weights are a pickle ({min(pickled)}), which can run code when it is read."
        )
        remedy = "Save the base again with sentence-transformers 3 or later, or keep the adapter separate."
        refusals.append(Refusal(code="module-weights", reason=reason, remedy=remedy))
    unnamed = sorted(name for name in names if MODULE_WEIGHTS.fullmatch(name)) if "modules.json" not in names else []
    if unnamed:
        reason = f"The base has modules with weights of their own ({unnamed[0]}), and no modules.json that says what they are for."
        remedy = "Add the modules.json of sentence-transformers, or remove those folders from the base."
        refusals.append(Refusal(code="module-weights", reason=reason, remedy=remedy))
    seen: set[str] = set()
    for header in base.headers:
        for tensor in header.tensors:
            if tensor.key in seen:
                reason = f"The base stores {tensor.key} twice."
                refusals.append(Refusal(code="key-twice", reason=reason, remedy="Take another revision of the base."))
            seen.add(tensor.key)
    for key, file in (assets.read_json(base, INDEX_NAME).get("weight_map") or {}).items():
        if key not in seen:
            reason = f"The base's index promises {key} in {file}, which does not hold it."
            refusals.append(Refusal(code="index-lies", reason=reason, remedy="Take another revision of the base."))
            break
    return refusals


def _with_new_rows(refusal: Refusal, adapter: Source) -> Refusal:
    """Some trainers put the rows of new tokens into a file of their own; say so where they are missed."""
    there = any(entry.name == NEW_ROWS for entry in adapter.files)
    if refusal.code != "rows-not-saved" or not there:
        return refusal
    adapter_config = f"{refusal.reason} (Rows of new tokens lie in {NEW_ROWS}, which this version does not read.)"
    return replace(refusal, reason=adapter_config)


def _new_rows_alone(adapter: Source) -> list[Refusal]:
    """Rows of new tokens that nothing else asks for are trained all the same: they do not vanish without a word."""
    if not any(entry.name == NEW_ROWS for entry in adapter.files):
        return []
    reason = f"Rows of new tokens lie in {NEW_ROWS} beside the adapter, which this version does not read."
    remedy = "Save it again with save_embedding_layers=True, or keep the adapter separate."
    return [Refusal(code="rows-not-saved", reason=reason, remedy=remedy)]


def _notes(main: str, wanted: str | None, outputs: Outputs, options: Options) -> tuple[str, ...]:
    notes = []
    if wanted:
        notes.append(f"Every {torch_name(main)} tensor is rounded once to {wanted}.")
    if options.clamps:
        notes.append("Numbers that are too large for the dtype become its largest, as asked.")
    if outputs.drops:
        shown = ", ".join(drop.source.key for drop in outputs.drops[:SHOWN])
        more = f" and {len(outputs.drops) - SHOWN} more" if len(outputs.drops) > SHOWN else ""
        notes.append(f"Left out of the base ({outputs.drops[0].why}): {shown}{more}.")
    return tuple(notes)


def _left_out(names: list[str]) -> tuple[str, ...]:
    if not names:
        return ()
    return (f"tokenizer: the adapter's; the base's {', '.join(names)} {'is' if len(names) == 1 else 'are'} left out.",)


# --- every key is claimed -----------------------------------------------------------------------------------------


def _claim_everything(
    plan: Plan, stored: Mapping[str, Stored], adapter_headers: Iterable[Header], adapter_plan: AdapterPlan
) -> None:
    """Nothing vanishes: each base key is in an op or a drop; each adapter key is used, or the plan is refused."""
    if plan.refusals:
        return
    targets = [target.key for op in plan.ops for target in stored_targets(op)]
    assert len(targets) == len(set(targets)), "a tensor would be written twice"
    made = [op.make if isinstance(op, Quantize) else op for op in plan.ops]
    read = [op.source for op in made if op.source is not None]
    sources = {source.key for source in read if source.owner == 0}
    dropped = {drop.source.key for drop in plan.drops}
    under = {key for key in adapter_plan.claims.values if key in stored}  # an adapter's copy is W there
    stale = {pair[1] for pair in (adapter_plan.decisions.untied, adapter_plan.decisions.follows) if pair}
    kept = {key for key, tensor in stored.items() if tensor.packed and _parts(tensor) <= sources}
    unclaimed = stored.keys() - sources - dropped - under - stale - kept
    assert not unclaimed, f"base keys are unclaimed: {sorted(unclaimed)[:SHOWN]}"
    adapter_keys = {tensor.key for header in adapter_headers for tensor in header.tensors}
    unused = adapter_keys - adapter_plan.claims.used - adapter_plan.used
    assert not unused, f"adapter keys are unclaimed: {sorted(unused)[:SHOWN]}"


def _parts(tensor: Stored) -> set[str]:
    """The checkpoint's own keys of a weight that is stored packed."""
    return {part.key for _, part in tensor.packed.parts} if tensor.packed else set()


def pin_of(source: Source) -> Json:
    """The source as verification.json names it: {repo, sha}, where an adapter lies deeper the folder, and the revision that was
    asked for, if one was."""
    pin: dict[str, Any] = {"repo": source.repo, "sha": source.sha}
    if source.subfolder:
        pin["subfolder"] = source.subfolder
    return {**pin, "revision": source.revision} if source.revision else pin


__all__ = ["Cast", "Copy", "fingerprint", "is_change", "make_plan", "pin_of"]
