"""A base that this installation cannot run: the weights are proven all the same, unless the full proof was asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bot.checks.behaviour import trial
from bot.checks.behaviour.answers import Trial
from bot.checks.behaviour.job import LoadReport, MergedAnswer, Stopped
from bot.records import Report
from bot.verify import table
from tests.faults import damage
from tests.faults.conftest import named, prove
from tests.faults.held import work_here
from tests.faults.models import LLAMA, Built, Recipe, build


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_work", work_here)


@pytest.fixture(scope="module")
def lame(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Four queries cannot share three keys: the base loads, and no input passes through it."""
    return build(Recipe(config={**LLAMA, "num_key_value_heads": 3}), tmp_path_factory.mktemp("lame"))


def statuses(report: Report) -> tuple[str, ...]:
    return (named(report, "loads").status, named(report, "behaviour").status, report.verdict, report.level)


def test_a_base_that_cannot_be_run_leaves_the_verdict_to_the_weights(lame: Built):
    report = prove(lame, lame.merged, level="full", required=False)
    assert statuses(report) == ("pass", "skip", "verified", "weights"), table(report)
    assert "the base itself cannot be run here (RuntimeError" in named(report, "behaviour").why
    assert report.document.verdict == "verified"


def test_not_where_the_full_proof_was_asked_for(lame: Built):
    assert prove(lame, lame.merged, level="full").verdict == "not-verified"


def test_a_wrong_weight_of_such_a_base_is_still_a_fault(lame: Built, tmp_path: Path):
    report = prove(lame, Path(shutil.copytree(lame.base, tmp_path / "merged")), level="full", required=False)
    assert named(report, "touched").status == "fail"
    assert report.verdict == "not-verified"


def test_a_class_that_only_the_repo_has_leaves_it_to_the_weights_too(llama: Built, copy: Path, tmp_path: Path):
    changes = {"architectures": ["OwnForCausalLM"], "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}
    base = Path(shutil.copytree(llama.base, tmp_path / "base"))
    for folder in (base, copy):
        damage.in_config(**changes)(folder, llama)
        (folder / "modeling_own.py").write_text("raise SystemExit")
    report = prove(llama, copy, base=base, level="full", required=False)
    assert statuses(report) == ("skip", "skip", "verified", "weights"), table(report)


def test_a_base_that_cannot_be_loaded_is_no_fault_of_what_was_made_of_it(llama: Built, copy: Path, tmp_path: Path):
    """An activation that transformers does not know (yet, or any more)."""
    base = Path(shutil.copytree(llama.base, tmp_path / "base"))
    for folder in (base, copy):
        damage.in_config(hidden_act="no-such-activation")(folder, llama)
    report = prove(llama, copy, base=base, level="full", required=False)
    assert statuses(report)[:2] == ("skip", "skip"), table(report)
    assert "no-such-activation" in named(report, "loads").why
    assert (report.verdict, report.level) == ("verified", "weights"), table(report)


def test_a_merged_folder_that_alone_cannot_be_loaded_is_a_fault(llama: Built, copy: Path):
    damage.in_config(hidden_act="no-such-activation")(copy, llama)
    report = prove(llama, copy, level="full", required=False)
    assert named(report, "loads").status == "fail"
    assert report.verdict == "not-verified"


def test_an_adapter_that_peft_does_not_load_whole_is_no_excuse():
    """Two readings of its names: one of them may be why the merge is wrong."""
    reference = Stopped(status="skip", why="PEFT did not load the whole adapter: …")
    loads = LoadReport(missing=[], unexpected=[], mismatched=[], complaints=[], model_class="LlamaForCausalLM")
    merged = MergedAnswer(loads=loads, distances=None)
    assert Trial(reference=reference, merged=merged, expected=frozenset()).unrunnable is None
