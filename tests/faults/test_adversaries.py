"""Faults that are made to be overlooked: each is caught by the check whose job it is, and the cause claims nothing false."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from bot.report_document import Document
from bot.verify import table
from tests.checks.cause import planted
from tests.faults import damage, family, models
from tests.faults.conftest import INPUTS, named, prove
from tests.faults.family import FAMILY
from tests.faults.models import Built

Q0 = damage.Q0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    @cache
    def build(name: str) -> Built:
        root = tmp_path_factory.mktemp(name)
        return family.build(FAMILY[name], root) if name in FAMILY else models.build(planted.RECIPES[name], root)

    return build


def two_signs(folder: Path, built: Built) -> None:
    """Two elements of one tensor exchanged: no sum, norm or mean of it changes."""
    value = planted.tensors_of(folder)[Q0].clone()
    flat = value.view(-1)
    flat[[5, 900]] = flat[[900, 5]]
    planted.put(folder, {Q0: value})


def one_row_of_one_expert(folder: Path, built: Built) -> None:
    key = "model.layers.1.mlp.experts.down_proj"
    value = planted.tensors_of(folder)[key].clone()
    value[2, 7] = planted.tensors_of(built.base)[key][2, 7]
    planted.put(folder, {key: value})


def one_expert(folder: Path, built: Built) -> None:
    key = "model.layers.1.mlp.experts.down_proj"
    value = planted.tensors_of(folder)[key].clone()
    value[2] = planted.tensors_of(built.base)[key][2]
    planted.put(folder, {key: value})


FAULTS: dict[str, tuple[str, Callable[[Path, Built], Any], str, tuple[str, ...]]] = {
    "two rows that cancel in the norm": ("wide", planted.two_that_cancel, "few-rows", ("rows 3, 4 of", Q0)),
    "two elements exchanged": ("wide", two_signs, "few-rows", ("2 elements", Q0)),
    "one row": ("wide", planted.rows([5], Q0, lambda merged, base: base), "few-rows", ("row 5 of", Q0)),
    "one row of one expert": ("experts-fused", one_row_of_one_expert, "few-rows", ("row 7", "expert 2", "layers.1")),
    "one expert": ("experts-fused", one_expert, "modules-left-out", ("expert 2", "layers.1")),
    "the last shard": ("rank-8", planted.last_shard, "modules-left-out", ("all that model-0000",)),
}


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "foreign"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_small_fault_is_caught_and_named_for_what_it_is(
    model: Callable[[str], Built], tmp_path: Path, name: str, ours: bool
):
    on, plant, kind, words = FAULTS[name]
    built = model(on)
    folder = built.fresh(tmp_path / "merged")
    plant(folder, built)
    report = prove(built, folder, ours=ours)
    assert named(report, "touched").status == "fail", table(report)
    cause = report.document.cause
    assert cause is not None
    assert (cause["kind"], [word for word in words if word not in cause["sentence"]]) == (kind, []), table(report)
    assert "also" not in cause


def claimed(folder: Path, built: Built) -> dict[str, Any]:
    """A report of a good merge, as it would lie in the folder."""
    return json.loads(prove(built, folder, level="files").document.canonical())


def test_a_report_that_was_edited_to_say_verified_changes_nothing(model: Callable[[str], Built], tmp_path: Path):
    built = model("wide")
    folder = built.fresh(tmp_path / "merged")
    planted.unmerged()(folder, built)
    edited = json.loads(prove(built, folder).document.canonical())
    assert edited["verdict"] == "not-verified"
    edited["verdict"], edited["cause"] = "verified", None
    for check in edited["checks"]:
        check["status"] = "pass"
    report = prove(built, folder, recorded=Document.of(edited))
    assert report.verdict == "not-verified"
    assert named(report, "touched").status == "fail"
    assert report.document.cause is not None
    assert report.document.cause["kind"] == "not-merged"


def test_files_that_changed_behind_a_report_fail_its_pins(model: Callable[[str], Built], tmp_path: Path):
    built = model("wide")
    folder = built.fresh(tmp_path / "merged")
    recorded = Document.of(claimed(folder, built))
    planted.rows([5], Q0, lambda merged, base: base)(folder, built)
    report = prove(built, folder, recorded=recorded)
    assert (named(report, "pins").status, named(report, "touched").status) == ("fail", "fail")
    assert report.document.cause is not None
    kinds = [report.document.cause["kind"], *(other["kind"] for other in report.document.cause["also"])]
    assert kinds == ["few-rows", "other-report"]


def test_a_report_of_another_model_fails_the_pins_and_is_named(model: Callable[[str], Built], tmp_path: Path):
    built, other = model("wide"), model("rank-8")
    folder = built.fresh(tmp_path / "merged")
    document = claimed(other.fresh(tmp_path / "other"), other)
    document["inputs"] = {**INPUTS, "base": {"repo": "o/other", "sha": "c" * 40}}
    report = prove(built, folder, recorded=Document.of(document))
    assert report.verdict == "not-verified"
    assert named(report, "pins").status == "fail"
    assert named(report, "touched").status == "pass"
    assert report.document.cause is not None
    assert report.document.cause["kind"] == "other-report"
    assert "The report names base.sha cccc" in report.document.cause["sentence"]


def test_a_fault_that_no_hypothesis_fits_is_said_to_be_unexplained(model: Callable[[str], Built], tmp_path: Path):
    """Noise on every tensor that the adapter changes: no delta, of no rank, and the untouched are right."""
    built = model("wide")
    folder = built.fresh(tmp_path / "merged")
    generator = torch.Generator().manual_seed(3)
    now = planted.tensors_of(folder)
    planted.put(folder, {
        key: (now[key].double() + torch.randn(delta.shape, generator=generator) * delta.std()).to(now[key].dtype)
        for key, delta in planted.deltas_of(built).items()
    })  # fmt: skip
    cause = prove(built, folder, ours=False).document.cause
    assert cause is not None
    assert cause["kind"] == "unexplained", cause
    assert abs(cause["figures"]["factor"] - 1) < 0.1
