"""K, prompt by prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bot.checks.behaviour.answers import Trial
from bot.checks.behaviour.job import Distance, LoadReport, MergedAnswer, ReferenceAnswer, Stopped
from bot.checks.behaviour.prompt_rows import prompt_rows


def distance(far: float, positions: int = 4) -> Distance:
    return Distance(
        far=far, tokens=[far / positions] * positions, size=50.0, positions=positions, agree=positions, choices=0,
        changed_choices=0, free=0,
    )  # fmt: skip


REFERENCE = ReferenceAnswer(
    kind="kl", thorough=True, mixture=False, layers=[], uncalled=[], base=[distance(8.0), distance(6.0, 2)],
    controls=[[distance(1.0), distance(2.0, 2)], [distance(3.0), distance(4.0, 2)]], exact=None, nearest=None, measured={},
)  # fmt: skip
LOADS = LoadReport(missing=[], unexpected=[], mismatched=[], complaints=[], model_class="X")
MERGED = MergedAnswer(loads=LOADS, distances=[distance(1.2), distance(0.6, 2)])
TRIAL = Trial(reference=REFERENCE, merged=MERGED, expected=frozenset())


def test_each_prompt_has_its_distances_by_token_and_the_mean_of_its_controls() -> None:
    assert prompt_rows(TRIAL) == [
        {"tokens": 4, "adapter": 2.0, "control": 0.5, "merged": pytest.approx(0.3)},
        {"tokens": 2, "adapter": 3.0, "control": 1.5, "merged": pytest.approx(0.3)},
    ]


def test_squared_errors_are_relative_to_the_output_as_in_the_noise_floor() -> None:
    rows = prompt_rows(replace(TRIAL, reference=replace(REFERENCE, kind="squared")))
    assert [row["merged"] for row in rows] == [pytest.approx(1.2 / 50), pytest.approx(0.6 / 50)]


def test_where_no_k_was_measured_there_is_no_row() -> None:
    stopped = Stopped(status="skip", why="it needs more memory")
    assert prompt_rows(None) == []
    assert prompt_rows(replace(TRIAL, reference=stopped)) == []
    assert prompt_rows(replace(TRIAL, merged=stopped)) == []
    nan = replace(MERGED, distances=[distance(float("nan")), distance(0.6, 2)])
    assert prompt_rows(replace(TRIAL, merged=nan)) == []
