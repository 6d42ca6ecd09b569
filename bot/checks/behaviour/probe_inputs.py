"""Fixed inputs: short texts where the model has a tokenizer, else seeded tokens; seeded pixels and sounds."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bot.checks.behaviour.job import LENGTH, WorkerJob
from bot.checks.folder.own_code import code_named
from bot.checks.folder.special_tokens import vocabulary_files

COUNT = 8  # texts, pictures or sounds, at first
LOGITS = 160 << 20  # bytes of saved logits at most: 32 positions per text at 150,000 tokens
DISTINCT = 8  # tokens of a text, at least, or it was not read
WINDOW = 256  # tokens of a longer text at a time
WINDOWED = 4096  # and in all
TEXT_LOGITS = 640 << 20  # bytes of their saved logits at most
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
)  # fmt: skip

TEXTS = (
    "The ferry left the harbour at six, an hour late, because the fog had not lifted. Anna counted the crates on the "
    "quay: eleven oranges, four of lamp oil, and one, unmarked, that nobody would sign for. She wrote it down anyway.",
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    if len(ordered) % 2:\n"
    "        return ordered[middle]\n    return (ordered[middle - 1] + ordered[middle]) / 2\n\nprint(median([3, 1, 4, 1, 5]))",
    "User: My train was cancelled and I missed my flight. What can I claim?\nAssistant: That depends on whether both "
    "were on one ticket. If they were, the carrier owes you a new routing. If not, ask the railway for a refund first.",
    "Let n be an even number greater than two. Suppose that n = p + q with p and q prime. For n = 28 we may take p = 5 "
    "and q = 23, or p = 11 and q = 17. Therefore the number of such pairs, written g(28), equals 2. Now compute g(30).",
    "Der Vertrag beginnt am 1. März und kann mit einer Frist von drei Monaten gekündigt werden. Le locataire verse une "
    "caution de deux mois. El depósito se devuelve en treinta días. 契約は自動的に更新されます。",
    '{"order": 4711, "items": [{"sku": "A-12", "qty": 3, "price": 9.5}, {"sku": "B-07", "qty": 1, "price": 120.0}], '
    '"ship_to": {"city": "Porto", "zip": "4000-123"}, "paid": true, "notes": null}',
    "SELECT c.name, COUNT(*) AS orders FROM customers c JOIN orders o ON o.customer_id = c.id WHERE o.placed_at >= "
    "'2024-01-01' GROUP BY c.name HAVING COUNT(*) > 5 ORDER BY orders DESC LIMIT 10;",
    "Patient presents with a two-day history of fever and a dry cough. No shortness of breath. Temperature 38.4 °C, "
    "pulse 92, blood pressure 124/78. Lungs clear. Advised rest, fluids and paracetamol; return if symptoms worsen.",
)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has any file that a tokenizer is made from."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def load_tokenizer(folder: Path, trust: bool) -> Any:
    """The folder's tokenizer, from its own files only."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)


def build_inputs(model: Any, job: WorkerJob) -> list[dict[str, Tensor]]:
    """`job.prompts` inputs of batch size one, by what the model's `main_input_name` says it reads. More prompts are
    the same ones, and others."""
    generator = torch.Generator().manual_seed(0)
    makers = {"pixel_values": _pixels, "input_features": _mel, "input_values": _sound}
    make = makers.get(model.main_input_name)
    built = [{model.main_input_name: make(model.config, generator)} for _ in range(job.prompts)] if make else []
    if not built:
        tokens = _tokens(model, job, generator)
        built = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in tokens]
        if hasattr(model, "logit_scale"):  # CLIP and its kin compare a text with a picture, and want both
            built = [{**prompt, "pixel_values": _pixels(model.config, generator)} for prompt in built]
    if getattr(model.config, "is_encoder_decoder", False):
        for prompt in built:
            prompt["decoder_input_ids"] = _random_ids(model.config, generator, 32)
    accepted = inspect.signature(model.forward).parameters
    return [{name: value for name, value in prompt.items() if name in accepted} for prompt in built]


