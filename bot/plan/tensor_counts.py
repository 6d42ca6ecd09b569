"""How many tensors of the model are what. A weight that is stored as several tensors counts once; so they add up to the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from bot.formats.bitsandbytes.simulated import NAME as SIMULATED
from bot.plan_text import KINDS
from bot.records import AddDelta, Cast, Copy, Drop, Op, PeftMerge, Quantize, Replace, SetRows


def counts(ops: Iterable[Op], stored: Iterable[Op], drops: Iterable[Drop], form: str) -> tuple[tuple[str, int], ...]:
    """Every kind of KINDS that there is, and `dropped`: of the base, and not in the result, so not one of the sum.

    `ops`: one for each tensor of the model; `stored`: the same as they are stored, in `form` (`--quantize`).
    """
    written = {op.target.key for op in stored if isinstance(op, Quantize)}
    numbers = Counter(_kind(op, op.target.key in written, form) for op in ops)
    numbers["dropped"] = len(tuple(drops))
    return tuple((kind, numbers[kind]) for kind in (*KINDS, "dropped") if numbers[kind])


def _kind(op: Op, is_written: bool, form: str) -> str:
    match op:
        case AddDelta() | PeftMerge():
            return "merged"
        case SetRows():
            return "rows"
        case Replace():
            return "replaced" if op.source is not None else "new"
        case Copy() | Cast() if is_written:
            return "quantised"
        case Cast() if op.source.packed is not None:
            if op.source.packed.format == SIMULATED:
                return "simulated"
            return "copied" if form == "same" else "dequantised"
    return "copied" if isinstance(op, Copy) else "cast"
