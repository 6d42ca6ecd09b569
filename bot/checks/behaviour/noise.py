"""K and its error: how far the merged model lies from the unmerged one, in units of what rounding costs.

Plain sums would be ruled by the few tokens that a model happens to be sensitive at (in a mixture, where a choice hangs by
a hair). So each token is weighed by its own noise, as the controls show it, and none counts for more than CAP times that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

QUIET = 0.1  # of the mean noise: tokens with less than this count by this, or float noise would rule there
CAP = 32.0  # times its noise that one token counts at most
CERTAIN = 3.0  # standard errors that K may lie above what rounding allows
PLAIN = 4.0  # times the limit: so far off that more prompts would say the same
SLOP = 1.02  # two computations of the same merge differ by float noise, at a token or two
NEVER = 1e9  # K where the controls lose nothing and the merge does
Prompts = Sequence[Sequence[float]]  # distances: prompt by prompt, token by token


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """`k`: the merge's distance over the controls'; `nearest`: the same of a merge by PEFT's own numbers, rounded to nearest
    (None: not made). `error`: the relative standard error of a single rounding held to the mean of the controls."""

    k: float
    nearest: float | None
    error: float
    controls: int

    @property
    def expected(self) -> float:
        """The most that rounding to nearest explains: as far as a control, or as the nearest merge where that lies farther."""
        return max(1.0, SLOP * (self.nearest or 0.0))

    @property
    def limit(self) -> float:
        """What K may be: beyond it no rounding explains the distance, but for one merge in thousands."""
        return self.expected + CERTAIN * self.error

    @property
    def settled(self) -> bool:
        """Whether more prompts and more controls could not change the answer."""
        return self.k <= self.expected or self.k > PLAIN * self.limit


def ratio(merged: Prompts, controls: Sequence[Prompts], nearest: Prompts | None) -> Ratio:
    """K of one merge. All have the same prompts of the same lengths. 0 ÷ 0 is 0: nothing was lost."""
    drawn = [_flat(draw) for draw in controls]
    # A single control would rule its own weights: the merge's distances stand in for another.
    noise = [fmean(token) for token in zip(*drawn, *([] if len(drawn) > 1 else [_flat(merged)]), strict=True)]
    quiet = QUIET * fmean(noise)
    if not any(map(any, drawn)):  # no rounding happened: then neither may the merge lose anything
        lost = sum(_flat(merged)) > 0.0
        return Ratio(k=NEVER if lost else 0.0, nearest=None, error=0.0, controls=len(drawn))
    weights = [1.0 / (size + quiet) for size in noise]
    sums = [_weighed(draw, weights) for draw in drawn]
    scale = fmean(sums)
    spread = stdev(sums) / scale if len(sums) > 1 else _jackknife(merged, controls[0], weights)
    return Ratio(
        k=_weighed(_flat(merged), weights) / scale,
        nearest=None if nearest is None else _weighed(_flat(nearest), weights) / scale,
        error=spread * math.sqrt(1.0 + 1.0 / len(sums)) if len(sums) > 1 else spread,
        controls=len(drawn),
    )


def more_flips(merged: int, most: int) -> bool:
    """Whether a merge flips more of its routers' choices than correct roundings do at the most, beyond chance."""
    return merged > most + CERTAIN * math.sqrt(most) + CERTAIN


def _flat(prompts: Prompts) -> list[float]:
    return [token for prompt in prompts for token in prompt]


def _weighed(tokens: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(min(CAP, token * weight) for token, weight in zip(tokens, weights, strict=True))


def _jackknife(merged: Prompts, control: Prompts, weights: Sequence[float]) -> float:
    """The standard error over prompts of a ratio to one control, relative to it."""
    at, pairs = 0, []
    for prompt, control_prompt in zip(merged, control, strict=True):
        own = weights[at : at + len(prompt)]
        at += len(prompt)
        pairs.append((_weighed(prompt, own), _weighed(control_prompt, own)))
    tops, bottoms = math.fsum(top for top, _ in pairs), math.fsum(bottom for _, bottom in pairs)
    left = [(tops - top) / (bottoms - bottom) for top, bottom in pairs if bottoms > bottom]
    if len(left) < 2 or tops <= 0.0:
        return 0.0
    mean = fmean(left)
    error = math.sqrt(
        (len(left) - 1) / len(left) * math.fsum((estimate - mean) * (estimate - mean) for estimate in left)
    )
    return error * bottoms / tops
