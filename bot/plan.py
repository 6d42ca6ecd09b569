"""plan: from headers and configs alone, what a merge would do. Pure data; no weight is read, no torch is imported."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bot import assets
from bot.budget import choose_level, machine_refusals, make_budget
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
    Plan,
    Refusal,
    Source,
    Sources,
    Stored,
)
from bot.weights import names
from bot.weights.adapter import LoraPair, LoraSettings, pair_up, read_settings, scaling_of
from bot.weights.shards import INDEX_NAME, lay_out, main_dtype, torch_name

DELTA_DTYPES = ("BF16", "F16", "F32")
ADAPTER_DTYPES = ("BF16", "F16", "F32", "F64")
# A sentence-transformers module, e.g. 2_Dense, beside the transformer.
MODULE_WEIGHTS = re.compile(r"\d+_\w+/(model\.safetensors|pytorch_model\.bin)")
SHOWN = 3  # how many keys a refusal names before it says how many more there are
OTHER_BASE = "Check that the base is the one the adapter was trained on, or name it with --base."


@dataclass(frozen=True, kw_only=True)
class Deltas:
    """The planned AddDelta ops before they have a target, by base key, and what stood in their way."""

    ops: dict[str, tuple[LoraPair, Stored, bool]]
    refusals: list[Refusal]


def make_plan(sources: Sources, options: Options, machine: Machine) -> Plan:
    """Plan a merge. Whatever forbids it is in `refusals`, all of it at once."""
    base, adapter = sources.base, sources.adapter
    config = assets.read_json(base, "config.json")
    settings, refusals = read_settings(assets.read_json(adapter, "adapter_config.json"))
    refusals += _base_refusals(base, config, options)
    pairs, unpaired = pair_up(tensor for header in adapter.headers for tensor in header.tensors)
    refusals += unpaired if settings else []
    stored = {tensor.key: tensor for header in base.headers for tensor in header.tensors}
    # A method that we do not merge: its one refusal stands for every adapter tensor.
    deltas = _find_targets(pairs, stored, settings, config) if settings else Deltas(ops={}, refusals=[])
    refusals += deltas.refusals
    main = main_dtype(base.headers)
    wanted = None if options.dtype in ("auto", torch_name(main)) else options.dtype
    layout = lay_out(base.headers, set(deltas.ops), wanted, assets.read_json(base, INDEX_NAME) or None)
    ops = tuple(_op(tensor, layout.targets[key], deltas, settings) for key, tensor in stored.items())
    chosen, changes = assets.choose_assets(base, adapter, wanted)
    budget = make_budget(sources, layout.shards, ops, chosen)
    level, not_run, level_refusals = choose_level(options, config, budget.verify_memory, machine)
    refusals += [*level_refusals, *machine_refusals(budget, machine)]
    if not any(isinstance(op, AddDelta) for op in ops) and not refusals:
        refusals.append(_matches_nothing())
    plan = Plan(
        base=pin_of(base),
        adapter=pin_of(adapter),
        options=options,
        method=settings.method if settings else str(assets.read_json(adapter, "adapter_config.json").get("peft_type")),
        engine="streaming",
        dtype=wanted or torch_name(main),
        level=level,
        not_run=not_run,
        ops=ops,
        shards=layout.shards,
        index=layout.index,
        index_name=layout.index_name,
        assets=chosen,
        config_changes=changes,
        refusals=tuple(refusals),
        notes=_notes(base, options, wanted),
        budget=budget,
        fingerprint=fingerprint(base.sha, adapter.sha, options),
    )
    _claim_everything(plan, stored, adapter.headers)
    return plan


def fingerprint(base_sha: str, adapter_sha: str, options: Options) -> str:
    """sha256 over the canonical JSON of all that decides the merged bytes. The same merge has the same fingerprint."""
    decides = {
        "recipe": RECIPE,
        "base": base_sha,
        "adapter": adapter_sha,
        "options": {
            "dtype": options.dtype,
            "base_weights": "stored" if options.base_weights == "auto" else options.base_weights,
            "quantize": options.quantize,
        },
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# --- what each base tensor becomes --------------------------------------------------------------------------------


def _find_targets(pairs: list[LoraPair], stored: dict[str, Stored], settings: LoraSettings, config: Json) -> Deltas:
    model_type = config.get("model_type")
    try:
        mapped = names.map_modules([pair.module for pair in pairs], stored, model_type)
    except names.Ambiguous as ambiguity:
        reason = f"The adapter's modules fit two places in the base, e.g. {ambiguity.args[0]} and {ambiguity.args[1]}."
        keys = tuple(key for pair in pairs for key in pair.keys)
        refusal = Refusal(code="ambiguous-names", reason=reason, remedy="Keep the adapter separate.", keys=keys)
        return Deltas(ops={}, refusals=[refusal])
    ops: dict[str, tuple[LoraPair, Stored, bool]] = {}
    refused: dict[str, list[tuple[LoraPair, str]]] = {}
    if pairs and not mapped.keys:
        refused["matches-nothing"] = [(pair, pair.module) for pair in pairs]
        return Deltas(ops={}, refusals=_pair_refusals(refused))
    square_transposed = _square_orientation(pairs, mapped.keys, stored, settings)
    for pair in pairs:
        code, detail = "not-in-base", pair.module
        if names.is_tied_head(pair.module, config):
            code = "tied-head"
        elif key := mapped.keys.get(pair.module):
            transposed = names.is_conv1d(pair.module, model_type) or square_transposed
            code, detail, turned = _fit(pair, stored[key], settings, transposed)
            if not code and key in ops:
                code, detail = "claimed-twice", key
            if not code:
                ops[key] = (pair, stored[key], turned)
                continue
        refused.setdefault(code, []).append((pair, detail))
    return Deltas(ops=ops, refusals=_pair_refusals(refused))


def _fit(pair: LoraPair, weight: Stored, settings: LoraSettings, transposed: bool) -> tuple[str, str, bool]:
    """(code, detail, transposed): whether a pair's shapes and dtypes fit a stored weight; an empty code says yes."""
    if len(pair.a.shape) != 2 or len(pair.b.shape) != 2:
        return "not-linear", f"{pair.module}: A is {_shape(pair.a)}, B is {_shape(pair.b)}", transposed
    (rank, inputs), (outputs, b_rank) = pair.a.shape, pair.b.shape
    wanted_rank, _, _ = scaling_of(settings, pair.module)
    if rank != b_rank or rank != wanted_rank:
        return "rank", f"{pair.module}: A has rank {rank}, B {b_rank}, the config says {wanted_rank}", transposed
    if not names.fits(weight, outputs, inputs, transposed=transposed):
        turned_fits = names.fits(weight, outputs, inputs, transposed=not transposed)
        if not (turned_fits and not transposed and settings.fan_in_fan_out):
            return "shape", f"{weight.key} is {_shape(weight)}, the adapter needs {outputs}×{inputs}", transposed
        transposed = True
    if weight.dtype not in DELTA_DTYPES:
        return "weight-dtype", f"{weight.key} is stored as {weight.dtype}", transposed
    if pair.a.dtype not in ADAPTER_DTYPES or pair.b.dtype not in ADAPTER_DTYPES:
        return "adapter-dtype", f"{pair.a.key} is stored as {pair.a.dtype}", transposed
    return "", "", transposed


