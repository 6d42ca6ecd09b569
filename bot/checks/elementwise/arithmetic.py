"""A-priori error bounds of the arithmetics that merges are made with, tightest first.

Each bounds |computed − exact| before the last rounding to storage. For W + D from M = |s|·|B|·|A| ≥ |D| (Higham 2002,
"Accuracy and Stability of Numerical Algorithms", §3.1: a sum of r products errs by at most r·u·M to first order). For DoRA,
m·V/‖V‖ with V = W + D: V's own error E passes through with m/‖V‖, and the norm's relative error is at most ‖E‖/‖V‖ plus
that of a sum of n squares. The constants count roundings and are rounded up to cover second-order terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bot.checks.elementwise.stored_rounding import UNIT, round_once
from bot.checks.reading.stored_numbers import Array


@dataclass(frozen=True, kw_only=True)
class Magnitudes:
    """Magnitudes of weight, delta, product and sum: of elements, or (their norms) of whole rows."""

    weight: Array
    delta: Array
    product: Array
    value: Array

    def map(self, change: Callable[[Array], Array]) -> Magnitudes:
        """All four, changed alike."""
        four = (self.weight, self.delta, self.product, self.value)
        weight, delta, product, value = (change(size) for size in four)
        return Magnitudes(weight=weight, delta=delta, product=product, value=value)


@dataclass(frozen=True, kw_only=True)
class BoundTerms:
    """What the bounds are made of, all float64 and of one shape, and the facts that scale them.

    `factor` and `shares` are DoRA's, as in `steps.Parts`: 1 and 0 where there is none.
    """

    exact: Array
    weight: Array
    delta: Array
    magnitude: Array
    rank: int
    storage: str
    factor: Array | None
    shares: Magnitudes | None
    length: int

    def only(self, which: Array) -> BoundTerms:
        """The same of some elements, in one dimension."""
        factor = None if self.factor is None else self.factor[which]
        shares = None if self.shares is None else self.shares.map(lambda size: size[which])
        exact, weight, delta, magnitude = (
            size[which] for size in (self.exact, self.weight, self.delta, self.magnitude)
        )
        return replace(self, exact=exact, weight=weight, delta=delta, magnitude=magnitude, factor=factor, shares=shares)


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """A way to merge, by name; `bound` gives the error of W + D, and `rounds` the roundings to storage in DoRA's factor."""

    name: str
    bound: Callable[[Magnitudes, int, float], Array]  # sizes, rank, the storage dtype's unit
    unit: float = UNIT["F32"]
    rounds: float = 0.0


def _accumulated(sizes: Magnitudes, rank: int, unit: float) -> Array:
    bound: Array = unit * ((rank + 4) * sizes.product + 2 * sizes.value)
    return bound


def _float64(sizes: Magnitudes, rank: int, stored: float) -> Array:
    return _accumulated(sizes, rank, UNIT["F64"])


def _float32(sizes: Magnitudes, rank: int, stored: float) -> Array:
    return _accumulated(sizes, rank, UNIT["F32"])


def _delta_rounded(sizes: Magnitudes, rank: int, stored: float) -> Array:
    return _float32(sizes, rank, stored) + 1.01 * stored * sizes.delta


def _product_rounded(sizes: Magnitudes, rank: int, stored: float) -> Array:
    # A, B, their product, the scaling and the scaled product: five roundings.
    return _float32(sizes, rank, stored) + 5.1 * stored * sizes.product


def _base_rounded(sizes: Magnitudes, rank: int, stored: float) -> Array:
    return _product_rounded(sizes, rank, stored) + 1.01 * stored * sizes.weight


# DoRA in the storage dtype: V, the norm, m/‖V‖ and the product are rounded: four roundings, of which the last is counted apart.
ARITHMETICS = (
    Arithmetic(name="exact, rounded once", bound=_float64, unit=UNIT["F64"]),
    Arithmetic(name="float32 accumulation, then one rounding", bound=_float32),
    Arithmetic(name="delta rounded to the storage dtype, then added", bound=_delta_rounded, rounds=4.1),
    Arithmetic(name="the product computed in the storage dtype, then added", bound=_product_rounded, rounds=4.1),
    Arithmetic(name="base cast first, then all in the storage dtype", bound=_base_rounded, rounds=4.1),
)
EXACT = 0
NONE_FITS = len(ARITHMETICS)


def error(terms: BoundTerms, which: int) -> Array:
    """How far the value before the last rounding may lie from the exact one."""
    arithmetic, stored = ARITHMETICS[which], UNIT[terms.storage]
    sizes = Magnitudes(
        weight=np.abs(terms.weight),
        delta=np.abs(terms.delta),
        product=terms.magnitude,
        value=np.abs(terms.weight + terms.delta),
    )
    bound = arithmetic.bound(sizes, terms.rank, stored)
    if terms.factor is None or terms.shares is None:
        return bound
    norms = arithmetic.bound(terms.shares, terms.rank, stored)
    # Outside the rectangles of DoRA `shares` are 0 and `factor` is 1: only its own terms are left.
    relative = norms + ((terms.length + 8) * arithmetic.unit + arithmetic.rounds * stored) * (terms.shares.value > 0)
    passed_on: Array = np.abs(terms.factor) * bound + np.abs(terms.exact) * relative
    return passed_on


def fits(terms: BoundTerms, stored: Array, which: int) -> Array:
    """Where `stored` (as float64) is what some value within the bound rounds to. Rounding is monotonic, so the ends decide."""
    bound = error(terms, which)
    low, high = round_once(terms.exact - bound, terms.storage), round_once(terms.exact + bound, terms.storage)
    within: Array = (low <= stored) & (stored <= high)
    return within


def tightest(terms: BoundTerms, stored: Array) -> int:
    """The first arithmetic that explains every element, or NONE_FITS."""
    for which in range(len(ARITHMETICS)):
        if bool(fits(terms, stored, which).all()):
            return which
    return NONE_FITS


def name_of(which: int) -> str:
    """Its name, for the reader; below NONE_FITS."""
    return ARITHMETICS[which].name
