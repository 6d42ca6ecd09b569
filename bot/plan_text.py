"""A plan, as a person reads it and as a machine does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from bot import config_summary
from bot.budget import readable
from bot.errors import NotVerified
from bot.events import TextTable
from bot.records import (
    AddDelta,
    Asset,
    ConfigChange,
    Factor,
    Json,
    Op,
    Outcome,
    Patch,
    PeftMerge,
    Plan,
    Publication,
    Replace,
    SetRows,
    Term,
    plain_op,
)
from bot.report_document import InputPins, Pin
from bot.terminal.plain import plain


def plan_table(plan: Plan) -> TextTable:
    """The plan in a screenful, without its warnings: whoever shows it says each of them once."""
    whole = sum(shard.same_as_base for shard in plan.shards)
    terms = merged_terms(plan)
    rows = [
        ("base", _ref(plan.base)),
        *(("adapter", _ref(pin)) for pin in plan.adapters or (plan.adapter,)),
        ("method", plan.method + _settings(terms)),
        ("engine", f"{plan.engine}, result in {plan.dtype}"),
        ("tensors", tensors_in_words(dict(plan.tensors), plan.dtype, plan.options.quantize).partition(": ")[2]),
        ("files", f"{len(plan.shards)} of weights ({whole} unchanged), {len(plan.assets)} others"),
        ("download", readable(plan.budget.download)),
        ("output", readable(plan.budget.output)),
        ("memory", f"{readable(plan.budget.peak_memory)} at most while fetching and merging"),
        ("disk", _disk(plan)),
        ("proof", _proof(plan)),
        ("fingerprint", plan.fingerprint[:16]),
    ]
    rows += [("config", _changed(change)) for change in plan.config_changes]
    rows += [("note", note) for note in plan.notes]
    return TextTable(rows=tuple((name, text) for name, text in rows if text), indent=2)


def _disk(plan: Plan) -> str:
    """Peak disk, where the model is not on it as a whole, and what goes over the network."""
    costs = plan.budget.by_shard
    if plan.disk == "whole" or costs is None:
        return f"{readable(plan.budget.disk)} at most"
    copied = f", {readable(costs.copied)} copied by the Hub" if costs.copied else ""
    return (
        f"{readable(costs.disk)} at most, one weight file after the other: {readable(costs.fetch)} to fetch, "
        f"{readable(costs.send)} to send{copied}"
    )


def _changed(change: ConfigChange) -> str:
    before, after = (config_summary.value(change.path, value) for value in (change.before, change.after))
    return f"{change.path}: {before} → {after}"


def plan_kept(plan: Plan) -> str:
    """The table with the plan's warnings under it, for a page that is read afterwards; a log has those as lines of their own."""
    table = plan_table(plan)
    return plain((replace(table, rows=(*table.rows, *(("warning", warning) for warning in plan.warnings))),))


def merged_terms(plan: Plan) -> list[Term]:
    """Every low-rank term of the plan that has two factors."""
    patches = [patch for op in map(plain_op, plan.ops) if isinstance(op, AddDelta) for patch in op.patches]
    return [term for patch in patches for term in patch.terms if term.right is not None]


# What a tensor of the result can be made of, and what that is called; {dtype}, {form}: those of the result.
KINDS = {
    "merged": "merged",  # base plus delta
    "replaced": "replaced by the adapter's",
    "rows": "with rows of the adapter's",
    "new": "new",  # the adapter's, where the base has none
    "copied": "copied byte for byte",
    "cast": "rounded once to {dtype}",
    "dequantised": "dequantised and rounded once to {dtype}",
    # As an adapter that was trained with QLoRA saw it.
    "simulated": "quantised and back, without a delta, and rounded once to {dtype}",
    "quantised": "without a delta, in {form}",
}


def tensors_in_words(counts: Mapping[str, int], dtype: str, form: str) -> str:
    """`21 tensors: 14 merged, 7 copied byte for byte`: numbers that add up; what the base has and the result has not, behind."""
    known = {kind: words.format(dtype=dtype, form=form) for kind, words in KINDS.items()}
    parts = [f"{counts[kind]} {words}" for kind, words in known.items() if counts.get(kind)]
    total = sum(counts.get(kind, 0) for kind in KINDS)
    left = f"; {counts['dropped']} of the base's left out" if counts.get("dropped") else ""
    return f"{total} tensor{'' if total == 1 else 's'}: {', '.join(parts)}{left}"


def refusal_lines(plan: Plan) -> list[str]:
    """Every refusal: what is in the way, then what to do."""
    return [line for refusal in plan.refusals for line in (f"✗ {_one_line(refusal.reason)}", f"  {refusal.remedy}")]


