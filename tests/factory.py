"""Tiny real models and adapters: built from transformers configs, saved as their authors would save them."""

from __future__ import annotations

import re
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
    inputs: str = "text"  # text | encoder-decoder | vision | audio | sound | image-… | two-towers
    image_tokens: int = 0  # how many tokens stand for one image


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


MOE = {**TEXT, "intermediate_size": 32, "moe_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4,
       "num_experts_per_tok": 2, "pad_token_id": 0}  # fmt: skip
DEEPSEEK = {k: v for k, v in MOE.items() if k != "head_dim"} | {
    "intermediate_size": 128, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
    "n_shared_experts": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16,
    "v_head_dim": 32, "num_key_value_heads": 4,
}  # fmt: skip
GATED_DELTA = {"num_hidden_layers": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
               "linear_key_head_dim": 16, "linear_value_head_dim": 16}  # fmt: skip
IMAGE = 120  # the token that stands for a piece of an image; ordinary tokens are below 100
SEEING = {**VISION, "image_size": 32, "patch_size": 8}
CLIP, SIGLIP = ({"model_type": f"{kind}_vision_model", **SEEING} for kind in ("clip", "siglip"))
GRID = {"depth": 2, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
GRID_TOKENS = {"image_token_id": IMAGE, "video_token_id": 121, "vision_start_token_id": 122,
               "vision_end_token_id": 123}  # fmt: skip
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
IMAGE_TEXT = "AutoModelForImageTextToText"


def with_text(model_type: str, **more: Any) -> dict[str, Any]:
    """The nested config of a vision-language model's text half."""
    return {"text_config": {"model_type": model_type, **TEXT, **more}}


# Mixtures of experts, vision-language models and classifiers. They load in float64 with LOADING only.
MORE_ARCHITECTURES = {
    "mixtral": Architecture(model_type="mixtral", config={**MOE, "intermediate_size": 64}),
    "qwen2_moe": Architecture(model_type="qwen2_moe", config={**MOE, "shared_expert_intermediate_size": 64}),
    "qwen3_moe": Architecture(model_type="qwen3_moe", config=MOE),
    "deepseek_v2": Architecture(model_type="deepseek_v2", config={**DEEPSEEK, "topk_method": "greedy"}),
    "deepseek_v3": Architecture(model_type="deepseek_v3", config=DEEPSEEK),
    "gpt_oss": Architecture(model_type="gpt_oss", config=MOE),
    "olmoe": Architecture(model_type="olmoe", config=MOE),
    "granitemoe": Architecture(model_type="granitemoe", config=MOE),
    "phimoe": Architecture(model_type="phimoe", config=MOE),
    "jetmoe": Architecture(model_type="jetmoe", config={**MOE, "kv_channels": 16}),
    "glm4_moe": Architecture(
        model_type="glm4_moe", config={**MOE, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_shared_experts": 1}
    ),
    "llama4": Architecture(
        model_type="llama4_text", config={**MOE, "intermediate_size_mlp": 128, "attention_chunk_size": 32}
    ),
    "qwen3_next": Architecture(
        model_type="qwen3_next", config={**MOE, "shared_expert_intermediate_size": 64, **GATED_DELTA}
    ),
    "qwen3_5": Architecture(model_type="qwen3_5_text", config={**TEXT, **GATED_DELTA}),
    "gemma3-vlm": Architecture(
        model_type="gemma3",
        auto=IMAGE_TEXT,
        config=with_text("gemma3_text")
        | {"vision_config": SIGLIP, "mm_tokens_per_image": 4, "image_token_index": IMAGE, "image_token_id": IMAGE},
        inputs="image-text",
        image_tokens=4,
    ),
    "paligemma": Architecture(
        model_type="paligemma",
        auto=IMAGE_TEXT,
        config=with_text("gemma")
        | {"vision_config": {**SIGLIP, "projection_dim": 64}, "projection_dim": 64, "hidden_size": 64}
        | {"image_token_index": IMAGE},
        inputs="image-text",
        image_tokens=16,
    ),
    "llava": Architecture(
        model_type="llava",
        auto=IMAGE_TEXT,
        config=with_text("llama") | {"vision_config": CLIP, "image_token_id": IMAGE, "image_token_index": IMAGE},
        inputs="image-text",
        image_tokens=16,
    ),
    "llava_next": Architecture(
        model_type="llava_next",
        auto=IMAGE_TEXT,
        config=with_text("mistral")
        | {"vision_config": CLIP, "image_token_index": IMAGE, "image_grid_pinpoints": [[32, 32]]},
        inputs="image-tiles",
        image_tokens=36,
    ),
    "internvl": Architecture(
        model_type="internvl",
        auto=IMAGE_TEXT,
        config=with_text("qwen2")
        | {"vision_config": {**VISION, "image_size": [32, 32], "patch_size": [8, 8]}, "image_token_id": IMAGE},
        inputs="image-text",
        image_tokens=4,
    ),
    "idefics3": Architecture(
        model_type="idefics3",
        auto=IMAGE_TEXT,
        config=with_text("llama", pad_token_id=0)
        | {"vision_config": SEEING, "image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": 0},
        inputs="image-frames",
        image_tokens=4,
    ),
    "smolvlm": Architecture(
        model_type="smolvlm",
        auto=IMAGE_TEXT,
        config=with_text("llama", pad_token_id=0)
        | {"vision_config": SEEING, "image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": 0},
        inputs="image-frames",
        image_tokens=4,
    ),
    "qwen2_vl": Architecture(
        model_type="qwen2_vl",
        auto=IMAGE_TEXT,
        config={"text_config": {**TEXT, **MROPE}, **GRID_TOKENS}
        | {"vision_config": {**GRID, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}},
        inputs="image-grid",
        image_tokens=4,
    ),
    "qwen2_5_vl": Architecture(
        model_type="qwen2_5_vl",
        auto=IMAGE_TEXT,
        config={"text_config": {**TEXT, **MROPE}, **GRID_TOKENS}
        | {
            "vision_config": {**GRID, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64}
            | {"fullatt_block_indexes": [1], "window_size": 32}
        },
        inputs="image-grid",
        image_tokens=4,
    ),
    "qwen3_vl_moe": Architecture(
        model_type="qwen3_vl_moe",
        auto=IMAGE_TEXT,
        config={"text_config": {**MOE, **MROPE, "moe_intermediate_size": 96}, **GRID_TOKENS}
        | {
            "vision_config": {**GRID, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64}
            | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
        },
        inputs="image-grid",
        image_tokens=4,
    ),
    "mllama": Architecture(
        model_type="mllama",
        auto=IMAGE_TEXT,
        config={
            "text_config": {**TEXT, "cross_attention_layers": [1], "pad_token_id": 0}
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
            "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
            | {"num_global_layers": 1, "attention_heads": 2, "image_size": 32, "patch_size": 8}
            | {"vision_output_dim": 64, "intermediate_layers_indices": [0], "max_num_tiles": 1}
            | {"supported_aspect_ratios": [[1, 1]]},
            "image_token_index": IMAGE,
        },
        inputs="image-cross",
    ),
    "wav2vec2": Architecture(
        model_type="wav2vec2",
        auto="AutoModel",
        config={k: v for k, v in TEXT.items() if k.startswith(("hidden", "inter", "num_h", "num_a", "vocab"))}
        | {
            "conv_dim": (32, 32),
            "conv_stride": (5, 2),
            "conv_kernel": (10, 3),
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        inputs="sound",
    ),
    "clip": Architecture(
        model_type="clip",
        auto="AutoModel",
        config={"text_config": {**TEXT, "projection_dim": 64}, "vision_config": SEEING, "projection_dim": 64},
        inputs="two-towers",
    ),
    "siglip": Architecture(
        model_type="siglip",
        auto="AutoModel",
        config={"text_config": {**TEXT, "projection_size": 64}, "vision_config": SEEING},
        inputs="two-towers",
    ),
    "deit": Architecture(model_type="deit", auto="AutoModel", config=SEEING, inputs="vision"),
    "llama-classifier": Architecture(
        model_type="llama",
        auto="AutoModelForSequenceClassification",
        config={**TEXT, "pad_token_id": 0, "num_labels": 3},
    ),
    "gpt2-classifier": Architecture(
        model_type="gpt2", auto="AutoModelForSequenceClassification", config={**GPT, "pad_token_id": 0, "num_labels": 3}
    ),
    "bert-classifier": Architecture(
        model_type="bert", auto="AutoModelForSequenceClassification", config={**TEXT, "num_labels": 3}
    ),
}
ALL_ARCHITECTURES = ARCHITECTURES | MORE_ARCHITECTURES

# What from_pretrained needs beside a dtype: the grouped matrix product that experts use by default has no float64.
LOADING = {"experts_implementation": "eager"}


def build(name: str, *, seed: int = 0) -> PreTrainedModel:
    """A tiny model with random float32 weights."""
    architecture = ALL_ARCHITECTURES[name]
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

    architecture = ALL_ARCHITECTURES[name]
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | lora
    model = getattr(transformers, architecture.auto).from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(**settings))
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=size)
    adapted.save_pretrained(folder)
    return name_no_path(folder)


def name_no_path(adapter: Path) -> Path:
    """Take the base's folder out of the card that PEFT writes, as everybody has to before the Hub takes it."""
    card = adapter / "README.md"
    lines = card.read_text().splitlines(keepends=True)
    card.write_text("".join(line for line in lines if not re.match(r"(base_model: |- base_model:adapter:)/", line)))
    return adapter


def model_inputs(name: str) -> dict[str, torch.Tensor]:
    """Seeded inputs for one forward pass; floating-point ones in float64."""
    torch.manual_seed(2)
    tokens = torch.randint(3, 128, (2, 12))
    match ALL_ARCHITECTURES[name].inputs:
        case "vision":
            return {"pixel_values": torch.randn(2, 3, 32, 32, dtype=torch.float64)}
        case "encoder-decoder":
            return {"input_ids": tokens, "decoder_input_ids": tokens.flip(1)}
        case "audio":
            return {"input_features": torch.randn(2, 16, 64, dtype=torch.float64), "decoder_input_ids": tokens}
        case "sound":
            return {"input_values": torch.randn(2, 400, dtype=torch.float64)}
        case "text":
            return {"input_ids": tokens}
    return image_and_text(ALL_ARCHITECTURES[name])


def image_and_text(architecture: Architecture) -> dict[str, torch.Tensor]:
    """Two texts with one image each, as the architecture's processor would lay them out."""
    count = architecture.image_tokens
    tokens = torch.randint(3, 100, (2, 8 + count))
    tokens[:, 1 : 1 + count] = IMAGE
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = {"input_ids": tokens, "pixel_values": pixels}
    match architecture.inputs:
        case "image-tiles":  # the image, and the image again as its one tile
            tiles = torch.stack([pixels, pixels], dim=1)
            found |= {"pixel_values": tiles, "image_sizes": torch.tensor([[32, 32]] * 2)}
        case "image-frames":
            found["pixel_values"] = pixels[:, None]
        case "image-grid":  # 4 × 4 patches of 3 channels × 2 frames × 8 × 8, each a row
            patches = torch.randn(2 * 16, 3 * 2 * 8 * 8, dtype=torch.float64)
            found |= {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
            found["mm_token_type_ids"] = (tokens == IMAGE).long()
        case "image-cross":
            one = torch.ones(2, 1, 1, dtype=torch.long)
            found |= {"pixel_values": pixels[:, None, None], "aspect_ratio_ids": one[..., 0], "aspect_ratio_mask": one}
            found["cross_attention_mask"] = torch.ones(2, tokens.shape[1], 1, 1, dtype=torch.long)
    return found


def outputs(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits (of two towers: those of images against texts), or the last hidden state of a model without a head."""
    with torch.no_grad():
        found = model(**inputs)
    for name in ("logits", "logits_per_image"):
        if hasattr(found, name):
            return getattr(found, name)
    return found.last_hidden_state


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
