"""The whole LoRA family: its correct merges are verified, and a fault in any of its parts is found by the check for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bot.records import Options
from bot.verify import table
from tests.faults import family
from tests.faults.conftest import named, prove, statuses
from tests.faults.family import FAMILY, Tensors, build, declare, merge
from tests.faults.models import Built
from tests.faults.wrong import EMBEDDING, HEAD, WRONG, At, norm_ignored
from tests.steps import merge_folders

Kinship = Callable[[str], Built]


@pytest.fixture(scope="session")
def kin(tmp_path_factory: pytest.TempPathFactory) -> Kinship:
    """A member of the family, with its correct merge."""
    return cache(lambda name: build(FAMILY[name], tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("name", FAMILY)
def test_a_correct_merge_is_verified(kin: Kinship, name: str):
    report = prove(kin(name), kin(name).merged)
    assert statuses(report, "fail", "skip", "warn") == {}, table(report)


@pytest.mark.parametrize("name", FAMILY)
def test_what_the_engine_writes_is_the_same_bit_for_bit(kin: Kinship, tmp_path: Path, name: str):
    built = kin(name)
    folder = merge_folders(built.base, built.adapter, tmp_path / "merged", Options(dtype=built.recipe.to))
    found, wanted = (load_file(one / "model.safetensors") for one in (folder, built.merged))
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []
    assert statuses(prove(built, folder), "fail", "skip", "warn") == {}


# --- faults in the arithmetic, planted before the numbers are rounded -------------------------------------------------


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_number_is_caught(kin: Kinship, tmp_path: Path, fault: str):
    name, spoil, expected = WRONG[fault]
    built = kin(name)
    at = At(FAMILY[name], built)
    merge(FAMILY[name], _as_saved(built, name, tmp_path), tmp_path / "merged", lambda exact: spoil(at, exact))
    report = prove(built, tmp_path / "merged")
    assert report.verdict == "not-verified"
    assert {id: named(report, id).status for id in expected} == dict.fromkeys(expected, "fail"), table(report)


def _as_saved(built: Built, name: str, tmp_path: Path) -> Built:
    """The adapter as PEFT saved it, where the built one has older names."""
    if FAMILY[name].older is None:
        return built
    return family.rebuilt(FAMILY[name], built, tmp_path / "as-saved")


# --- faults in keys, shapes and config --------------------------------------------------------------------------------


def without(*keys: str) -> Callable[[Path, Built], None]:
    def drop(folder: Path, built: Built) -> None:
        _rewrite(folder, lambda tensors: [tensors.pop(key) for key in keys])

    return drop


def with_the_bases(*keys: str) -> Callable[[Path, Built], None]:
    def keep(folder: Path, built: Built) -> None:
        base = load_file(built.base / "model.safetensors")
        _rewrite(folder, lambda tensors: tensors.update({key: base[key] for key in keys}))

    return keep


def saying(**changes: Any) -> Callable[[Path, Built], None]:
    return lambda folder, built: declare(folder, changes)


def tied_after_all(folder: Path, built: Built) -> None:
    without(HEAD)(folder, built)
    declare(folder, {"tie_word_embeddings": True})


def silent_about(*names: str) -> Callable[[Path, Built], None]:
    """config.json with the base's values."""

    def forget(folder: Path, built: Built) -> None:
        base = json.loads((built.base / "config.json").read_text())
        found = json.loads((folder / "config.json").read_text())
        kept = {name: base[name] for name in names if name in base}
        rest = {name: value for name, value in found.items() if name not in names}
        (folder / "config.json").write_text(json.dumps({**rest, **kept}))

    return forget