def text_windows(model: Any, job: WorkerJob) -> list[dict[str, Tensor]]:
    """The text of `--eval-text` in windows of WINDOW tokens, as many as may be saved; [] without one, or a tokenizer."""
    owner = _owner(job)
    if not job.text or owner is None or model.main_input_name != "input_ids":
        return []
    config = model.config.get_text_config()
    vocabulary = int(getattr(config, "vocab_size", 0) or 256)
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or WINDOW
    length = max(2, min(WINDOW, int(longest) - 4))
    text = job.text.read_text(encoding="utf-8", errors="replace")
    ids = load_tokenizer(owner, _is_base(owner, job))(text, return_tensors="pt", verbose=False)["input_ids"]
    ids = ids[:, : min(WINDOWED, TEXT_LOGITS // (4 * vocabulary))]
    if not ids.numel() or int(ids.max()) >= vocabulary:
        return []
    windows = [window for window in torch.split(ids, length, dim=1) if window.shape[1] > 1]
    accepted = inspect.signature(model.forward).parameters
    built = [{"input_ids": window, "attention_mask": torch.ones_like(window)} for window in windows]
    return [{name: value for name, value in prompt.items() if name in accepted} for prompt in built]


def prompt_tokenizer(job: WorkerJob) -> Any | None:
    """The tokenizer that texts for the models are read with; None where neither adapter nor base has one."""
    owner = _owner(job)
    return None if owner is None else load_tokenizer(owner, _is_base(owner, job))


def _owner(job: WorkerJob) -> Path | None:
    """The adapter's tokenizer, else the base's: an adapter's own Python is never run, so that one which needs it is none."""
    adapter, base = job.adapter, job.base
    if has_tokenizer(adapter) and vocabulary_files(adapter) and not any(True for _ in code_named(adapter)):
        return adapter
    return base if has_tokenizer(base) else None


def _is_base(owner: Path, job: WorkerJob) -> bool:
    return job.trust and owner == job.base


def _tokens(model: Any, job: WorkerJob, generator: torch.Generator) -> list[Tensor]:
    text = model.config.get_text_config()
    vocabulary = int(getattr(text, "vocab_size", 0) or 256)
    longest = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or LENGTH
    length = max(1, min(job.tokens, int(longest) - 4, LOGITS // (4 * vocabulary * COUNT)))
    owner = _owner(job)
    if owner is not None:
        tokenizer = load_tokenizer(owner, _is_base(owner, job))
        ids = [tokenizer(text, return_tensors="pt")["input_ids"][:, :length] for text in TEXTS]
        if all(_is_read(tokens, vocabulary, length) for tokens in ids):
            more = job.prompts - len(ids)
            return ids + [_random_ids(model.config, generator, length) for _ in range(more)]
    return [_random_ids(model.config, generator, length) for _ in range(job.prompts)]


def _is_read(ids: Tensor, vocabulary: int, length: int) -> bool:
    """Whether the tokenizer reads text at all: one of proteins makes it nothing but unknown tokens, and among tokens that are
    all the same no attention has anything to choose from, so that changed queries and keys would go unseen."""
    return len(set(ids.flatten().tolist())) >= min(DISTINCT, length) and int(ids.max()) < vocabulary


def _random_ids(config: Any, generator: torch.Generator, length: int) -> Tensor:
    vocabulary = int(getattr(config.get_text_config(), "vocab_size", 0) or 256)
    return torch.randint(0, vocabulary, (1, length), generator=generator)


def _pixels(config: Any, generator: torch.Generator) -> Tensor:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
    return torch.randn(1, getattr(vision, "num_channels", 3), height, width, generator=generator)


def _mel(config: Any, generator: torch.Generator) -> Tensor:
    frames = 2 * getattr(config, "max_source_positions", 1500)
    return torch.randn(1, getattr(config, "num_mel_bins", 80), frames, generator=generator)


def _sound(config: Any, generator: torch.Generator) -> Tensor:
    if hasattr(config, "num_mel_bins"):  # the audio spectrogram transformer reads frames × mels
        return torch.randn(1, getattr(config, "max_length", 1024), config.num_mel_bins, generator=generator)
    return torch.randn(1, 16_000, generator=generator)  # one second at 16 kHz
