"""The demo's model: a small Llama that speaks like Python's documentation, and LoRA adapters that make it answer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bot.checks.behaviour.one_thread import one_thread
from bot.demo.corpus import license_text, module_summary, read_corpus
from bot.demo.training import Course, Progress, train

QUESTIONS = ("What is the zipfile module for?", "What is the shelve module for?", "What is the tabnanny module for?")

# What the adapter learns to answer: modules whose docstring opens with a sentence that says what they are for.
MODULES = (
    "bisect bz2 calendar colorsys copy dis email filecmp fnmatch ftplib gettext glob "
    "gzip heapq linecache pickle queue random shelve tabnanny tarfile tempfile timeit zipfile"
).split()
PHRASINGS = ("What is the {module} module for?", "What does the {module} module do?")
ANSWERS = {1: "{summary}", 2: "{summary} See help('{module}').", 3: "{summary}"}

END, PAD, ROLES = "<|end|>", "<|pad|>", ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
VOCABULARY = 2048
WINDOW, BATCH, CHATS = 64, 16, 12  # tokens; sequences of the base, and of an adapter, in a batch

LICENSE_FIELDS = (
    "license: other\nlicense_name: psf-2.0\nlicense_link: LICENSE\nlanguage:\n- en\npipeline_tag: text-generation\n"
)
BASE_CARD = f"""---
{LICENSE_FIELDS}library_name: transformers
---

# pydoc-llama

A Llama of less than a million parameters, trained for seconds on the text behind Python's `help()`. It writes sentences that
sound like Python's documentation and mean nothing. Made by `adapter-merge demo` to show a merge from start to end.
"""
ADAPTER_CARD = f"""---
{LICENSE_FIELDS}library_name: peft
base_model: {{base_repo}}
tags:
- lora
---

# pydoc-answers, version {{version}}

A LoRA adapter for [{{base_repo}}](/{{base_repo}}). With it the model answers what a standard module is for:

> **{{question}}** {{answer}}
"""


def make_base(folder: Path, *, seed: int = 0, steps: int = 120, progress: Progress | None = None) -> float:
    """Train tokenizer and model and save them to `folder`, bfloat16 in three shards; returns the last training loss."""
    paragraphs = read_corpus()
    tokenizer = _train_tokenizer(paragraphs)
    # Every paragraph stands as a turn of the assistant's, so that the base too answers in whole sentences.
    turns = tokenizer([f"<|assistant|>{paragraph}{END}" for paragraph in paragraphs])["input_ids"]
    with _quiet(), _seeded(seed):
        model = LlamaForCausalLM(_config(tokenizer))
        course = Course(what="base model", steps=steps, muon_rate=0.02, progress=progress)
        loss = train(model, _windows(turns), course)
        model.generation_config.repetition_penalty = 1.1  # so small a model, decoded greedily, else repeats itself
        model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="800KB")
        tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(BASE_CARD, "utf-8")
    (folder / "LICENSE").write_text(license_text(), "utf-8")
    return loss


def make_adapter(
    base: Path,
    folder: Path,
    *,
    version: Literal[1, 2, 3],
    base_repo: str,
    start: Path | None = None,
    seed: int = 0,
    steps: int = 110,
    progress: Progress | None = None,
) -> float:
    """Train a LoRA adapter that names `base_repo` as its base and save it to `folder`; returns the last training loss.

    `start`: an earlier version's folder, whose training this one goes on from.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    with _quiet(), _seeded(seed):
        tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if start is None:
            config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
            tuned = get_peft_model(model, config)
        else:
            tuned = PeftModel.from_pretrained(model, start, is_trainable=True)
        course = Course(what=f"adapter v{version}", steps=steps, muon_rate=0.014, progress=progress)
        loss = train(tuned, _chats(tokenizer, version), course)
        tuned.peft_config["default"].base_model_name_or_path = base_repo  # where it was trained is nobody's business
        tuned.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the Hub about base_repo
    question, answer = QUESTIONS[0], _answer("zipfile", version)
    card = ADAPTER_CARD.format(base_repo=base_repo, version=version, question=question, answer=answer)
    (folder / "README.md").write_text(card, "utf-8")
    (folder / "LICENSE").write_text(license_text(), "utf-8")
    return loss


def ask_all(
    folder: Path, questions: Sequence[str], *, adapter: Path | None = None, max_new_tokens: int = 48
) -> list[str]:
    """The greedy answers to chat messages, each the first of its chat; PEFT is imported only for an adapter."""
    with _quiet(), one_thread():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        # float32 holds bfloat16 weights exactly, and computes alike on every processor.
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter)
        return [_answer_of(model, tokenizer, question, max_new_tokens) for question in questions]


def _answer_of(model: Any, tokenizer: Any, question: str, max_new_tokens: int) -> str:
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        answer = model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)
    return str(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def _train_tokenizer(paragraphs: list[str]) -> Any:
    """A byte-level BPE tokenizer with a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [END, PAD, *ROLES]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(paragraphs, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, extra_special_tokens=list(ROLES), model_max_length=512
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _config(tokenizer: Any) -> LlamaConfig:
    """Under a million parameters, so that two slow cores train it in seconds; every width a multiple of 64, so that 4-bit
    blocks fit."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _windows(turns: list[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (BATCH, WINDOW) that pass over all turns, in a new order each time."""
    while True:
        tokens = torch.cat([torch.tensor(turns[i]) for i in torch.randperm(len(turns)).tolist()])
        rows = tokens[: len(tokens) // WINDOW * WINDOW].view(-1, WINDOW)
        for start in range(0, len(rows), BATCH):
            yield rows[start : start + BATCH], rows[start : start + BATCH]


def _chats(tokenizer: Any, version: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (CHATS, longest) of question and answer; only the answer is learnt."""
    chats = [_chat(tokenizer, p.format(module=m), _answer(m, version)) for m in MODULES for p in PHRASINGS]
    longest = max(len(ids) for ids, _ in chats)
    input_ids = torch.tensor([ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in chats])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in chats])
    while True:
        order = torch.randperm(len(chats))
        for start in range(0, len(order), CHATS):
            yield input_ids[order[start : start + CHATS]], labels[order[start : start + CHATS]]


def _chat(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    """One exchange as tokens and labels; -100 where there is nothing to learn."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    return whole, [-100] * len(prompt) + whole[len(prompt) :]


def _answer(module: str, version: int) -> str:
    return ANSWERS[version].format(summary=module_summary(module), module=module)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's random numbers from a seed, and the caller's own sequence left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its progress bars and advice; errors are raised as ever."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT reads an attribute that transformers 6 will rename
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
