"""Whatever the architecture, the layout and the dtype: a correct merge is verified, with nothing to remark."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bot.checks.case import Case
from bot.checks.elementwise.weights import sweep_all
from bot.events import silent
from bot.verify import table
from tests.faults import models
from tests.faults.conftest import Builder, prove, statuses, subject
from tests.faults.damage import read
from tests.faults.models import RECIPES


def test_an_adapter_with_the_names_of_transformers_4_is_understood(built: Builder, tmp_path: Path):
    vit = built("vit")
    adapter = Path(shutil.copytree(vit.adapter, tmp_path / "adapter"))
    models.rename_keys(adapter, models.vit_key)
    assert prove(vit, vit.merged, adapter=adapter).verdict == "verified"


def test_folders_may_consist_of_links_as_the_hubs_cache_does(built: Builder, tmp_path: Path):
    one = built("llama-tied-sharded")
    for role in ("base", "adapter", "merged"):
        (tmp_path / role).mkdir()
        for path in getattr(one, role).iterdir():
            (tmp_path / role / path.name).symlink_to(path)
    report = prove(one, tmp_path / "merged", base=tmp_path / "base", adapter=tmp_path / "adapter")
    assert report.verdict == "verified", table(report)
    assert set(report.document.files or {}) >= {"config.json", "tokenizer.json", "LICENSE"}


def test_a_report_does_not_vouch_for_the_card_or_for_itself(built: Builder, tmp_path: Path):
    one = built("gpt2")
    folder = one.fresh(tmp_path / "merged")
    for name in ("README.md", ".gitattributes", "verification.json"):
        (folder / name).write_text("{}")
    report = prove(one, folder, level="files")
    assert report.verdict == "verified", table(report)
    assert set(report.document.files or {}) == {path.name for path in one.merged.iterdir()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_correct_merge_is_verified(built: Builder, name: str):
    one = built(name)
    report = prove(one, one.merged)
    assert statuses(report, "fail", "skip", "warn") == {}, table(report)
    assert report.verdict == "verified"


def test_the_sweep_measures_the_delta_and_the_weight_that_it_is_added_to(built: Builder):
    one = built("llama-tied-sharded")
    tallies = Case(subject(one, one.merged), silent).once(sweep_all).touched
    assert tallies
    for tally in tallies:
        assert tally.size == pytest.approx(read(one.base, tally.key).double().square().sum().item(), rel=1e-9)
        assert (tally.power / tally.size) ** 0.5 == pytest.approx(models.SIZE, rel=1e-3)