def _one_line(text: str) -> str:
    """Text that may quote somebody's file, without the control characters that a log would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def plan_json(plan: Plan) -> Json:
    """The plan as JSON: every op, every file, every refusal. Offsets are absolute bytes in their file."""
    return {
        "base": plan.base,
        "adapter": plan.adapter,
        **_several(plan),
        "method": plan.method,
        "engine": plan.engine,
        "dtype": plan.dtype,
        "options": asdict(plan.options),
        "fingerprint": plan.fingerprint,
        "verify": {
            "level": plan.level,
            "device": plan.proof_device.kind,
            "not_run": [{"id": i, "reason": why} for i, why in plan.not_run],
        },
        "budget": asdict(plan.budget),
        "disk": plan.disk,
        "shards": [{"name": s.name, "size": s.size, "same_as_base": s.same_as_base} for s in plan.shards],
        "index": plan.index_name,
        "assets": [_asset(asset) for asset in plan.assets],
        "config_changes": [asdict(change) for change in plan.config_changes],
        "ops": [_op(op) for op in plan.ops],
        "refusals": [asdict(refusal) for refusal in plan.refusals],
        "notes": list(plan.notes),
        "warnings": list(plan.warnings),
        "tensors": dict(plan.tensors),
    }


def outcome_json(outcome: Outcome) -> Json:
    """A run as JSON; paths are absolute, where there are any."""
    return {
        "status": outcome.status,
        "verified": _is_verified(outcome),
        "fingerprint": outcome.plan.fingerprint,
        "base": outcome.plan.base,
        "adapter": outcome.plan.adapter,
        **_several(outcome.plan),
        "refusals": [asdict(refusal) for refusal in outcome.plan.refusals],
        "report": outcome.report.document.json if outcome.report else None,
        "publication": asdict(outcome.publication) if outcome.publication else None,
        "folder": str(outcome.folder.absolute()) if outcome.folder else None,
    }


def _is_verified(outcome: Outcome) -> bool:
    """Whether what there is of the merge, made now or published before, is proven."""
    known = outcome.publication.proof if outcome.publication else None
    return (outcome.report is not None and outcome.report.verdict == "verified") or known is not None


def outcome_lines(outcome: Outcome) -> list[str]:
    """How a run ended well, in a line or two."""
    if outcome.publication:
        return publication_lines(outcome.publication)
    if outcome.status == "dry-run":
        return ["✓ dry run: no weight was downloaded and nothing written"]
    return [f"✓ merged and verified: {outcome.folder}"]


def publication_lines(publication: Publication) -> list[str]:
    """Where the model is now, in a line or two."""
    tag = f", tag {publication.tag}" if publication.tag else ""
    if publication.status == "published":
        where = f"pull request #{publication.pr_number} on" if publication.how == "pr" else "pushed to"
        first = f"✓ verified and published: {where} {publication.repo}{tag}"
    else:
        proven = f" Proven at level {publication.proof['level']}." if publication.proof else ""
        first = f"✓ {publication.status}: {publication.why}{proven}"
    return [first, f"  {publication.link}"] if publication.link else [first]


def not_verified(outcome: Outcome) -> NotVerified:
    """The error that a merge without proof ends in."""
    findings = outcome.report.findings if outcome.report else ()
    failed = [f"{finding.id} ({finding.why})" for finding in findings if finding.status in ("fail", "skip")]
    return NotVerified(
        f"The merge could not be proven: {'; '.join(failed)}",
        remedy=f"Nothing was published; see {outcome.folder} and its verification.json.",
    )


def held_against(inputs: InputPins) -> TextTable:
    """What a merged model was verified against: every input with its commit."""
    named = [("base", inputs.base), *(("adapter", adapter) for adapter in inputs.adapters)]
    return TextTable(rows=tuple((role, f"{pin.name('a folder')} @ {pin.sha}") for role, pin in named), indent=2)


def _several(plan: Plan) -> Json:
    """What `adapter` is the combination of, where it is one."""
    return {"adapters": list(plan.adapters), "combination": plan.combination} if plan.combination else {}


def _ref(pin: Json) -> str:
    asked = f" ({pin['revision']})" if pin.get("revision") else ""
    return f"{Pin.of(pin).name('a folder')}{asked} @ {pin['sha'].removeprefix('sha256:')[:12]}"


def _proof(plan: Plan) -> str:
    missing = "; ".join(f"not {name}: {why}" for name, why in plan.not_run)
    count = len(plan.proof_device.gpus) if plan.level == "full" else 0
    where = f" on {count} GPUs" if count > 1 else " on the GPU" if count else ""
    return f"{plan.level}{where}{' (' + missing + ')' if missing else ''}"


def _settings(terms: list[Term]) -> str:
    if not terms:
        return ""
    return f", {_spread(term.rank for term in terms)}, scaling {_spread(term.scaling for term in terms)}"


def _spread(values: Any) -> str:
    different = sorted(set(values))
    if not different:
        return "none"
    text = f"{different[0]:g}" if len(different) == 1 else f"{different[0]:g} to {different[-1]:g}"
    return f"rank {text}" if all(isinstance(value, int) for value in different) else text


def _asset(asset: Asset) -> Json:
    return {"name": asset.name, "from": asset.source, "why": asset.why, "changed": asset.content is not None}


def _op(op: Op) -> Json:
    document: Json = {"op": type(op).__name__, "key": op.target.key, "file": op.target.file, "dtype": op.target.dtype}
    document |= {"shape": list(op.target.shape), "start": op.target.start, "stop": op.target.stop}
    match op:
        case AddDelta():
            return document | {"patches": [_patch(patch) for patch in op.patches]}
        case Replace():
            return document | {"values": op.values.key, "module": op.module}
        case SetRows():
            return document | {"values": op.values.key, "rows": list(op.rows), "module": op.module}
        case PeftMerge():
            return document | {"module": op.module, "parameter": op.parameter}
    return document


def _patch(patch: Patch) -> Json:
    magnitude = {"magnitude": patch.magnitude.stored.key, "along": patch.along} if patch.magnitude else {}
    return {
        "rows": list(patch.rows),
        "columns": list(patch.columns),
        **({"step": patch.step} if patch.step != 1 else {}),
        "terms": [
            {
                "module": term.module,
                "left": _factor(term.left),
                "right": _factor(term.right) if term.right else None,
                "rank": term.rank,
                "alpha": term.alpha,
                "scaling": term.scaling,
            }
            for term in patch.terms
        ],
        **magnitude,
    }


def _factor(factor: Factor) -> Json:
    return {
        "key": factor.stored.key,
        "rows": list(factor.rows),
        "columns": list(factor.columns),
        "turned": factor.transposed,
    }
