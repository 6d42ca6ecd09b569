"""What the workers of the full proof answered, and the sums over it: K, the noise floor, what no rounding explains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from bot.checks.behaviour.job import Distance, MergedAnswer, ReferenceAnswer, Stopped
from bot.checks.behaviour.noise import Ratio, more_flips, ratio
from bot.records import Json

NOISE = 1e-28  # a distance that float64 compute makes by itself: (100 units of 2⁻⁵³)²; float32 compute never gets there
# Of what rounding costs; of weights that PEFT's layers never stood before, a hundredth of that. (Float32 compute makes a
# millionth of what it costs to round to bfloat16.)
NEGLIGIBLE = 1e-2
LEAST = 1e-4  # of the largest of a control's distances inside the model: below it a module's own is float noise
DOUBTFUL = 0.75  # K of a large model, by one control only, that is looked at again: theory says 0.5


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the workers answered. `expected`: the parameters that the adapter's method changes, by this verifier's own reading.

    `comparison`: a row for each way to use a quantised base or result; None where neither is.
    """

    reference: ReferenceAnswer | Stopped
    merged: MergedAnswer | Stopped
    expected: frozenset[str]
    comparison: list[Json] | Stopped | None = None
    answers: tuple[Json, ...] = ()  # a row for each prompt that the models were asked
    unanswered: str = ""  # why they were not, where they should have been

    @property
    def device(self) -> str | None:
        """The name of what the models ran on, as the workers found it; None where none has run."""
        ran = (answer.device for answer in (self.reference, self.merged) if not isinstance(answer, Stopped))
        return ", ".join(dict.fromkeys(filter(None, ran))) or None

    @property
    def failed(self) -> str | None:
        """Why a model could not be run, whatever is to blame; None where all ran, or none was to."""
        answers = (self.reference, self.merged, self.comparison)
        stops = (answer for answer in answers if isinstance(answer, Stopped))
        return next((stop.why for stop in stops if stop.unrunnable or stop.status == "error"), None)

    @property
    def lost_device(self) -> str | None:
        """How the GPU failed; None where it did not."""
        answers = (self.reference, self.merged, self.comparison)
        return next((answer.why for answer in answers if isinstance(answer, Stopped) and answer.of_device), None)

    @property
    def unrunnable(self) -> str | None:
        """Why this installation cannot run the models at all, whatever the merge is worth; None where it can."""
        answers = (self.reference, self.merged, self.comparison)
        return next((answer.why for answer in answers if isinstance(answer, Stopped) and answer.unrunnable), None)

    @property
    def lost(self) -> str | None:
        """The model whose outputs are NaN or infinite, if one's are."""
        ran = None if isinstance(self.reference, Stopped) else self.reference
        control = [distance for draw in ran.controls for distance in draw] if ran else []
        by_model = {"base": ran.base if ran else [], "control": control, "merged": self._merged}
        lost = [name for name, distances in by_model.items() if not math.isfinite(_sum(distances))]
        # What the unmerged model gave is in every distance.
        sizes = [distance.size for distance in control] if ran and ran.kind == "squared" else []
        return (
            "unmerged" if len(lost) == len(by_model) or not all(map(math.isfinite, sizes)) else next(iter(lost), None)
        )

    @property
    def measured(self) -> bool:
        """Whether there is something to compare, and all of it is finite."""
        return bool(self._merged) and isinstance(self.reference, ReferenceAnswer) and not self.lost

    @property
    def _ran(self) -> ReferenceAnswer:
        assert isinstance(self.reference, ReferenceAnswer)
        return self.reference

    @property
    def _merged(self) -> list[Distance]:
        return [] if isinstance(self.merged, Stopped) else self.merged.distances or []

    @cached_property
    def ratio(self) -> Ratio:
        """K. To be asked for only where something was measured."""
        nearest, controls = self._ran.nearest, self._ran.controls
        return ratio(_tokens(self._merged), [*map(_tokens, controls)], None if nearest is None else _tokens(nearest))

    @property
    def flips(self) -> tuple[int, int]:
        """How many of its routers' choices the merge would have made otherwise; and a correct rounding, at the most."""
        return _count(self._merged, "changed_choices"), max(
            _count(distances, "changed_choices") for distances in self._stood_in
        )

    @property
    def _stood_in(self) -> list[list[Distance]]:
        return [*self._ran.controls, *filter(None, [self._ran.nearest])]

    @property
    def systematic(self) -> float:
        """How far the exact merge, not rounded at all, lies from the unmerged model, as a share of the adapter's effect. 0.0
        where it was not measured, or is nothing beside a rounding."""
        exact, effect = self._ran.exact, _sum(self._ran.base)  # with the exact merge, the base is given every prompt
        least = NEGLIGIBLE * _sum(self._ran.controls[0]) / (100 if self._ran.uncalled else 1)
        if exact is None or _sum(exact) <= max(NOISE, least):
            return 0.0
        return _sum(exact) / effect if effect > 0.0 else math.inf

    @property
    def settled(self) -> bool:
        """Whether another round, with more prompts and controls, could not change what is found."""
        if not self.measured:
            return True
        flips = more_flips(*self.flips)
        if self._ran.thorough:
            return self.ratio.settled and not flips
        return self.ratio.k <= DOUBTFUL and not flips and not self._ran.uncalled

    @property
    def noise_floor(self) -> Json | None:
        """What the document says about the size of things; None where nothing was measured, or nothing that is finite."""
        if not self.measured:
            return None
        merged, controls, base = self._merged, self._ran.controls, self._ran.base
        positions, scale = _count(merged, "positions"), self._scale(merged)
        return {
            "metric": "KL, nats per token" if self._ran.kind == "kl" else "relative squared error",
            "floor": sum(map(_sum, controls)) / len(controls) / scale,  # what one correct, stochastic rounding costs
            "merged": _sum(merged) / scale,
            "adapter": _sum(base) / self._scale(base),  # how far the tune moves the base
            "ratio": self.ratio.k,
            "nearest": self.ratio.nearest,
            "standard_error": self.ratio.k * self.ratio.error,
            "limit": self.ratio.limit,
            "controls": self.ratio.controls,
            "systematic": None if self._ran.exact is None else self.systematic,
            "positions": positions,
            "top1_agreement": _count(merged, "agree") / positions,
            "routing": self._routing(),
        }

    def _scale(self, distances: list[Distance]) -> float:
        """What their sum is a part of: the tokens, or the squared norm of what was wanted."""
        if self._ran.kind == "kl":
            return _count(distances, "positions")
        return sum(distance.size for distance in distances) or 1.0

    @property
    def probe(self) -> list[Json]:
        """Module by module, in the order of execution: how far the controls (in the mean) and the merged model lie from the unmerged
        one, as ‖h′ − h‖² / ‖h‖²; null where that is NaN or infinite. [] where it was not measured."""
        return [
            {"module": module, "control": _finite(control), "merged": _finite(merged)}
            for module, control, merged in self._probed
        ]

    @property
    def starts_at(self) -> str | None:
        """The first module at which the merge lies farther off than rounding explains, or is not finite; None where none does."""
        limit = self.ratio.limit if self.measured else 1.0
        least = max(NOISE, LEAST * max((control for _, control, _ in self._probed), default=0.0))
        beyond = (
            module
            for module, control, merged in self._probed
            if not math.isfinite(merged) or merged > max(least, limit * control)
        )
        return next(beyond, None)

    @property
    def _probed(self) -> list[tuple[str, float, float]]:
        if isinstance(self.reference, Stopped) or isinstance(self.merged, Stopped):
            return []
        merged = {row.module: row.relative for row in self.merged.probe}
        return [(row.module, row.relative, merged[row.module]) for row in self.reference.probe if row.module in merged]

    def _routing(self) -> Json | None:
        """Of a mixture of experts: how many of its routers' choices were held, and the share that would have been others."""
        merged, others = self._merged, self._stood_in
        choices, free = _count(merged, "choices"), _count(merged, "free")
        if not self._ran.mixture and not choices:
            return None
        shares = [_count(distances, "changed_choices") / max(1, choices) for distances in (merged, *others)]
        control = sum(shares[1:]) / len(others)
        return {"choices": choices, "free_calls": free, "flipped": shares[0], "flipped_control": control}


def _tokens(distances: list[Distance]) -> list[list[float]]:
    return [distance.tokens for distance in distances]


def _count(distances: list[Distance], what: str) -> int:
    return sum(getattr(distance, what) for distance in distances)


def _sum(distances: list[Distance]) -> float:
    return float(sum(distance.far for distance in distances))


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
