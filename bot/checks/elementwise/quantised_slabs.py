"""A stack of experts in the base's own form, slab by slab: a slab is gigabytes less than the stack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from bot.checks.elementwise.exact_weight import exact_slabs
from bot.checks.elementwise.stored_bytes import differing
from bot.checks.expected.changes import Expected
from bot.checks.reading.checkpoint import PackedWeight
from bot.checks.reading.packed import read_component

# (exact slab, the base's weight, the slab's number) → the parts
SlabRule = Callable[[Tensor, PackedWeight, int], dict[str, Tensor]]
SHOWN = 3  # slabs that are named


@dataclass(frozen=True, kw_only=True)
class ComparedSlabs:
    """`faults`: in words. `share`: ‖W − W_q‖ ÷ ‖D‖; None where D is zero. `alters`: whether any byte must be other than the base's."""

    faults: tuple[str, ...]
    share: float | None
    alters: bool


def compare_slabs(
    wanted: Expected, packed: PackedWeight, own: PackedWeight, rule: SlabRule, name: str
) -> ComparedSlabs:
    """Every part of every slab against what `rule` makes of the exact merge. `packed`: as it is stored, `own`: as the base has it;
    their parts are as large. `name`: the form's. Raises ValueError for what the form cannot hold."""
    other: dict[str, dict[int, int]] = {}
    off = power = 0.0
    alters = False
    for slab, exact in enumerate(exact_slabs(wanted, packed)):
        off, power = off + exact.off, power + exact.power
        for role, value in rule(exact.numbers, own, slab).items():
            if bytes_off := differing(value, read_component(packed.components[role], slab)):
                other.setdefault(role, {})[slab] = bytes_off
            alters = alters or differing(value, read_component(own.components[role], slab)) > 0
    faults = tuple(
        f"its {role} are not what {name} makes of the exact merge{_where(packed, role, slabs)}"
        for role, slabs in other.items()
    )
    return ComparedSlabs(faults=faults, share=(off / power) ** 0.5 if power else None, alters=alters)


def _where(packed: PackedWeight, role: str, slabs: dict[int, int]) -> str:
    stored = packed.components[role].stored
    shown = ", ".join(str(slab) for slab in list(slabs)[:SHOWN])
    more = f" and {len(slabs) - SHOWN} more" if len(slabs) > SHOWN else ""
    return f" ({sum(slabs.values()):,} of {stored.stop - stored.start:,} bytes differ; in experts {shown}{more} of {packed.slabs})"
