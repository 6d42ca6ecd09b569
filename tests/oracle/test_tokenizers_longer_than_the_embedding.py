"""Ids of the adapter's tokenizer that have no row in the embedding: refused where tokens are trained, else said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from bot.errors import Refused
from bot.events import Event, Note, silent
from bot.merge import merge
from bot.records import Local
from bot.verify import verify
from tests.factory import save_adapter, save_base
from tests.faults.conftest import claim, named
from tests.steps import plan_folders

ROWS = 128  # of the factory's tiny llama
TOKENS = {"target_modules": ["q_proj"], "trainable_token_indices": [5, 120]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose tokenizer has an id for every row."""
    folder = save_base("llama", tmp_path_factory.mktemp("longer") / "base", dtype=torch.float32)
    return with_ids(folder, ROWS)


def with_ids(folder: Path, count: int) -> Path:
    """The folder with a tokenizer of that many ids."""
    words = {f"w{number}": number for number in range(100)}
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))
    fast.add_tokens([f"<{number}>" for number in range(count - 100)])
    fast.save_pretrained(folder)
    return folder


def run(base: Path, adapter: Path, folder: Path) -> list[Event]:
    """Merge into `folder`; what was said meanwhile."""
    said: list[Event] = []
    folder.mkdir()
    merge(plan_folders(base, adapter), Local(base=base, adapter=adapter), folder, said.append)
    return said


@pytest.mark.parametrize(
    ("ids", "settings", "outcome"),
    [
        (ROWS, TOKENS, "pass"),
        (ROWS + 3, TOKENS, "refused"),
        (ROWS + 3, {"target_modules": ["q_proj", "embed_tokens"]}, "refused"),
        (ROWS + 3, {"target_modules": ["q_proj"]}, "warn"),
    ],
)
def test_a_tokenizer_with_more_ids(
    base: Path, ids: int, settings: dict[str, Any], outcome: str, tmp_path: Path
) -> None:
    adapter = with_ids(save_adapter(base, "llama", tmp_path / "adapter", **settings), ids)
    if outcome == "refused":
        with pytest.raises(Refused, match=f"ids up to {ids - 1}, .* has {ROWS} rows: the rows of the new tokens"):
            run(base, adapter, tmp_path / "merged")
        return
    said = run(base, adapter, tmp_path / "merged")
    assert any(isinstance(one, Note) and "ids up to" in one.text for one in said) == (outcome == "warn")
    assert named(verify(claim(base, adapter, tmp_path / "merged"), silent), "vocabulary").status == outcome


@pytest.mark.parametrize(("of_base", "status"), [(ROWS, "fail"), (ROWS + 3, "warn")])
def test_the_verifier_finds_it_too(base: Path, of_base: int, status: str, tmp_path: Path) -> None:
    """A tokenizer that was put in later; a base that is like that already is none of the merge's doing."""
    adapter = with_ids(save_adapter(base, "llama", tmp_path / "adapter", **TOKENS), ROWS)
    run(base, adapter, tmp_path / "merged")
    for folder in (adapter, tmp_path / "merged"):
        with_ids(folder, ROWS + 3)
    before = json.loads((base / "config.json").read_text())["vocab_size"]
    try:
        with_ids(base, of_base)
        found = named(verify(claim(base, adapter, tmp_path / "merged"), silent), "vocabulary")
    finally:
        with_ids(base, before)
    assert found.status == status
    assert f"ids up to {ROWS + 2}" in found.why
