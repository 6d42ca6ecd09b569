"""What the sweep counts: per tensor, and how the counts of its parts add up."""

from __future__ import annotations

from dataclasses import dataclass, field

from bot.checks.elementwise.drift import Drifts, join
from bot.checks.expected.changes import Expected

COUNTS = "elements wrong undecided changed bad inherited unnumbered clamped kept power size".split()


@dataclass(kw_only=True)
class Tally:
    """Counts over one tensor, or over some of its rows. `stored`: the dtype that the merge has it in.

    `wrong`: elements that are not the correctly rounded result (touched) or not the base's bytes (untouched).
    `undecided`: of the touched, those that differ from the float64 result within float64's own error; not in `wrong`.
    `changed`: elements that differ from the base. `bad`: NaN or infinity where the base is finite; `inherited`: infinity
    where it is not, `unnumbered`: NaN. `clamped`: numbers too large for their dtype, where the merge was asked to clamp
    those.
    `keeps`: the dtypes in which the exact merge is not what the base is in them ("stored": in its own), as far as was
    looked, which is until one is; "any": the change is not exactly zero.
    `drifts`: of a foreign merge, which way its deviations lean.
    `kept`, `power` and `size` are <W'−W, D>, <D, D> and <W, W>, over the rows of a touched tensor whose numbers are finite and
    that the base has in this shape. `arithmetic` is the loosest that some part of the tensor needs.
    """

    key: str
    wanted: Expected
    stored: str = ""
    elements: int = 0
    wrong: int = 0
    undecided: int = 0
    changed: int = 0
    bad: int = 0
    inherited: int = 0
    unnumbered: int = 0
    clamped: int = 0
    kept: float = 0.0
    power: float = 0.0
    size: float = 0.0
    arithmetic: int = 0
    example: str = ""
    keeps: set[str] = field(default_factory=set)
    drifts: Drifts = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Join the counts of another part of the same tensor."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.arithmetic = max(self.arithmetic, other.arithmetic)
        self.keeps |= other.keeps
        if other.drifts:
            join(self.drifts, other.drifts)
        self.example = self.example or other.example

    @property
    def retention(self) -> float | None:
        """The share of the delta that survived rounding; None where the delta is zero."""
        return self.kept / self.power if self.power > 0 else None


@dataclass(frozen=True, kw_only=True)
class Swept:
    """The tallies of every tensor that is as expected in kind and shape; `skipped` names the others that both have.

    `packed`: those that the merged model stores quantised; they are held to the exact merge elsewhere.
    """

    tallies: dict[str, Tally]
    skipped: tuple[str, ...] = field(default=())
    packed: frozenset[str] = frozenset()

    @property
    def touched(self) -> list[Tally]:
        return [tally for tally in self.tallies.values() if tally.wanted.touched]

    @property
    def untouched(self) -> list[Tally]:
        return [tally for tally in self.tallies.values() if not tally.wanted.touched]
