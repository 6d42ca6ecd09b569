"""How many tensors of the model are what. A weight that is stored as several tensors counts once; so they add up to the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from bot.formats.bitsandbytes.simulated import NAME as SIMULATED
from bot.records import AddDelta, Cast, Copy, Drop, Op, PeftMerge, Quantize, Replace, SetRows

KINDS = (
    "merged",  # base plus delta
    "replaced",  # by a tensor of the adapter's
    "rows",  # some rows are the adapter's
    "new",  # the adapter's, where the base has none
    "copied",  # the base's bytes
    "cast",  # rounded once to another dtype
    "dequantised",  # out of the base's form, and rounded once
    "simulated",  # quantised and back, as an adapter trained with QLoRA saw it
    "quantised",  # into the result's form, without a delta
    "dropped",  # of the base, and not in the result: not one of the sum
)


def counts(ops: Iterable[Op], stored: Iterable[Op], drops: Iterable[Drop], form: str) -> tuple[tuple[str, int], ...]:
    """Every kind of KINDS that there is. `ops`: one for each tensor of the model; `stored`: the same as they are stored,
    in `form` (`--quantize`)."""
    written = {op.target.key for op in stored if isinstance(op, Quantize)}
    numbers = Counter(_kind(op, op.target.key in written, form) for op in ops)
    numbers["dropped"] = len(tuple(drops))
    return tuple((kind, numbers[kind]) for kind in KINDS if numbers[kind])


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
