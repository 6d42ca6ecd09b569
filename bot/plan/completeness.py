"""Every key is claimed: each of the base's is in an op or a drop, each of the adapter's is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bot.checkpoint.shards import stored_targets
from bot.plan.adapter_plan import AdapterPlan
from bot.plan.refusal_texts import SHOWN
from bot.records import Header, Plan, Stored, plain_op


def require_all_claimed(
    plan: Plan, stored: Mapping[str, Stored], adapter_headers: Iterable[Header], adapter_plan: AdapterPlan
) -> None:
    """Assert it of a plan that is not refused."""
    if plan.refusals:
        return
    targets = [target.key for op in plan.ops for target in stored_targets(op)]
    assert len(targets) == len(set(targets)), "a tensor would be written twice"
    made = map(plain_op, plan.ops)
    sources = {op.source.key for op in made if op.source is not None and op.source.role == "base"}
    dropped = {drop.source.key for drop in plan.drops}
    under = {key for key in adapter_plan.claims.values if key in stored}  # an adapter's copy is W there
    stale = {pair[1] for pair in (adapter_plan.decisions.untied, adapter_plan.decisions.follows) if pair}
    packed = {key: {part.key for _, part in tensor.packed.parts} for key, tensor in stored.items() if tensor.packed}
    kept = {key for key, parts in packed.items() if parts <= sources}
    unclaimed = stored.keys() - sources - dropped - under - stale - kept
    assert not unclaimed, f"base keys are unclaimed: {sorted(unclaimed)[:SHOWN]}"
    adapter_keys = {tensor.key for header in adapter_headers for tensor in header.tensors}
    unused = adapter_keys - adapter_plan.claims.used - adapter_plan.used
    assert not unused, f"adapter keys are unclaimed: {sorted(unused)[:SHOWN]}"