def _square_orientation(
    pairs: list[LoraPair], keys: dict[str, str], stored: dict[str, Stored], settings: LoraSettings
) -> bool:
    """Whether square weights of a model that we do not know are in × out: told by its other, non-square weights."""
    if not settings.fan_in_fan_out:
        return False
    shaped = [(stored[keys[p.module]], p.b.shape[0], p.a.shape[-1]) for p in pairs if p.module in keys]
    oblong = [(weight, outputs, inputs) for weight, outputs, inputs in shaped if outputs != inputs]
    return bool(oblong) and all(names.fits(w, outputs, inputs, transposed=True) for w, outputs, inputs in oblong)


def _op(source: Stored, target: Stored, deltas: Deltas, settings: LoraSettings | None) -> Op:
    found = deltas.ops.get(source.key)
    if found is None or settings is None:
        return (
            Copy(source=source, target=target) if source.dtype == target.dtype else Cast(source=source, target=target)
        )
    pair, _, transposed = found
    rank, alpha, scaling = scaling_of(settings, pair.module)
    return AddDelta(
        source=source,
        target=target,
        a=pair.a,
        b=pair.b,
        rank=rank,
        alpha=alpha,
        scaling=scaling,
        transposed=transposed,
        module=pair.module,
    )


# --- refusals -----------------------------------------------------------------------------------------------------

