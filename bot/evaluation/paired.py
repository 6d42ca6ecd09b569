"""Two models on the same samples: how many answers became right or wrong, and what chance alone would make of that."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bot.report_document import Json

Z = 1.959964  # of a two-sided 95 % interval


def compared(first: Sequence[float], second: Sequence[float]) -> Json:
    """The paired table of two lists of 0 and 1, in the same order; `first` is the model that the other is held to.

    Flips, not accuracy, are the measure of likeness (arXiv 2407.09141): gains and losses cancel in the accuracy.
    """
    pairs = list(zip(first, second, strict=True))
    lost, gained = (sum(pair == flip for pair in pairs) for flip in ((1, 0), (0, 1)))
    low, high = interval(len(pairs), gained, lost)
    return {
        "samples": len(pairs),
        "lost": lost,
        "gained": gained,
        "difference": (gained - lost) / len(pairs) if pairs else 0.0,
        "interval": [low, high],
        "p": mcnemar(gained, lost),
    }


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value of McNemar's test: how often a fair coin would split the flips as unevenly, or more so."""
    flips, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(flips, count) for count in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**flips))


def interval(samples: int, gained: int, lost: int) -> tuple[float, float]:
    """The 95 % interval of the difference in accuracy, Bonett and Price's adjusted Wald interval for paired proportions:
    one flip of each kind is added, so that it is sound for few flips (J. Educ. Behav. Stat. 37(4), 2012, p. 479)."""
    up, down = (gained + 1) / (samples + 2), (lost + 1) / (samples + 2)
    half = Z * math.sqrt((up + down - (up - down) ** 2) / (samples + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)
