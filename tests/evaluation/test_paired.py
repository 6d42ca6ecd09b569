"""Flips, their exact test and their interval are those of the textbooks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import pytest

from bot.evaluation.paired import Z, compared, interval, mcnemar


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (0, 7), (3, 9), (25, 25), (410, 480)])
def test_the_p_value_is_the_exact_binomial_one(gained: int, lost: int) -> None:
    """All ways to split the flips that are no likelier than this one, added up as fractions."""
    flips = gained + lost
    ways = (math.comb(flips, one_kind) for one_kind in range(flips + 1))
    exact = Fraction(sum(way for way in ways if way <= math.comb(flips, gained)), 2**flips)
    assert mcnemar(gained, lost) == pytest.approx(float(exact), rel=1e-9)
    assert mcnemar(3, 9) == 0.14599609375


def test_the_interval_is_bonett_and_prices() -> None:
    # Their p. 479: (n12 + 1) / (N + 2) less (n21 + 1) / (N + 2), with the variance of that difference.
    low, high = interval(100, 12, 4)
    up, down = 13 / 102, 5 / 102
    half = 1.959964 * math.sqrt((up + down - (up - down) ** 2) / 102)
    assert (low, high) == pytest.approx((up - down - half, up - down + half))
    assert low < 0.08 < high


def samples(count: int, gained: int, lost: int) -> Iterator[tuple[int, int]]:
    yield from [(0, 1)] * gained + [(1, 0)] * lost + [(1, 1)] * (count - gained - lost)


def test_gains_and_losses_are_counted_apart() -> None:
    first, second = zip(*samples(20, 3, 2), strict=True)
    made = compared(first, second)
    assert (made["samples"], made["gained"], made["lost"], made["difference"]) == (20, 3, 2, pytest.approx(0.05))
    assert made["interval"][0] < 0 < made["interval"][1]


def test_without_a_flip_the_interval_still_has_a_width() -> None:
    low, high = interval(10, 0, 0)
    assert low == -high
    assert high == pytest.approx(Z * math.sqrt((2 / 12) / 12))
    assert compared([], [])["p"] == 1.0
