"""Of the elements that differ, those within float64's own error are undecided, and the first that is not is the example."""

from __future__ import annotations

import numpy as np

from bot.checks.elementwise.arithmetic import BoundTerms
from bot.checks.elementwise.row_comparisons import _blame
from bot.checks.elementwise.stored_rounding import round_once
from bot.checks.elementwise.tally import Tally
from tests.checks.elementwise.test_what_is_said_of_the_counts import tally

STEP = 2.0**-7  # of bfloat16, from 1 on


def blamed(changes: dict[tuple[int, int], float]) -> Tally:
    """Ones and a half step, less nothing that float64 holds: which way they round is within its error."""
    exact = np.full((3, 4), 1 + STEP / 2)
    right = round_once(exact, "BF16")
    actual = right.copy()
    for place, value in changes.items():
        actual[place] = value
    zero = np.zeros_like(exact)
    terms = BoundTerms(exact=exact, weight=exact, delta=zero, magnitude=zero, rank=1, storage="BF16", factor=None,
                       shares=None, length=0)  # fmt: skip
    counts = tally("q")
    _blame(counts, terms, right, actual, low=10)
    return counts


def test_the_example_is_the_first_that_is_wrong_and_not_one_that_is_undecided() -> None:
    counts = blamed({(0, 1): 1 + STEP, (1, 2): 1.5, (2, 3): 2.0})
    assert (counts.undecided, counts.wrong) == (1, 2)
    assert counts.example == "[11, 2] is 1.5, not 1"


def test_what_is_undecided_is_no_example() -> None:
    counts = blamed({(0, 1): 1 + STEP, (2, 2): 1 + STEP})
    assert (counts.undecided, counts.wrong, counts.example, counts.arithmetic) == (2, 0, "", 0)
