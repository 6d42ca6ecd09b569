"""What one quantised weight must hold: the exact merge in float64, rounded once to float32, all of it or slab by slab."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bot.checks.elementwise.row_comparisons import exact_rows
from bot.checks.elementwise.steps import SourceMatrix, ready
from bot.checks.expected.changes import Expected
from bot.checks.reading.checkpoint import PackedWeight
from bot.checks.reading.rows import Opened, chunks


@dataclass(frozen=True, kw_only=True)
class ExactWeight:
    """`numbers`: float32, rows of the weight's view. `off`, `power`: ‖W − W_q‖² and ‖D‖² over them, W_q what is stored."""

    numbers: Tensor
    off: float
    power: float


def exact_weight(wanted: Expected, packed: PackedWeight) -> ExactWeight:
    """All of it at once. `packed`: as it is stored."""
    (whole,) = _exact(wanted, packed, wanted.view[0])
    return whole


def exact_slabs(wanted: Expected, packed: PackedWeight) -> Iterator[ExactWeight]:
    """One slab after the other: no more of the weight than that is held. `packed`: as it is stored."""
    rows, beyond = divmod(wanted.view[0], packed.slabs)
    assert not beyond, f"{wanted.key}: {packed.slabs} slabs of {wanted.view}"
    return _exact(wanted, packed, rows)


def _exact(wanted: Expected, packed: PackedWeight, rows: int) -> Iterator[ExactWeight]:
    height, width = wanted.view
    source = SourceMatrix(ref=wanted.source, view=wanted.view)
    steps = tuple((step, ready(step, source)) for step in wanted.steps)
    size = wanted.source.elements // packed.slabs
    held: dict[int, Tensor] = {}  # of what is stored: its slab in work, which the cache lets go for the source's
    with Opened() as opened:
        for first in range(0, height, rows):
            numbers = torch.empty((rows, width), dtype=torch.float32)
            off = power = 0.0
            for low, high in chunks((rows, width)):
                weight, exact = exact_rows(wanted, steps, first + low, first + high, opened)
                wide = torch.from_numpy(exact)
                numbers[low:high] = wide.float()
                power += float(((exact - weight) ** 2).sum())
                stored = _stored(packed, held, size, (first + low) * width, (first + high) * width)
                off += float((wide.flatten() - stored.double()).square().sum())
            yield ExactWeight(numbers=numbers, off=off, power=power)


def _stored(packed: PackedWeight, held: dict[int, Tensor], size: int, start: int, stop: int) -> Tensor:
    """Elements `start` to `stop` of what is stored, dequantised. `held`: the slabs of the call before; `size`: of a slab."""
    wanted = range(start // size, -(-stop // size))
    for slab in held.keys() - set(wanted):
        del held[slab]
    held.update({slab: packed.slab(slab) for slab in wanted if slab not in held})
    return torch.cat([held[slab][max(0, start - slab * size) : stop - slab * size] for slab in wanted])
