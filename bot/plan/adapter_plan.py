"""What an adapter changes in a base: its method, its claims, and what config.json must say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bot.adapters import method_rules
from bot.adapters.lora import read_changes
from bot.adapters.lora_config import LoraSettings, read_settings, stated_class
from bot.assets import read_json
from bot.checkpoint.locations import Names
from bot.plan import layer_replication, new_heads, tying
from bot.plan.claim_changes import claim
from bot.plan.claims import KeyClaims
from bot.plan.outputs import Decisions
from bot.plan.peft_methods import claim_layers
from bot.plan.shared_blocks import SharedBlocks
from bot.plan.targets import Targets
from bot.records import Json, Options, Refusal, Source, Stored


@dataclass(kw_only=True)
class AdapterPlan:
    """What the planning of one adapter comes to, before it is laid out."""

    method: str
    engine: str
    claims: KeyClaims
    decisions: Decisions
    edits: dict[str, Any] = field(default_factory=dict)  # of config.json, by dotted path
    used: set[str] = field(default_factory=set)  # adapter keys that PEFT's own layers take
    refusals: list[Refusal] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def plan_adapter(
    adapter: Source, stored: Mapping[str, Stored], config: Json, wanted: str | None, options: Options
) -> AdapterPlan:
    adapter_config = read_json(adapter, "adapter_config.json")
    method, refusals = method_rules.find_method(adapter_config)
    engine = method_rules.engine_for(adapter_config) if method else None
    name = method.name if method else str(adapter_config.get("peft_type"))
    if engine is None or any(refusal.code == "unknown-peft-type" for refusal in refusals):
        # A method that nobody merges: its one refusal stands for every adapter tensor.
        return AdapterPlan(
            method=name, engine="none", claims=KeyClaims(), decisions=Decisions(wanted=wanted), refusals=refusals
        )
    if options.engine not in ("auto", engine):
        reason = f"{name} is merged by the {engine} engine, not by {options.engine}."
        remedy = "Leave --engine at auto."
        refusals.append(Refusal(code="engine", reason=reason, remedy=remedy))
    tensors = [tensor for header in adapter.headers for tensor in header.tensors]
    if engine == "streaming":
        return _plan_streaming(name, tensors, adapter_config, stored, config, wanted, refusals)
    names = Names(stored, config)
    layers = claim_layers(adapter_config, tensors, names, stored)
    return AdapterPlan(
        method=name,
        engine=engine,
        claims=layers.claims,
        decisions=Decisions(wanted=wanted, peft=layers.layers, untied=layers.untied),
        edits=tying.edits(config) if layers.untied else {},
        used=layers.used,
        refusals=[*refusals, *layers.refusals, *layers.claims.refusals()],
        notes=(*method_rules.notes_for(adapter_config), *((tying.UNTIED,) if layers.untied else ())),
    )


def _plan_streaming(
    name: str,
    tensors: list[Stored],
    adapter_config: Json,
    stored: Mapping[str, Stored],
    config: Json,
    wanted: str | None,
    refusals: list[Refusal],
) -> AdapterPlan:
    """The LoRA family and trained tokens: everything in the checkpoint's own names."""
    settings, unread = read_settings(adapter_config)
    changes = read_changes(tensors, settings)
    copies, misplaced = layer_replication.find_replicas(settings.replication, config, stored)
    blocks = SharedBlocks.of(stored, config, replicated=bool(settings.replication))
    every = blocks.with_own(stored)
    names = Names(every, config, stated_class(adapter_config))
    claims = claim(changes, Targets(settings, names, every, copies, blocks))
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
        per_depth=blocks.to_write(claims, untie),
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


def _idle(claims: KeyClaims) -> list[str]:
    """A word on modules that the model never calls."""
    if not claims.idle:
        return []
    return [
        f"{len(claims.idle)} modules of the adapter are k or v of layers that share those of another layer, and are never "
        f"called, e.g. {claims.idle[0][1]}: left out, once their B is seen to be zero."
    ]


def _swapped(claims: KeyClaims, settings: LoraSettings) -> list[str]:
    """A word on stacked experts that were saved in another order than today's PEFT reads."""
    if not claims.swapped:
        return []
    version = f"peft_version {settings.version}" if settings.version else "no peft_version"
    return [
        f"{len(claims.swapped)} modules of stacked experts have their sides in the order of PEFT before 0.19.1 ({version})."
    ]


def _vocabulary(claims: KeyClaims, names: Names, stored: Mapping[str, Stored], config: Json) -> dict[str, Any]:
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
    claims: KeyClaims, adapter_config: Json, config: Json, stored: Mapping[str, Stored]
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
