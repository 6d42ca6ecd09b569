"""K of distances that are made up: what it must forgive, and what it must not."""

from __future__ import annotations

import random

import pytest

from bot.checks.behaviour.noise import more_flips, ratio

Prompts = list[list[float]]


def drawn(seed: int, scale: float = 1.0, degrees: int = 12) -> Prompts:
    """8 prompts of 40 tokens: each token's distance is its own noise times one chi-square, as rounding errors give it."""
    lengths, noise, chance = range(8), random.Random(0), random.Random(seed)
    loud = [[10.0 ** noise.uniform(-6, -2) for _ in range(40)] for _ in lengths]
    return [[scale * one * chance.gammavariate(degrees / 2, 2 / degrees) for one in tokens] for tokens in loud]


CONTROLS = [drawn(seed) for seed in range(8)]


def test_rounding_to_nearest_lies_half_as_far_as_the_controls():
    found = ratio(drawn(99, 0.5), CONTROLS, drawn(98, 0.5))
    assert 0.4 < found.k < 0.6
    assert found.settled
    assert 0.0 < found.error < 0.2, "its error is that of the controls' own spread"


def test_a_token_that_hangs_by_a_hair_does_not_decide():
    """One choice of an expert flips: as plain sums, K would be in the thousands."""
    merged = drawn(99, 0.5)
    merged[3][7] = 50.0
    assert ratio(merged, CONTROLS, None).k < 1.0
    assert sum(map(sum, merged)) > 10 * sum(map(sum, CONTROLS[0]))


def test_a_loud_token_does_not_hide_what_is_wrong_everywhere_else():
    """Every control flips a choice that the merge does not: as plain sums, K would be nearly nothing."""
    controls = [[list(tokens) for tokens in one] for one in CONTROLS]
    for control in controls:
        control[3][7] = 50.0
    assert ratio(drawn(99, 4.0), controls, None).k > 3.0


def test_a_merge_that_is_wrong_everywhere_lies_beyond_the_limit():
    found = ratio(drawn(99, 4.0), CONTROLS, drawn(98, 0.5))
    assert found.k > found.limit


def test_between_the_two_more_is_asked_for():
    found = ratio(drawn(99, 1.3), CONTROLS, drawn(98, 0.5))
    assert not found.settled


def test_where_the_nearest_merge_itself_lies_farther_that_is_the_limit():
    """Deltas far below the spacing: to nearest they are lost as one, and not at random."""
    found = ratio(drawn(98, 1.9), CONTROLS, drawn(98, 1.9))
    assert found.k > 1.0
    assert found.settled
    assert ratio(drawn(98, 9.0), CONTROLS, drawn(98, 1.9)).k > found.limit


def test_controls_that_differ_widely_allow_more_than_controls_that_agree():
    wide = [drawn(seed, scale) for seed, scale in enumerate((0.3, 0.6, 1.0, 1.8))]
    assert ratio(drawn(9), wide, None).limit > ratio(drawn(9), CONTROLS[:4], None).limit + 0.5


def test_one_control_has_the_error_of_its_prompts():
    found = ratio(drawn(99, 0.5), CONTROLS[:1], None)
    assert found.controls == 1
    assert 0.0 < found.error < 0.3


@pytest.mark.parametrize(("merged", "wanted"), [(0.0, 0.0), (1e-9, 1e9)])
def test_where_no_rounding_happens_nothing_may_be_lost(merged: float, wanted: float):
    assert ratio([[merged, merged]], [[[0.0, 0.0]]], None).k == wanted


def test_flips_beyond_chance_are_told_from_chance():
    assert not more_flips(3, 0)
    assert not more_flips(30, 20)
    assert more_flips(60, 20)
