"""Every file of the result is hashed, and its weights are read once for that and for being compared."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bot.checks.folder import hashing
from tests.faults.conftest import prove
from tests.faults.models import Built


def sha256s(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def weight_files(folder: Path) -> set[str]:
    names = {path.name for path in folder.glob("*.safetensors")}
    assert names
    return names


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "foreign"])
def test_weights_that_are_compared_are_not_read_again_to_be_hashed(
    llama: Built, copy: Path, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where its own report states what the files must be."""
    recorded = prove(llama, copy, level="files").document
    read: list[str] = []
    whole = hashing._sha256
    monkeypatch.setattr(hashing, "_sha256", lambda path, told: (read.append(path.suffix), whole(path, told))[1])
    files = prove(llama, copy, level="weights", ours=ours, recorded=recorded).document.files
    assert files is not None
    assert files.items() <= sha256s(copy).items()
    assert files.keys() >= weight_files(copy)
    assert ".json" in read
    assert ".safetensors" not in read


def test_without_a_comparison_all_are(llama: Built, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = prove(llama, copy, level="files").document.files
    assert files is not None
    assert files.items() <= sha256s(copy).items()
    assert files.keys() >= weight_files(copy)
