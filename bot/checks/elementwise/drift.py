"""Whether a foreign merge's deviations lean to one side: a rounding has no bias, and a scaling that is 1 % off has.

Each element's exact value x lies at some distance from the nearest place at which rounding changes over. Whatever unbiased error an
arithmetic makes before its last rounding, it crosses that place as often outward (x lies short of it, and the stored number
beyond) as inward, *among elements at the same distance*, however many there are on either side. So in each stratum of distance
the crossings are held to the numbers at risk, as Mantel and Haenszel do (1959): with Oᵦ of Nᵦ and Iᵦ of Mᵦ, and p = (O+I)/(N+M),

    T = Σ_b (Oᵦ − p·Nᵦ) − (Iᵦ − p·Mᵦ)

has the expectation 0. Where the delta is 1 + η times what it should be, each place is crossed outward by η·|D|, so that
T = η · Σ|D| · (elements per unit of distance) whatever the error's distribution, which gives η. Outward is along D for a wrong
scaling, and away from zero for a truncation.

The error of T. A rounded factor of B shifts a row, one of A a column, and the others one element: T is a sum of terms that are
independent between rows, and of terms that are independent between columns. Each is bounded by its own clusters' sums of squares,
and the squares add up (Cameron, Gelbach and Miller 2011, without the overlap that they take off: on the safe side). For
independent symmetric terms |Σ y| > t·√Σ y² has a probability of at most 2·exp(−t²/2), whatever their distribution (Efron 1969, by
Hoeffding's inequality). With n questions asked of one model, t = √(2·ln(2n/10⁻⁶)): fewer than one false alarm in a million models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from bot.checks.elementwise.stored_rounding import EXPONENT, SMALLEST, UNIT, round_once
from bot.checks.reading.stored_numbers import Array

STRATA = 32  # of distance: two for each halving
GROUPS = 1024  # rows (columns) whose numbers are equal modulo this count as one cluster
NEAR = 1 / 8  # of the half spacing: elements that count for the density at the places themselves
ALARMS = 1e-6  # false ones, per model
# Of a slope, in units of the storage dtype; no finding below. Where a change-over lies at a power of two of the delta, as the first
# one often does, a rounded delta comes to it from above with errors twice as large as from below: a slope of a quarter unit.
FLOOR = 0.5
TOWARD = 0.05  # spacings by which elements lie nearer to zero on average, or farther; one that is smaller is no finding
LARGE = 256  # spacings: where the delta is larger than the sum by far, a rounding of it is as large as many
SMALL = 4  # and where it is smaller than this, no error of its own can pass for a truncation of the sum
EVEN = 0.05  # how far from a half the share of weights may be whose last bit is 0: ties to even lean where it is not
MUCH = 0.05  # a slope beyond this is not measured any more: so large a one crosses several places at a time
STEPS = 4  # spacings that one element counts for, at most


# The number that ends in the last bit of a stored one of 16 or 32 bits, and the bits below it.
LAST: dict[str, tuple[Any, Any, int]] = {
    "BF16": (np.float32, np.uint32, 16),
    "F16": (np.float16, np.uint16, 0),
    "F32": (np.float32, np.uint32, 0),
}


class RoundedRows:
    """Some rows of a weight with its delta, and what is stored of their sum, all float64; see the module. `dtype`: of what is stored.
    `size`: |D| in spacings, `short`: x lies nearer to zero than the change-over, `stratum`: of its distance from there, `steps`:
    spacings from where x belongs."""

    def __init__(self, weight: Array, delta: Array, stored: Array, dtype: str) -> None:
        self.delta, self.exact = delta, weight + delta
        power = (self.exact.view(np.uint64) & EXPONENT).view(np.float64)
        spacing = np.maximum(power * (2 * UNIT[dtype]), SMALLEST[dtype])
        self.size = np.abs(delta) / spacing
        self.usable = np.isfinite(self.exact) & np.isfinite(stored) & (self.size < LARGE)
        position = (np.modf(np.abs(self.exact) / spacing)[0] - 0.5) * 2
        self.short = position < 0
        distance = np.clip(np.abs(position), 2.0 ** (-STRATA / 2), 0.999)
        self.near = distance < NEAR
        # The exponent and the first bit behind it: two strata for each halving.
        self.stratum = (distance.view(np.int64) >> 51) - ((1023 - STRATA // 2) << 1)
        self.steps = np.clip(np.rint((stored - round_once(self.exact, dtype)) / spacing), -STEPS, STEPS)
        own = round_once(weight, dtype)
        held_as, bits, below = LAST[dtype]
        even = (own.astype(held_as).view(bits) >> below & 1) == 0
        self.weights = int(np.count_nonzero(own))
        self.even = int(np.count_nonzero(even & (own != 0)))


@dataclass(kw_only=True)
class Drift:
    """Counts of one tensor against one reference; see the module. Counts of parts of a tensor add up."""

    outward: Literal["delta", "zero"] = "delta"
    risk: Array = field(default_factory=lambda: np.zeros((2, STRATA)))  # outward, inward
    crossed: Array = field(default_factory=lambda: np.zeros((2, STRATA)))
    rows: Array = field(default_factory=lambda: np.zeros(GROUPS))
    columns: Array = field(default_factory=lambda: np.zeros(GROUPS))
    reach: float = 0.0  # Σ |D| in spacings, of the elements that are near
    elements: int = 0
    weights: int = 0  # that are not zero, and how many of them end in a bit that is 0
    even: int = 0

    def add(self, other: Drift) -> None:
        """Join the counts of another part."""
        self.risk += other.risk
        self.crossed += other.crossed
        self.rows += other.rows
        self.columns += other.columns
        for name in ("reach", "elements", "weights", "even"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def count(self, seen: RoundedRows, first: int) -> None:
        """Count rows `first`… of what was seen."""
        along = np.sign(seen.delta) if self.outward == "delta" else np.sign(seen.exact) * (seen.size < SMALL)
        used = seen.usable & (along != 0)
        upward = (along > 0) == (seen.exact > 0)  # outward, seen from zero
        inward = seen.short != upward
        moved = np.where(used, seen.steps * along, 0.0)
        crossing = np.where(inward, moved < 0, moved > 0)
        cell = seen.stratum + STRATA * inward + 2 * STRATA * crossing
        counts = np.bincount(cell[used], minlength=4 * STRATA).reshape(2, 2, STRATA)
        self.risk += counts.sum(axis=0)
        self.crossed += counts[1]
        np.add.at(self.rows, np.arange(first, first + moved.shape[0]) % GROUPS, moved.sum(axis=1))
        np.add.at(self.columns, np.arange(moved.shape[1]) % GROUPS, moved.sum(axis=0))
        self.reach += float(seen.size[used & seen.near].sum())
        self.elements += int(np.count_nonzero(used))
        self.weights += seen.weights
        self.even += seen.even

    @property
    def can_tell(self) -> bool:
        """Whether ties to even go up as often as down: of weights whose last bits are no coin's, they need not."""
        return self.reach > 0 and abs(self.even - self.weights / 2) <= EVEN * self.weights

    @property
    def total(self) -> float:
        """T."""
        return float(self.rows.sum()) - self._by_density

    @property
    def _by_density(self) -> float:
        """How many more would have crossed outward than inward, were both as likely: of different numbers at risk."""
        share = self.crossed.sum(axis=0) / np.maximum(self.risk.sum(axis=0), 1)
        return float((share * (self.risk[0] - self.risk[1])).sum())

    @property
    def variance(self) -> float:
        """A bound's square over t², for T."""
        total = 0.0
        for sums in (self.rows, self.columns):
            clusters = max(1, int((sums != 0).sum()))
            total += float(np.square(sums[sums != 0] - self._by_density / clusters).sum())
        return total

    @property
    def unit(self) -> float:
        """What T is where η is 1."""
        return self.reach / NEAR


