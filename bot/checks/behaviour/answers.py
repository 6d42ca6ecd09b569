"""What the workers of the full proof answered, and the sums over it: K, the noise floor, what no rounding explains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from bot.checks.behaviour.noise import Ratio, more_flips, ratio
from bot.records import Json

NOISE = 1e-28  # a distance that float64 compute makes by itself: (100 units of 2⁻⁵³)²; float32 compute never gets there
NEGLIGIBLE = (
    1e-2  # of what rounding costs; of weights that PEFT's layers never stood before, a hundredth of that. (Float32
)
# compute makes a millionth of what it costs to round to bfloat16.)
DOUBTFUL = 0.75  # K of a large model, by one control only, that is looked at again: theory says 0.5


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the workers answered: {"error"}, {"skip"}, or what their role found.

    `comparison`: {"rows"} of the ways to use a quantised base or result; None where neither is.
    """

    reference: Json
    merged: Json
    expected: frozenset[str]  # parameters that the adapter's method changes, by this verifier's own reading
    comparison: Json | None = None

    @property
    def beyond(self) -> str | None:
        """Why this installation cannot run the models at all, whatever the merge is worth; None where it can."""
        answers = (self.reference, self.merged, self.comparison or {})
        return next((str(one["skip"]) for one in answers if one.get("beyond")), None)

    @property
    def lost(self) -> str | None:
        """The model whose outputs are NaN or infinite, if one's are."""
        controls = self.reference.get("controls") or [[]]
        given = {"base": self.reference.get("base") or [], "control": [one for draw in controls for one in draw]}
        given["merged"] = self.merged.get("merged") or []
        lost = [name for name, some in given.items() if not math.isfinite(_sum(some))]
        # What the unmerged model gave is in every distance.
        wanted = [one["size"] for one in given["control"]] if self.reference.get("kind") == "squared" else []
        return "unmerged" if len(lost) == len(given) or not all(map(math.isfinite, wanted)) else next(iter(lost), None)

    @property
    def measured(self) -> bool:
        """Whether there is something to compare, and all of it is finite."""
        return bool(self.merged.get("merged")) and "controls" in self.reference and not self.lost

    @cached_property
    def ratio(self) -> Ratio:
        """K. To be asked for only where something was measured."""
        nearest, controls = self.reference["nearest"], self.reference["controls"]
        return ratio(_tokens(self.merged["merged"]), [*map(_tokens, controls)], nearest and _tokens(nearest))

    @property
    def flips(self) -> tuple[int, int]:
        """How many of its routers' choices the merge would have made otherwise; and a correct rounding, at the most."""
        return _count(self.merged["merged"], "flipped"), max(_count(one, "flipped") for one in self._stood_in)

    @property
    def _stood_in(self) -> list[list[Json]]:
        return [*self.reference["controls"], *filter(None, [self.reference["nearest"]])]

    @property
    def systematic(self) -> float:
        """How far the exact merge, not rounded at all, lies from the unmerged model, as a share of the adapter's effect. 0.0
        where it was not measured, or is nothing beside a rounding."""
        exact, effect = self.reference["exact"], _sum(self.reference["base"])
        least = NEGLIGIBLE * _sum(self.reference["controls"][0]) / (100 if self.reference["uncalled"] else 1)
        if exact is None or _sum(exact) <= max(NOISE, least):
            return 0.0
        return _sum(exact) / effect if effect > 0.0 else math.inf

    @property
    def settled(self) -> bool:
        """Whether another round, with more prompts and controls, could not change what is found."""
        if not self.measured:
            return True
        flips = more_flips(*self.flips)
        if self.reference["thorough"]:
            return self.ratio.settled and not flips
        return self.ratio.k <= DOUBTFUL and not flips and not self.reference["uncalled"]

    @property
    def noise_floor(self) -> Json | None:
        """What the document says about the size of things; None where nothing was measured, or nothing that is finite."""
        if not self.measured:
            return None
        merged, controls, base = self.merged["merged"], self.reference["controls"], self.reference["base"]
        positions = _count(merged, "positions")
        scale = positions if self.reference["kind"] == "kl" else sum(one["size"] for one in merged) or 1.0
        return {
            "metric": "KL, nats per token" if self.reference["kind"] == "kl" else "relative squared error",
            "floor": sum(map(_sum, controls)) / len(controls) / scale,  # what one correct, stochastic rounding costs
            "merged": _sum(merged) / scale,
            "adapter": _sum(base) / scale,  # how far the tune moves the base
            "ratio": self.ratio.k,
            "nearest": self.ratio.nearest,
            "standard_error": self.ratio.k * self.ratio.error,
            "limit": self.ratio.limit,
            "controls": self.ratio.controls,
            "systematic": None if self.reference["exact"] is None else self.systematic,
            "positions": positions,
            "top1_agreement": _count(merged, "agree") / positions,
            "routing": self._routing(),
        }

    def _routing(self) -> Json | None:
        """Of a mixture of experts: how many of its routers' choices were held, and the share that would have been others."""
        merged, others = self.merged["merged"], self._stood_in
        choices, free = _count(merged, "choices"), _count(merged, "free")
        if not self.reference["mixture"] and not choices:
            return None
        shares = [_count(one, "flipped") / max(1, choices) for one in (merged, *others)]
        control = sum(shares[1:]) / len(others)
        return {"choices": choices, "free_calls": free, "flipped": shares[0], "flipped_control": control}


def _tokens(distances: list[Json]) -> list[list[float]]:
    return [one["tokens"] for one in distances]


def _count(distances: list[Json], what: str) -> int:
    return int(sum(one[what] for one in distances))


def _sum(distances: list[Json]) -> float:
    return float(sum(one["far"] for one in distances))
