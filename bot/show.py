"""A plan, as a person reads it and as a machine does."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from bot.budget import readable
from bot.errors import NotVerified
from bot.records import AddDelta, Asset, Json, Op, Outcome, Plan, Publication


def plan_table(plan: Plan) -> str:
    """The plan in a screenful of plain text."""
    kinds = Counter(type(op).__name__ for op in plan.ops)
    whole = sum(shard.same_as_base for shard in plan.shards)
    merged = [op for op in plan.ops if isinstance(op, AddDelta)]
    rows = [
        ("base", _ref(plan.base)),
        ("adapter", _ref(plan.adapter)),
        (
            "method",
            f"{plan.method}, {_spread(op.rank for op in merged)}, scaling {_spread(op.scaling for op in merged)}",
        ),
        ("engine", f"{plan.engine}, result in {plan.dtype}"),
        ("tensors", f"{kinds['AddDelta']} merged, {kinds['Copy']} copied, {kinds['Cast']} cast"),
        ("files", f"{len(plan.shards)} of weights ({whole} unchanged), {len(plan.assets)} others"),
        ("download", readable(plan.budget.download)),
        ("output", readable(plan.budget.output)),
        ("memory", f"{readable(plan.budget.peak_memory)} at most while merging"),
        ("proof", _proof(plan)),
        ("fingerprint", plan.fingerprint[:16]),
    ]
    lines = [f"  {name:<12} {text}" for name, text in rows if text]
    lines += [f"  {'config':<12} {c.path}: {c.before} → {c.after}" for c in plan.config_changes]
    lines += [f"  note         {note}" for note in plan.notes]
    return "\n".join(lines)


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
        "method": plan.method,
        "engine": plan.engine,
        "dtype": plan.dtype,
        "options": asdict(plan.options),
        "fingerprint": plan.fingerprint,
        "verify": {"level": plan.level, "not_run": [{"id": i, "reason": why} for i, why in plan.not_run]},
        "budget": asdict(plan.budget),
        "shards": [{"name": s.name, "size": s.size, "same_as_base": s.same_as_base} for s in plan.shards],
        "index": plan.index_name,
        "assets": [_asset(asset) for asset in plan.assets],
        "config_changes": [asdict(change) for change in plan.config_changes],
        "ops": [_op(op) for op in plan.ops],
        "refusals": [asdict(refusal) for refusal in plan.refusals],
        "notes": list(plan.notes),
    }


def outcome_json(outcome: Outcome) -> Json:
    """A run as JSON; paths are absolute, where there are any."""
    return {
        "status": outcome.status,
        "verified": outcome.report is not None and outcome.report.verdict == "verified",
        "fingerprint": outcome.plan.fingerprint,
        "base": outcome.plan.base,
        "adapter": outcome.plan.adapter,
        "refusals": [asdict(refusal) for refusal in outcome.plan.refusals],
        "report": outcome.report.document if outcome.report else None,
        "publication": asdict(outcome.publication) if outcome.publication else None,
        "folder": str(outcome.folder.absolute()) if outcome.folder else None,
    }


def outcome_lines(outcome: Outcome) -> list[str]:
    """How a run ended well, in a line or two."""
    if outcome.publication:
        return publication_lines(outcome.publication)
    if outcome.status == "dry-run":
        return ["✓ dry run: no weight was downloaded and nothing written"]
    return [f"✓ merged and verified: {outcome.folder}"]


def publication_lines(publication: Publication) -> list[str]:
    """Where the model is now, in a line or two."""
    link = publication.pr_url or publication.url
    tag = f", tag {publication.tag}" if publication.tag else ""
    if publication.status == "published":
        where = f"pull request #{publication.pr_number} on" if publication.how == "pr" else "pushed to"
        first = f"✓ verified and published: {where} {publication.repo}{tag}"
    else:
        first = f"✓ {publication.status}: {publication.why}"
    return [first, f"  {link}"] if link else [first]


def not_verified(outcome: Outcome) -> NotVerified:
    """The error that a merge without proof ends in."""
    findings = outcome.report.findings if outcome.report else ()
    failed = [f"{finding.id} ({finding.why})" for finding in findings if finding.status in ("fail", "skip")]
    return NotVerified(
        f"The merge could not be proven: {'; '.join(failed)}",
        remedy=f"Nothing was published; see {outcome.folder} and its verification.json.",
    )


def _ref(pin: Json) -> str:
    name = pin["repo"] or "a folder"
    asked = f" ({pin['revision']})" if pin.get("revision") else ""
    return f"{name}{asked} @ {pin['sha'].removeprefix('sha256:')[:12]}"


def _proof(plan: Plan) -> str:
    missing = "; ".join(f"not {name}: {why}" for name, why in plan.not_run)
    return f"{plan.level}{' (' + missing + ')' if missing else ''}"


def _spread(values: Any) -> str:
    found = sorted(set(values))
    if not found:
        return "none"
    text = f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"
    return f"rank {text}" if all(isinstance(value, int) for value in found) else text


def _asset(asset: Asset) -> Json:
    return {"name": asset.name, "from": asset.source, "why": asset.why, "changed": asset.content is not None}


def _op(op: Op) -> Json:
    found: Json = {"op": type(op).__name__, "key": op.target.key, "file": op.target.file, "dtype": op.target.dtype}
    found |= {"shape": list(op.target.shape), "start": op.target.start, "stop": op.target.stop}
    if isinstance(op, AddDelta):
        found |= {"a": op.a.key, "b": op.b.key, "rank": op.rank, "alpha": op.alpha, "scaling": op.scaling}
        found |= {"transposed": op.transposed, "module": op.module}
    return found
