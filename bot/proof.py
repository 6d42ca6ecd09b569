"""Prove a merge of ours: what is verified, and what its report says of the inputs and of how it was made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bot import trained_base
from bot.events import Emit
from bot.options import deciding
from bot.plan import is_change
from bot.plan_text import merged_terms
from bot.pull import original_at_hand
from bot.records import RECIPE, Local, Merged, Plan, Report, Request, Sources
from bot.report_document import InputPins, MergeFacts, name_inputs
from bot.report_text import block
from bot.special_tokens import is_token

if TYPE_CHECKING:
    from bot.hub import Hub
    from bot.verify import Subject


def prove(
    merged: Merged, inputs: Local, sources: Sources, request: Request, target: str | None, hub: Hub, emit: Emit
) -> Report:
    """Verify a merge of ours and put its verification.json into the folder."""
    from bot.verify import verify, write  # the checks are not for those who only plan

    report = verify(subject_of(merged, inputs, sources, request, target, hub), emit)
    emit(block(report.document))
    write(report, merged.folder)
    return report


def subject_of(
    merged: Merged, inputs: Local, sources: Sources, request: Request, target: str | None, hub: Hub
) -> Subject:
    """What is to be proven of a merge of ours."""
    from bot.verify import Subject

    plan = merged.plan
    return Subject(
        folder=merged.folder,
        base=inputs.base,
        adapter=inputs.adapter,
        inputs=named_inputs(plan),
        recorded=None,
        merge=merge_facts(merged, sources, target),
        dtype="auto" if plan.options.dtype == "auto" else plan.dtype,
        ours=True,
        level=plan.level,
        required=plan.options.verify == "full",
        not_run=plan.not_run,
        trust_remote_code=plan.options.trust_remote_code,
        device=plan.proof_device,
        hashed=merged.sha256,
        base_weights=plan.base_weights,
        quantization=dict(plan.options.quantization),
        quantize=plan.options.quantize,
        clamps=plan.options.clamps,
        original=original_at_hand(sources.base, hub),
        eval_text=request.eval_text,
        eval_tasks=request.eval_tasks,
        eval_limit=request.eval_limit,
        asks=request.report is not None or request.publish_report,
        force=request.force,
        trained=tuple(filter(None, map(trained_base.in_four_bits, sources.adapters))),
        adapters=inputs.adapters if plan.combination else (),
        combination=plan.combination,
    )


def named_inputs(plan: Plan) -> InputPins:
    """The inputs as verification.json names them: the adapter, or all of several and how they are combined."""
    adapters = plan.adapters if plan.combination else (plan.adapter,)
    return name_inputs(plan.base, adapters, plan.combination, RECIPE)


def merge_facts(merged: Merged, sources: Sources, target: str | None) -> MergeFacts:
    """What verification.json says of how the merge was made. No path, and nothing that another run would not repeat."""
    plan = merged.plan
    terms = merged_terms(plan)
    json = {
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
        "tag": tag_of(sources),
        "target": target,
        **({"shared_blocks": plan.shared_blocks} if plan.shared_blocks else {}),
    }
    return MergeFacts.of(json)


def tag_of(sources: Sources) -> str | None:
    """The adapter's tag to carry over: the one asked for, else one that points at the same commit."""
    if sources.more:
        return None  # no one adapter's version is the version of them together
    tags = sources.adapter.tags
    return sources.adapter.revision if sources.adapter.revision in tags else next(iter(tags), None)
