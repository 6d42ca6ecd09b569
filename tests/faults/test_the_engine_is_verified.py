"""The bot's own merges, proven by checks that share none of its code."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.records import Options
from bot.verify import table
from tests.faults.conftest import Builder, prove, statuses
from tests.faults.models import RECIPES
from tests.steps import merge_folders, plan_folders


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_engine_writes_is_verified(built: Builder, tmp_path: Path, name: str):
    one = built(name)
    if refusals := plan_folders(one.base, one.adapter).refusals:
        pytest.skip(f"the plan refuses it: {refusals[0].reason}")
    folder = merge_folders(one.base, one.adapter, tmp_path / "merged", Options(dtype=one.recipe.to))
    report = prove(one, folder)
    assert statuses(report, "fail", "skip", "warn") == {}, table(report)