Drifts = dict[tuple[str, str], Drift]  # by reference and by what is outward
AS_STORED, CAST, CAST_TO_HALF = "as stored", "cast first", "cast to float16 first"


def measure(drifts: Drifts, weight: Array, exact: Array, stored: Array, dtype: str, first: int, *, wider: bool) -> None:
    """Count some rows, all float64; `dtype`: what they are stored in. `wider`: the base's dtype is not that, so that somebody may
    have cast it first, which loses what no dither brings back: such a merge is held to the cast base as well."""
    delta = exact - weight
    references = {AS_STORED: weight}
    if wider:
        references |= {CAST: round_once(weight, dtype), CAST_TO_HALF: round_once(weight, "F16")}
    with np.errstate(all="ignore"):  # NaN and infinity are not used
        for name, own in references.items():
            seen = RoundedRows(own, delta, stored, dtype)
            for outward in ("delta", "zero"):
                drift = drifts.setdefault((name, outward), Drift(outward="delta" if outward == "delta" else "zero"))
                drift.count(seen, first)


def join(drifts: Drifts, other: Drifts) -> None:
    """Add the counts of another part of the tensor."""
    for key, drift in other.items():
        drifts.setdefault(key, Drift(outward=drift.outward)).add(drift)


@dataclass(kw_only=True)
class DriftSums:
    """T, the square of its error over t², what T is where η is 1, and the elements: of several tensors, which add up."""

    total: float = 0.0
    variance: float = 0.0
    unit: float = 0.0
    elements: int = 0

    def __init__(self, drifts: Iterable[Drift]) -> None:
        for drift in drifts:
            self.total += drift.total
            self.variance += drift.variance
            self.unit += drift.unit
            self.elements += drift.elements


