"""Three prompts, answered greedily: the same tokens for every model, neutral settings, and never a reason to fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from bot.checks.behaviour.answers import Trial
from bot.checks.behaviour.answers_text import MOST_TOKENS, ask
from bot.checks.behaviour.job import QUESTIONS, ComparisonAnswer, Replies, Stopped, WorkerJob
from bot.checks.behaviour.prompt_rows import answer_rows
from tests.checks.behaviour.test_prompt_rows import MERGED, REFERENCE, TRIAL
from tests.factory import save_base, save_tokenizer

Built = tuple[Path, WorkerJob]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A tiny Llama with a tokenizer and a chat template, and the job to ask it."""
    root = tmp_path_factory.mktemp("asked")
    base = save_tokenizer(save_base("llama", root / "base"))
    (root / "adapter").mkdir()
    job = WorkerJob(
        base=base, adapter=root / "adapter", folder=base, work=root, storage="bfloat16", compute="float32", asks=True
    )
    return base, job


def load(base: Path, dtype: torch.dtype = torch.float32) -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()


def by_hand(base: Path, question: str) -> str:
    """The most likely token, again and again, for one prompt alone and without a cache."""
    tokenizer, model = AutoTokenizer.from_pretrained(base), load(base)
    message = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    written: list[int] = []
    while len(written) < MOST_TOKENS and written[-1:] != [model.generation_config.eos_token_id]:
        with torch.inference_mode():
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return str(tokenizer.decode(written, skip_special_tokens=True)).strip()


def test_the_answers_are_the_most_likely_tokens_in_the_chat_template(built: Built) -> None:
    base, job = built
    replies = ask(load(base), job)
    assert replies == Replies(texts=[by_hand(base, question) for question in QUESTIONS])
    assert len(set(replies.texts)) > 1  # each prompt by itself, although they are asked together


def test_a_models_own_settings_for_generation_change_nothing_and_stay_as_they_were(built: Built) -> None:
    base, job = built
    model = load(base)
    plain = ask(model, job)
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.do_sample = True
    assert ask(model, job) == plain
    assert model.generation_config.repetition_penalty == 9.0


def test_a_model_in_float64_is_asked_too(built: Built) -> None:
    base, job = built
    assert ask(load(base).double(), replace(job, compute="float64")) == ask(load(base), job)


def test_nobody_is_asked_where_no_page_is_wanted(built: Built) -> None:
    base, job = built
    assert ask(load(base), replace(job, asks=False)) == Replies()
    assert not replace(job, asks=True).with_more().asks  # once is enough


def test_without_a_tokenizer_nobody_is_asked(built: Built, tmp_path: Path) -> None:
    base, job = built
    bare = save_base("llama", tmp_path / "bare")
    assert ask(load(base), replace(job, base=bare)).why_not == "there is no tokenizer"


def test_a_model_that_writes_no_text_is_not_asked(built: Built) -> None:
    base, job = built
    assert ask(AutoModel.from_pretrained(base), job).why_not == "the model writes no text"


def test_a_model_with_few_positions_or_tokens_is_not_asked(built: Built) -> None:
    base, job = built
    model = load(base)
    model.config.max_position_embeddings = 30
    assert "longer than the model's 30 positions" in ask(model, job).why_not
    small = load(base)
    small.resize_token_embeddings(3)
    assert ask(small, job).why_not == "the tokenizer does not fit the model"


def test_a_template_that_cannot_be_applied_is_a_reason_and_no_failure(built: Built, tmp_path: Path) -> None:
    base, job = built
    broken = save_tokenizer(save_base("llama", tmp_path / "broken"))
    for path in broken.glob("chat_template*"):
        path.write_text("{{ raise_exception('never') }}")
    config = json.loads((broken / "tokenizer_config.json").read_text())
    if "chat_template" in config:
        (broken / "tokenizer_config.json").write_text(
            json.dumps(config | {"chat_template": "{{ raise_exception('never') }}"})
        )
    assert "the model could not be asked (TemplateError: never)" in ask(load(base), replace(job, base=broken)).why_not


def test_an_encoder_with_a_decoder_is_asked_as_well(built: Built) -> None:
    _, job = built
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=200, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0, eos_token_id=1
    )
    replies = ask(T5ForConditionalGeneration(config).eval(), job)
    assert not replies.why_not
    assert len(replies.texts) == len(QUESTIONS)


# --- the rows of the report --------------------------------------------------------------------------------------------

SAID = Replies(texts=["a", "b", "c"])
ASKED = replace(
    TRIAL,
    reference=replace(REFERENCE, base_replies=Replies(texts=["x", "y", "z"]), unmerged_replies=SAID),
    merged=replace(MERGED, replies=SAID),
)


def test_each_prompt_has_a_row_with_the_three_answers() -> None:
    rows, why = answer_rows(ASKED, None)
    assert why == ""
    assert rows[1] == {"prompt": QUESTIONS[1], "base": "y", "unmerged": "b", "merged": "b"}
    assert len(rows) == len(QUESTIONS)


def test_of_a_quantised_result_its_own_answers_count() -> None:
    rows, _ = answer_rows(ASKED, ComparisonAnswer(measured={}, replies=Replies(texts=["q", "r", "s"])))
    assert [row["merged"] for row in rows] == ["q", "r", "s"]


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        (replace(ASKED, reference=Stopped(status="skip", why="no room")), "no room"),
        (replace(ASKED, merged=Stopped(status="error", why="it broke")), "it broke"),
        (replace(ASKED, merged=replace(MERGED, replies=Replies(why_not="no tokenizer"))), "no tokenizer"),
        (replace(ASKED, merged=replace(MERGED, replies=Replies())), "the merged model was not run"),
    ],
)
def test_where_one_of_them_was_not_asked_the_reason_is_told(trial: Trial, reason: str) -> None:
    assert answer_rows(trial, None) == ([], reason)
