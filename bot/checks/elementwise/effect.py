"""Whether the merge is anything but the base: an adapter whose every delta is zero, or too small to be stored, proves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bot.checks.elementwise.rounding import round_once
from bot.checks.expected.config_changes import REPLICATED
from bot.checks.finding import counted, finding
from bot.records import Finding

if TYPE_CHECKING:
    from bot.checks.case import Case

STORED, ANY = "stored", "any"
WIDEST = "float32"  # it holds every number that a 16-bit dtype does: what is lost in it is lost in all
ALLOWED = "at least 1"


def keeps(exact: Tensor, alone: Tensor | None, stored: torch.dtype) -> set[str]:
    """Where float64 `exact` is not `alone`, the base's (None: it has none): {STORED} in the stored dtype already, else
    WIDEST where it is not in that, and ANY where it is not the same number."""
    if alone is None or _differ(exact, alone, stored):
        return {STORED}
    if torch.equal(exact, alone):
        return set()
    return {ANY, WIDEST} if _differ(exact, alone, torch.float32) else {ANY}


def _differ(exact: Tensor, alone: Tensor, dtype: torch.dtype) -> bool:
    one, other = round_once(exact, dtype), round_once(alone, dtype)
    return not torch.equal(one, other) and bool(((one != other) & ~(one.isnan() & other.isnan())).any())


def effect(case: Case) -> Finding:
    """At least one number is another one than the base's, or the model is another one."""
    claims = case.claims
    found = [one.keeps for one in case.swept.touched]
    packed = [key for key in claims.changes if key in case.swept.packed]
    changed, known = sum(STORED in one for one in found), set[str]().union(*found)
    if packed:
        known |= case.written.keeps
    another = claims.dropped or any(one.why == REPLICATED for one in claims.declared)
    if (
        STORED in known or another or len(found) + len(packed) < len(claims.changes)
    ):  # what was not compared is told elsewhere
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
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    kinds = {case.model.tensors[one.key].stored.dtype for one in case.swept.touched}
    return sorted(names.get(kind, kind) for kind in kinds)