def lean(tensors: Sequence[Drifts], questions: int, scalings: Sequence[float], storage: str) -> str:
    """What is wrong with the scaling, or with the rounding, over all of these tensors; "" where some reference explains them.

    `questions`: of how many the false alarms are to be rare; `scalings`: the adapter's, which may have been rounded to the
    storage dtype.
    """
    sure = math.sqrt(2 * math.log(2 * questions / ALARMS))
    sentence = ""
    for name in dict.fromkeys(name for drifts in tensors for name, _ in drifts):
        asked = [drifts for drifts in tensors if (name, "delta") in drifts and drifts[name, "delta"].can_tell]
        along, away = (DriftSums(drifts[name, outward] for drifts in asked) for outward in ("delta", "zero"))
        leaning = (_scaled(along, sure, scalings, storage) or _truncated(away, sure)) if along.unit else ""
        if not leaning:
            return ""
        sentence = sentence or leaning
    return sentence


def _scaled(sums: DriftSums, sure: float, scalings: Sequence[float], storage: str) -> str:
    slope, error = sums.total / sums.unit, sure * math.sqrt(sums.variance) / sums.unit
    held = {scaling: float(round_once(np.array([scaling]), storage)[0]) for scaling in scalings if scaling}
    rounded = [0.0, *(narrow / scaling - 1 for scaling, narrow in held.items())]
    excess = slope - min(max(slope, min(rounded)), max(rounded))
    if abs(excess) <= FLOOR * UNIT[storage] + error:
        return ""
    if abs(slope) > MUCH:
        return f"its delta is off by {MUCH:.0%} or more"
    return f"its delta is {1 + slope:.4f} ± {error / sure:.4f} times what it should be"


def _truncated(sums: DriftSums, sure: float) -> str:
    mean, error = sums.total / max(1, sums.elements), sure * math.sqrt(sums.variance) / max(1, sums.elements)
    if abs(mean) <= TOWARD + error:
        return ""
    direction = "toward zero" if mean < 0 else "away from zero"
    return f"it is rounded {direction}, not to nearest: by {abs(mean):.2f} of a unit in the last place on average"
