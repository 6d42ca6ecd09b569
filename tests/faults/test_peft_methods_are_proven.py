"""Merges of methods that only PEFT's layers know: correct ones are proven, and one wrong bit is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bot.checks.subject import Subject
from bot.events import silent
from bot.records import Report
from bot.report_document import InputPins, MergeFacts
from bot.verify import verify
from tests.faults.conftest import INPUTS
from tests.oracle.peft_cases import WEIGHTS, Case, adapter, base
from tests.steps import merge_folders

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module", params=["IA3", "OFT", "VERA", "OSF"])
def merged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(base, adapter, merged folder)."""
    folder = tmp_path_factory.mktemp(request.param)
    model = base("llama", folder / "base", torch.bfloat16)
    adapter(Case(request.param, "llama"), model, folder / "adapter")
    return folder / "base", folder / "adapter", merge_folders(folder / "base", folder / "adapter", folder / "merged")


def prove(folders: tuple[Path, Path, Path], folder: Path, **changes: Any) -> Report:
    given: dict[str, Any] = {
        "folder": folder, "base": folders[0], "adapter": folders[1], "inputs": InputPins.of(INPUTS), "recorded": None,
        "merge": MergeFacts.of({}), "dtype": "auto", "ours": True, "level": "weights", "not_run": (), "trust_remote_code": False,
    }  # fmt: skip
    return verify(Subject(**(given | changes)), silent)


def damaged(folders: tuple[Path, Path, Path], folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    import shutil

    shutil.copytree(folders[2], folder)
    save_file({**load_file(folder / WEIGHTS), **tensors}, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def failed(report: Report) -> set[str]:
    return {one.id for one in report.findings if one.status == "fail"}


def test_a_correct_merge_is_proven(merged: tuple[Path, Path, Path]) -> None:
    report = prove(merged, merged[2])
    assert not failed(report), [one for one in report.findings if one.status == "fail"]
    assert next(one for one in report.findings if one.id == "touched").measured.startswith("0 of")


def test_it_behaves_as_the_unmerged_model(merged: tuple[Path, Path, Path]) -> None:
    assert not failed(prove(merged, merged[2], level="full"))


def test_one_wrong_bit_is_found(merged: tuple[Path, Path, Path], tmp_path: Path) -> None:
    weight = load_file(merged[2] / WEIGHTS)[Q_PROJ]
    weight.view(torch.int16)[3, 5] ^= 1
    assert "touched" in failed(prove(merged, damaged(merged, tmp_path / "bit", {Q_PROJ: weight})))


def test_a_layer_left_unmerged_is_found(merged: tuple[Path, Path, Path], tmp_path: Path) -> None:
    before = {Q_PROJ: load_file(merged[0] / WEIGHTS)[Q_PROJ]}
    assert {"touched", "coverage"} <= failed(prove(merged, damaged(merged, tmp_path / "left", before)))


def test_another_layers_weight_is_found(merged: tuple[Path, Path, Path], tmp_path: Path) -> None:
    other = {Q_PROJ: load_file(merged[2] / WEIGHTS)[Q_PROJ.replace("layers.0", "layers.1")]}
    assert "touched" in failed(prove(merged, damaged(merged, tmp_path / "other", other)))


@pytest.mark.parametrize("method", ["HIRA", "OFT"])
def test_a_changed_embedding_leaves_a_tied_head_as_it_was(method: str, tmp_path: Path) -> None:
    """PEFT's unmerged model runs the adapter on the embedding only, and saves a copy of the base's along."""
    model = base("llama-tied", tmp_path / "base", torch.bfloat16)
    adapter(Case(method, "llama-tied", targets=("embed_tokens", "q_proj")), model, tmp_path / "adapter")
    merge_folders(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    before, after = load_file(tmp_path / "base" / WEIGHTS), load_file(tmp_path / "merged" / WEIGHTS)
    assert torch.equal(after["lm_head.weight"], before["model.embed_tokens.weight"])
    assert not torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    report = prove((tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"), tmp_path / "merged", level="full")
    assert not failed(report), [one for one in report.findings if one.status == "fail"]
