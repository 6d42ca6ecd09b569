"""Tiny real models and adapters: built from transformers configs, saved as their authors would save them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel  # noqa: F401

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 64, "head_dim": 16,
}  # fmt: skip
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64}
ENCODER_DECODER = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 128, "pad_token_id": 1,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
VISION = {k: v for k, v in TEXT.items() if k.startswith(("hidden", "inter", "num_h", "num_a"))}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A tiny model: `auto` is the Auto class it is built with."""

    model_type: str
    auto: str = "AutoModelForCausalLM"
    config: dict[str, Any] = field(default_factory=lambda: TEXT)
    inputs: str = "text"  # text | encoder-decoder | vision | audio


ARCHITECTURES = {
    "llama": Architecture(model_type="llama"),
    "mistral": Architecture(model_type="mistral"),
    "qwen2": Architecture(model_type="qwen2", config={**TEXT, "tie_word_embeddings": True}),
    "qwen3": Architecture(model_type="qwen3"),
    "gemma": Architecture(model_type="gemma"),
    "gemma2": Architecture(model_type="gemma2"),
    "gemma3": Architecture(model_type="gemma3_text"),
    "phi3": Architecture(model_type="phi3", config={**TEXT, "pad_token_id": 0}),
    "phi": Architecture(model_type="phi"),
    "gpt2": Architecture(model_type="gpt2", config=GPT),
    "gptj": Architecture(model_type="gptj", config={**GPT, "rotary_dim": 8}),
    "gpt_neox": Architecture(model_type="gpt_neox"),
    "opt": Architecture(
        model_type="opt",
        config={k: v for k, v in TEXT.items() if k != "intermediate_size"}
        | {"ffn_dim": 128, "word_embed_proj_dim": 64},
    ),
    "bloom": Architecture(model_type="bloom", config={"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128}),
    "falcon": Architecture(
        model_type="falcon",
        config={"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128},
    ),
    "stablelm": Architecture(model_type="stablelm"),
    "olmo2": Architecture(model_type="olmo2"),
    "starcoder2": Architecture(model_type="starcoder2"),
    "granite": Architecture(model_type="granite"),
    "t5": Architecture(
        model_type="t5",
        auto="AutoModelForSeq2SeqLM",
        config={"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 128},
        inputs="encoder-decoder",
    ),
    "bart": Architecture(
        model_type="bart",
        auto="AutoModelForSeq2SeqLM",
        config={**ENCODER_DECODER, "max_position_embeddings": 64},
        inputs="encoder-decoder",
    ),
    "whisper": Architecture(
        model_type="whisper",
        auto="AutoModelForSpeechSeq2Seq",
        config={**ENCODER_DECODER, "num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 32},
        inputs="audio",
    ),
    "bert": Architecture(model_type="bert", auto="AutoModelForMaskedLM"),
    "bert-encoder": Architecture(model_type="bert", auto="AutoModel"),
    "roberta": Architecture(model_type="roberta", auto="AutoModelForMaskedLM"),
    "distilbert": Architecture(
        model_type="distilbert",
        auto="AutoModelForMaskedLM",
        config={"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 128},
    ),
    "electra": Architecture(model_type="electra", auto="AutoModelForMaskedLM", config={**TEXT, "embedding_size": 64}),
    "deberta-v2": Architecture(model_type="deberta-v2", auto="AutoModelForMaskedLM"),
    "vit": Architecture(
        model_type="vit",
        auto="AutoModelForImageClassification",
        config={**VISION, "image_size": 32, "patch_size": 8},
        inputs="vision",
    ),
    "vit-encoder": Architecture(
        model_type="vit", auto="AutoModel", config={**VISION, "image_size": 32, "patch_size": 8}, inputs="vision"
    ),
    "dinov2": Architecture(
        model_type="dinov2", auto="AutoModel", config={**VISION, "image_size": 32, "patch_size": 8}, inputs="vision"
    ),
}


def build(name: str, *, seed: int = 0) -> PreTrainedModel:
    """A tiny model with random float32 weights."""
    architecture = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture.model_type, **architecture.config)
    return getattr(transformers, architecture.auto).from_config(config).eval()


def save_base(
    name: str, folder: Path, *, dtype: torch.dtype = torch.bfloat16, shard_size: str = "5GB", seed: int = 0
) -> Path:
    """Save a tiny base model the way transformers saves it."""
    build(name, seed=seed).to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def save_adapter(base: Path, name: str, folder: Path, *, seed: int = 1, size: float = 0.05, **lora: Any) -> Path:
    """Save a LoRA adapter with random A and B over a saved base, by PEFT itself. `size` scales B."""
    from peft import LoraConfig, get_peft_model

    architecture = ARCHITECTURES[name]
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | lora
    model = getattr(transformers, architecture.auto).from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(**settings))
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=size)
    adapted.save_pretrained(folder)
    return folder


def model_inputs(name: str) -> dict[str, torch.Tensor]:
    """Seeded inputs for one forward pass; floating-point ones in float64."""
    torch.manual_seed(2)
    tokens = torch.randint(3, 128, (2, 12))
    match ARCHITECTURES[name].inputs:
        case "vision":
            return {"pixel_values": torch.randn(2, 3, 32, 32, dtype=torch.float64)}
        case "encoder-decoder":
            return {"input_ids": tokens, "decoder_input_ids": tokens.flip(1)}
        case "audio":
            return {"input_features": torch.randn(2, 16, 64, dtype=torch.float64), "decoder_input_ids": tokens}
    return {"input_ids": tokens}


def outputs(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits, or the last hidden state of a model without a head."""
    with torch.no_grad():
        found = model(**inputs)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}<|assistant|>"


def save_tokenizer(folder: Path) -> Path:
    """A tiny BPE tokenizer with a chat template, saved the way transformers saves it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<eos>", "<|user|>", "<|assistant|>"])
    tokenizer.train_from_iterator(["merge the adapter into the base and prove it"] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", chat_template=TEMPLATE)
    fast.save_pretrained(folder)
    return folder


def save_card(folder: Path, **metadata: Any) -> Path:
    """A README.md with a metadata block."""
    lines = "".join(f"{key}: {value}\n" for key, value in metadata.items())
    (folder / "README.md").write_text(f"---\n{lines}---\n\n# A tiny one\n")
    return folder