def _rewrite(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


LAST = "model.layers.3.self_attn.q_proj.weight"
MISSHAPEN: dict[str, tuple[str, Callable[[Path, Built], None], tuple[str, ...]]] = {
    "a head left tied": ("embedding-tied", tied_after_all, ("keys", "config")),
    "a head untied in the weights alone": ("embedding-tied", saying(tie_word_embeddings=True), ("config",)),
    "a merged head that a tied config ignores": ("head-tied", saying(tie_word_embeddings=True), ("config", "keys")),
    "a config untied for nothing": ("tokens-tied", saying(tie_word_embeddings=False), ("config",)),
    "a replica missing": ("replicated", without(LAST), ("keys", "coverage")),
    "the number of layers not patched": ("replicated", silent_about("num_hidden_layers"), ("config",)),
    "the vocabulary's size not patched": ("resized", silent_about("vocab_size"), ("config",)),
    "an embedding of the base's size": ("resized", with_the_bases(EMBEDDING), ("shapes", "coverage")),
    "a new head missing": ("classifier", without("score.weight"), ("keys", "coverage")),
    "an old head kept": ("classifier", with_the_bases(HEAD), ("keys",)),
    "the class not patched": ("classifier", silent_about("architectures"), ("config",)),
    "the labels not patched": ("other-labels", silent_about("id2label", "label2id"), ("config",)),
    "labels of one's own": ("other-labels", saying(id2label={"0": "cat"}), ("config",)),
    "a head of the base's size": ("other-labels", with_the_bases("classifier.weight"), ("shapes", "coverage")),
}  # fmt: skip


@pytest.mark.parametrize("fault", MISSHAPEN)
def test_what_is_missing_or_undeclared_is_caught(kin: Kinship, tmp_path: Path, fault: str):
    name, spoil, expected = MISSHAPEN[fault]
    built = kin(name)
    folder = built.fresh(tmp_path / "merged")
    spoil(folder, built)
    report = prove(built, folder)
    assert report.verdict == "not-verified"
    assert {id: named(report, id).status for id in expected} == dict.fromkeys(expected, "fail"), table(report)


# --- what the adapter itself must not say -----------------------------------------------------------------------------


def rewritten(built: Built, tmp_path: Path, change: Callable[[Tensors], Any], **settings: Any) -> Path:
    adapter = Path(shutil.copytree(built.adapter, tmp_path / "adapter"))
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return adapter


def test_a_head_that_should_follow_and_does_not_is_refused(kin: Kinship, tmp_path: Path):
    built = kin("both-tied-by-peft")
    adapter = rewritten(built, tmp_path, lambda it: it["base_model.model.lm_head.lora_B.weight"].mul_(2))
    assert "share one weight" in named(prove(built, built.merged, adapter=adapter), "method").why


def test_a_second_copy_that_differs_is_refused(kin: Kinship, tmp_path: Path):
    built = kin("resized")
    adapter = rewritten(built, tmp_path, lambda it: it["base_model.model.lm_head.modules_to_save.weight"].mul_(2))
    assert "brought twice" in named(prove(built, built.merged, adapter=adapter), "method").why


def test_tokens_beyond_the_vocabulary_are_refused(kin: Kinship, tmp_path: Path):
    built = kin("tokens-tied")
    adapter = rewritten(built, tmp_path, lambda it: None, trainable_token_indices=[7, 3, 160])
    assert "rows 160" in named(prove(built, built.merged, adapter=adapter), "method").why


def test_layers_that_the_base_has_not_are_refused(kin: Kinship, tmp_path: Path):
    built = kin("replicated")
    adapter = rewritten(built, tmp_path, lambda it: None, layer_replication=[[0, 2], [1, 4]])
    assert "beyond the base's 2" in named(prove(built, built.merged, adapter=adapter), "method").why


def test_a_magnitude_without_dora_is_refused(kin: Kinship, tmp_path: Path):
    built = kin("dora")
    adapter = rewritten(built, tmp_path, lambda it: None, use_dora=False)
    assert "magnitude" in named(prove(built, built.merged, adapter=adapter), "method").why


# --- somebody else's merges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dora", "dora-conv1d", "dora-convolution", "dora-embedding", "experts"])
def test_pefts_own_merge_is_verified_and_its_arithmetic_named(kin: Kinship, tmp_path: Path, name: str):
    built = kin(name)
    family.merge_as_peft_does(FAMILY[name], built, tmp_path / "merged")
    report = prove(built, tmp_path / "merged", ours=False)
    assert report.verdict == "verified", table(report)
    assert named(report, "touched").status == "warn"
    assert named(prove(built, tmp_path / "merged"), "touched").status == "fail"


def test_a_fault_in_somebody_elses_dora_is_still_a_fault(kin: Kinship, tmp_path: Path):
    built = kin("dora")
    at = At(FAMILY["dora"], built)
    merge(FAMILY["dora"], built, tmp_path / "merged", lambda exact: norm_ignored(at, exact))
    assert named(prove(built, tmp_path / "merged", ours=False), "touched").status == "fail"


# --- behaviour --------------------------------------------------------------------------------------------------------

LIVELY = (
    "dora", "dora-embedding", "embedding-tied", "whole-embedding-tied", "tokens-tied", "lora-bias", "dora-convolution",
    "experts", "experts-in-older-names", "replicated", "resized", "classifier", "other-labels", "biases-in-older-names",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LIVELY)
def test_a_correct_merge_behaves_as_the_unmerged_model_does(kin: Kinship, name: str):
    report = prove(kin(name), kin(name).merged, level="full")
    assert report.verdict == "verified", table(report)
    assert report.noise_floor is not None
    # The query of so small a BERT does next to nothing: then both distances are float64's own noise.
    assert 0.1 < report.noise_floor["ratio"] < 0.9 or report.noise_floor["merged"] < 1e-28, "theory says 0.5"
