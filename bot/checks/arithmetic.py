"""A-priori error bounds of the arithmetics that merges are made with, tightest first.

Each bounds |computed − (W + D)| before the last rounding to storage, from M = |s|·|B|·|A| ≥ |D| (Higham 2002,
"Accuracy and Stability of Numerical Algorithms", §3.1: a sum of r products errs by at most r·u·M to first order).
The constants count roundings and are rounded up to cover second-order terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bot.checks.rounding import UNIT, round_once


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the bounds are made of, all float64 and of one shape, and the facts that scale them."""

    weight: Tensor
    delta: Tensor
    magnitude: Tensor
    rank: int
    storage: torch.dtype

    @property
    def exact(self) -> Tensor:
        return self.weight + self.delta


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """A way to merge, by name; `bound` gives the error that it may have made."""

    name: str
    bound: Callable[[Terms], Tensor]


def _accumulated(terms: Terms, unit: float) -> Tensor:
    return unit * ((terms.rank + 4) * terms.magnitude + 2 * terms.exact.abs())


def _float64(terms: Terms) -> Tensor:
    return _accumulated(terms, UNIT[torch.float64])


def _float32(terms: Terms) -> Tensor:
    return _accumulated(terms, UNIT[torch.float32])


def _delta_rounded(terms: Terms) -> Tensor:
    return _float32(terms) + 1.01 * UNIT[terms.storage] * terms.delta.abs()


def _product_rounded(terms: Terms) -> Tensor:
    # A, B, their product, the scaling and the scaled product: five roundings.
    return _float32(terms) + 5.1 * UNIT[terms.storage] * terms.magnitude


def _base_rounded(terms: Terms) -> Tensor:
    return _product_rounded(terms) + 1.01 * UNIT[terms.storage] * terms.weight.abs()


ARITHMETICS = (
    Arithmetic(name="exact, rounded once", bound=_float64),
    Arithmetic(name="float32 accumulation, then one rounding", bound=_float32),
    Arithmetic(name="delta rounded to the storage dtype, then added", bound=_delta_rounded),
    Arithmetic(name="the product computed in the storage dtype, then added", bound=_product_rounded),
    Arithmetic(name="base cast first, then all in the storage dtype", bound=_base_rounded),
)
EXACT = 0
NONE_FITS = len(ARITHMETICS)


def fits(terms: Terms, found: Tensor, which: int) -> Tensor:
    """Where `found` is what some value within the bound rounds to. Rounding is monotonic, so the ends decide."""
    bound = ARITHMETICS[which].bound(terms)
    low, high = round_once(terms.exact - bound, found.dtype), round_once(terms.exact + bound, found.dtype)
    return (low <= found) & (found <= high)


def tightest(terms: Terms, found: Tensor) -> int:
    """The first arithmetic that explains every element, or NONE_FITS."""
    for which in range(len(ARITHMETICS)):
        if bool(fits(terms, found, which).all()):
            return which
    return NONE_FITS


def name_of(which: int) -> str:
    """Its name, for the reader."""
    return ARITHMETICS[which].name if which < NONE_FITS else "no arithmetic"
