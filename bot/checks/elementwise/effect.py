"""Whether the merge is anything but the base: an adapter whose every delta is zero, or too small to be stored, proves nothing."""

from __future__ import annotations

from bot.checks.case import Case
from bot.checks.elementwise.stored_rounding import STORED, WIDEST
from bot.checks.elementwise.weights import sweep_all
from bot.checks.expected.adapter_claims import adapter_claims
from bot.checks.expected.config_changes import REPLICATED
from bot.checks.finding import counted, finding
from bot.checks.reading.checkpoint import STORED_AS, TORCH_NAMES
from bot.records import Finding

ALLOWED = "at least 1"


def effect(case: Case) -> Finding:
    """At least one number is another one than the base's, or the model is another one."""
    claims = case.once(adapter_claims)
    keeps = [tally.keeps for tally in case.once(sweep_all).touched]
    packed = [key for key in claims.changes if key in case.once(sweep_all).packed]
    changed, known = sum(STORED in kinds for kinds in keeps), set[str]().union(*keeps)
    if packed:
        from bot.checks.elementwise.quantised_result import compare_quantised  # with torch and the forms' libraries

        known |= case.once(compare_quantised).keeps
    another = claims.dropped or any(change.why == REPLICATED for change in claims.declared)
    # What was not compared is told elsewhere.
    if STORED in known or another or len(keeps) + len(packed) < len(claims.changes):
        measured = "changed" if packed or not changed else f"{changed:,} of {counted(len(claims.changes), 'tensor')}"
        return finding("effect", "pass", measured, ALLOWED, "The merge is not the base.")
    if not known:
        what = "The adapter changes nothing: every delta is exactly zero."
    else:
        form = case.subject.quantize if packed else ", ".join(_dtypes(case))
        what = f"The adapter changes nothing: none of its deltas survives {form}." + (
            f" {WIDEST} would keep some of them." if WIDEST in known else ""
        )
    why = what + (" It was made because --force was given." if case.subject.force else "")
    return finding("effect", "warn" if case.subject.force else "fail", "none changed", ALLOWED, why)


def _dtypes(case: Case) -> list[str]:
    kinds = {case.model.tensors[tally.key].stored.dtype for tally in case.once(sweep_all).touched}
    return sorted(TORCH_NAMES[kind] if kind in STORED_AS.values() else kind for kind in kinds)