PAIR_SENTENCES = {
    "not-in-base": ("{n} adapter modules are not in the base, e.g. {shown}.", OTHER_BASE),
    "matches-nothing": ("None of the adapter's {n} modules is in the base, e.g. {shown}.", OTHER_BASE),
    "shape": ("{n} adapter modules do not fit the base: {shown}.", OTHER_BASE),
    "rank": (
        "{n} adapter modules have another rank than adapter_config.json gives them: {shown}.",
        "Save the adapter again; with the wrong rank its scaling would be wrong.",
    ),
    "tied-head": (
        "The adapter changes the output head, which this base ties to its embedding: {shown}.",
        "Keep the adapter separate: this version does not untie weights.",
    ),
    "claimed-twice": ("{n} adapter modules lead to a tensor that another one already changes: {shown}.", OTHER_BASE),
    "not-linear": (
        "{n} adapter modules are not on Linear or Conv1D weights: {shown}.",
        "Keep the adapter separate: this version merges matrices only.",
    ),
    "weight-dtype": (
        "{n} base weights have a dtype that this version cannot add to: {shown}.",
        "Name the 16-bit or 32-bit base with --base.",
    ),
    "adapter-dtype": (
        "{n} adapter tensors have an unknown dtype: {shown}.",
        "Save the adapter in float32 or bfloat16.",
    ),
}


def _pair_refusals(refused: dict[str, list[tuple[LoraPair, str]]]) -> list[Refusal]:
    refusals = []
    for code, cases in refused.items():
        sentence, remedy = PAIR_SENTENCES[code]
        more = f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
        shown = "; ".join(detail for _, detail in cases[:SHOWN]) + more
        keys = tuple(key for pair, _ in cases for key in pair.keys)
        refusals.append(Refusal(code=code, reason=sentence.format(n=len(cases), shown=shown), remedy=remedy, keys=keys))
    return refusals


def _base_refusals(base: Source, config: Json, options: Options) -> list[Refusal]:
    refusals = []
    if not config:
        reason = "The base has no config.json, so it is not a transformers model."
        refusals.append(Refusal(code="no-config", reason=reason, remedy="Name the base with --base owner/name."))
    own = [entry.name for entry in base.files if MODULE_WEIGHTS.fullmatch(entry.name)]
    if own:
        reason = f"The base has modules with weights of their own ({own[0]}), which this version does not carry over."
        refusals.append(Refusal(code="module-weights", reason=reason, remedy="Keep the adapter separate."))
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "an unnamed method") if isinstance(quantization, dict) else "?"
        parent = base.card.get("base_model")
        named = f"--base {parent}" if isinstance(parent, str) else "--base"
        reason = f"The base is quantised ({method}), and this version merges into plain weights only."
        refusals.append(Refusal(code="quantised-base", reason=reason, remedy=f"Name its 16-bit parent with {named}."))
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


def _matches_nothing() -> Refusal:
    return Refusal(
        code="matches-nothing", reason="The adapter holds no weight that would change the base.", remedy=OTHER_BASE
    )


def _notes(base: Source, options: Options, wanted: str | None) -> tuple[str, ...]:
    notes = []
    if wanted:
        notes.append(f"Every {torch_name(main_dtype(base.headers))} tensor is rounded once to {wanted}.")
    if options.base_weights == "auto":
        notes.append("base-weights: stored, because the base is not quantised.")
    return tuple(notes)


# --- every key is claimed -----------------------------------------------------------------------------------------


def _claim_everything(plan: Plan, stored: dict[str, Stored], adapter_headers: Iterable[Header]) -> None:
    """Nothing vanishes: each base key has exactly one op; each adapter key is in one op, or the plan is refused."""
    base_keys = [op.source.key for op in plan.ops]
    assert sorted(base_keys) == sorted(stored), "a base key is unclaimed, or claimed twice"
    used = [key for op in plan.ops if isinstance(op, AddDelta) for key in (op.a.key, op.b.key)]
    adapter_keys = {tensor.key for header in adapter_headers for tensor in header.tensors}
    assert len(used) == len(set(used)), "an adapter key is claimed twice"
    refused = {key for refusal in plan.refusals for key in refusal.keys}
    unclaimed = adapter_keys - set(used) - refused
    assert not unclaimed or plan.refusals, f"adapter keys are unclaimed: {sorted(unclaimed)[:SHOWN]}"


def pin_of(source: Source) -> Json:
    """The source as verification.json names it: {repo, sha} and, where one was asked for, the revision."""
    pin: dict[str, Any] = {"repo": source.repo, "sha": source.sha}
    return {**pin, "revision": source.revision} if source.revision else pin


def _shape(stored: Stored) -> str:
    return "×".join(map(str, stored.shape)) or "a single number"
