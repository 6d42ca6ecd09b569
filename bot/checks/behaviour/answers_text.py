"""What a model says to three fixed prompts, greedily: for the eye, and never a reason to fail.

Every model is given the same tokens, those of the adapter's tokenizer (else the base's), and answers under the same neutral
settings, whatever its own generation_config.json says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from bot.checks.behaviour.job import QUESTIONS, Replies, WorkerJob
from bot.checks.behaviour.measure import ModelInFloat64
from bot.checks.behaviour.probe_inputs import prompt_tokenizer
from bot.checks.expected.float64_mode import float64_mode

MOST_TOKENS = 24
STARTS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
)  # what a model cannot answer without


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """The prompts as tokens, padded to one length, and the tokenizer that made them."""

    ids: Tensor  # prompts × tokens, int64
    mask: Tensor
    tokenizer: Any


def ask(model: Any, job: WorkerJob) -> Replies:
    """The model's answers, in the order of QUESTIONS; none, and why, where it cannot be asked. None without a why where nobody
    wants them."""
    if not job.asks:
        return Replies()
    try:
        if why := _why_not(model):
            return Replies(why_not=why)
        batch = _batch(model, job)
        return Replies(why_not=batch) if isinstance(batch, str) else Replies(texts=_answers(model, batch, job))
    except Exception as error:  # somebody's chat template, or a model that generates in a way of its own
        return Replies(why_not=f"the model could not be asked ({type(error).__name__}: {str(error)[:200]})")


def _why_not(model: Any) -> str | None:
    if model.main_input_name != "input_ids":
        return "the model does not read text"
    return None if model.can_generate() else "the model writes no text"


def _batch(model: Any, job: WorkerJob) -> _Batch | str:
    """The prompts, or why this model cannot read them."""
    tokenizer = prompt_tokenizer(job)
    if tokenizer is None:
        return "there is no tokenizer"
    rows = [_tokens(tokenizer, question) for question in QUESTIONS]
    width = max(map(len, rows))
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if longest and width + MOST_TOKENS > int(longest):
        return f"the prompts and their answers are longer than the model's {longest} positions"
    if not all(rows) or max(map(max, rows)) >= model.get_input_embeddings().weight.shape[0]:
        return "the tokenizer does not fit the model"
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    first = bool(
        getattr(model.config, "is_encoder_decoder", False)
    )  # what is written comes behind what is read, or apart

    def padded(row: list[int], filling: int) -> list[int]:
        rest = [filling] * (width - len(row))
        return row + rest if first else rest + row

    ids = torch.tensor([padded(row, pad) for row in rows])
    return _Batch(ids=ids, mask=torch.tensor([padded([1] * len(row), 0) for row in rows]), tokenizer=tokenizer)


def _tokens(tokenizer: Any, question: str) -> list[int]:
    """In the chat template, where there is one."""
    if not getattr(tokenizer, "chat_template", None):
        return list(tokenizer(question)["input_ids"])
    message = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _answers(model: Any, batch: _Batch, job: WorkerJob) -> list[str]:
    wide = float64_mode(ModelInFloat64()) if job.compute == "float64" else nullcontext()
    device = model.get_input_embeddings().weight.device
    with torch.inference_mode(), wide, _neutral(model, batch.tokenizer):
        written = model.generate(
            input_ids=batch.ids.to(device), attention_mask=batch.mask.to(device), do_sample=False, num_beams=1,
            max_new_tokens=MOST_TOKENS, use_cache=True,
        )  # fmt: skip
    if not getattr(model.config, "is_encoder_decoder", False):
        written = written[:, batch.ids.shape[1] :]
    return [text.strip() for text in batch.tokenizer.batch_decode(written.tolist(), skip_special_tokens=True)]


@contextmanager
def _neutral(model: Any, tokenizer: Any) -> Iterator[None]:
    """Of a model's own settings for generation only the tokens that it begins and ends with."""
    own = model.generation_config
    starts = {name: getattr(own, name, None) for name in STARTS}
    if starts["eos_token_id"] is None:
        starts["eos_token_id"] = tokenizer.eos_token_id
    if starts["pad_token_id"] is None:
        starts["pad_token_id"] = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        )
    model.generation_config = GenerationConfig(**starts)
    try:
        yield
    finally:
        model.generation_config = own
