"""The texts of the full proof are given only to models whose tokenizer reads them: others get random tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bot.checks.behaviour.probe_inputs import TEXTS, build_inputs
from tests.faults.held import job_of

SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 400}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SMALL))


def distinct(model: LlamaForCausalLM, folder: Path, words: list[str]) -> list[int]:
    """How many different tokens each prompt has, by a tokenizer that knows these words."""
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(folder / "base")
    (folder / "adapter").mkdir()
    job = job_of(folder / "base", folder / "adapter", folder / "merged", prompts=len(TEXTS))
    return [len(one["input_ids"].unique()) for one in build_inputs(model, job)]


def test_a_tokenizer_of_proteins_makes_no_prompts_of_nothing_but_unknown_tokens(model, tmp_path: Path):
    assert min(distinct(model, tmp_path, list("ACDEFGHIKLMNPQRSTVWY"))) > 40


def test_a_tokenizer_that_reads_the_texts_gives_its_tokens(model, tmp_path: Path):
    words = sorted({word for text in TEXTS for word in text.split()})[:399]
    counts = [len(dict.fromkeys(text.split()[:64])) for text in TEXTS]
    assert distinct(model, tmp_path, words) == counts
