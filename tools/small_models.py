"""A small model of any class that transformers has: its default config with every size reduced, by the names of the sizes.

Used by tools/make_conversions.py and by the tests.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# Where a model type's class is looked for, the first that has it.
MAPPINGS = (
    "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "MASKED_LM", "MULTIMODAL_LM", "CTC",
)  # fmt: skip
# What the name of a size is, as a regular expression → what it becomes; the first that fits.
SIZES: tuple[tuple[str, int], ...] = (
    (r"(num_|n_)?(local_|routed_|total_)?experts|(moe_)?num_(moe_|routed_)?experts", 4),
    (r"(num_)?(experts_per_tok(en)?|selected_experts|topk_experts)|moe_(k|topk|top_k)|top_k_experts|expert_top_k", 2),
    (r"n_group|topk_group|num_expert_group|n_groups_topk|first_k_dense_replace|moe_layer_start_index", 1),
    (r"(num_|n_)shared_experts", 1),
    (r"moe_.*(intermediate|ffn|inner).*size|expert_(ffn_hidden|intermediate)_size|expert_dim", 32),
    (r"expert_ffn_hidden_size|.*shared_expert.*intermediate_size", 32),
    (r"intermediate_size|.*ffn_(hidden_)?(dim|size)|.*intermediate_(size|dim)(_mlp)?|dim_feedforward", 96),
    (r"d_ff|n_inner|feed_forward_size|d_inner|inner_dim", 96),
    (r"(num_|n_)?(key_value_heads|kv_heads|key_value_groups|query_groups|global_key_value_heads)|num_head_groups", 2),
    (r"mamba_n_heads|n_mamba_heads|mamba_num_heads", 8),
    (r"mamba_(d_)?head(_dim)?|mamba_headdim", 16),
    (r"(.*_)?(num_attention_heads|attention_heads|num_heads|n_heads?|num_head|attn_heads|heads)", 4),
    (r"(linear_)?num_(key|value)_heads", 4),
    (r"(.*_)?(head_dim|head_size|d_kv|kv_channels|d_head|qk_(rope|nope)_head_dim)", 16),
    (r".*_lora_rank", 16),
    (r"(max_)?num_hidden_layers|(.*_)?num_layers|n_layers?|(encoder|decoder)_layers|depth|num_hidden_blocks", 2),
    (r"num_(encoder|decoder)(_hidden)?_layers|(n|num)_blocks", 2),
    (r"max_(position|sequence|source|target).*|n_positions|n_ctx|context_length|max_seq_len|seq_length", 128),
    (r"(.*_)?vocab_size(_per_layer_input)?|num_embeddings|codebook_size", 128),
    (r"(image|input|img)_size|pretrain_img_size", 32),
    (r"(.*_)?patch_size", 8),
    (r"num_mel_bins|num_mel_channels|feature_size|input_feat_per_channel|n_mels|mel_dim", 16),
    (r".*(hidden_size|hidden_dim|d_model|n_embd|n_embed|embed_dim|embedding_size|embedding_dim|model_dim|emb_dim)", 64),
    (r".*(projection_dim|projection_size|output_dim|width|lru_width|hidden_channels|entity_emb_size|d_embed|dim)", 64),
)  # fmt: skip
DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth")
LAYERS = 2  # at least; where layers are of several kinds, one of each
# Classes of types whose mapping names one that wants a part of the config only, or that the sub-model is tried as itself.
CLASSES = {
    "emu3": "Emu3ForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen4_exp": "Qwen4ExpForConditionalGeneration",
    "musicgen": "MusicgenForConditionalGeneration",
    "musicgen_melody": "MusicgenMelodyForConditionalGeneration",
    "hyperclovax_vision_v2": "HyperClovaXVisionV2ForConditionalGeneration",
    "bark": "BarkSemanticModel",
    "marian": "MarianMTModel",
    "lxmert": "LxmertForPreTraining",
}
EQUAL_HEADS = {"num_key_value_heads": 4}
ZAMBA = {
    "num_hidden_layers": 6, "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2,
    "attention_hidden_size": 128, "attention_head_dim": 32, "mamba_d_state": 16, "n_mamba_heads": 2,
}  # fmt: skip
# Settings that sizes alone do not lead to.
SETTINGS: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0}},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1,
              "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1},
    "dots3_note": {"text_config": EQUAL_HEADS},
    "dots3_note_text": EQUAL_HEADS,
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}},
    "gemma4_unified_assistant": {"text_config": {"num_kv_shared_layers": 0}},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "aya_vision": {"vision_config": {"hidden_size": 64, "num_attention_heads": 4}},
    "qwen3_omni_moe_talker": {"spatial_merge_size": 2, "text_config": {"shared_expert_intermediate_size": 32}},
    "seamless_m4t_v2": {"variance_predictor_embed_dim": 64},
    "moshi": {"num_codebooks": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "hunyuan_vl_text": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "num_experts": 4},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "zamba": ZAMBA,
    "zamba2": {"num_hidden_layers": 6, "layers_block_type": ["linear_attention", "hybrid"] * 3, "mamba_ngroups": 1,
               "n_mamba_heads": 8, "num_mem_blocks": 2, "adapter_rank": 8, "attention_hidden_size": 128,
               "attention_head_dim": 32, "use_shared_attention_adapter": False, "chunk_size": 16, "mamba_d_state": 16},
    "swinv2": {"embed_dim": 24},
    "donut-swin": {"embed_dim": 24},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "chameleon": {"vocabulary_map": {"<image>": 120}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"]}},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}},
    "ernie4_5_vl_moe": {"text_config": {"moe_intermediate_size": [32, 16], "moe_num_experts": 4, "moe_k": 2,
                                        "mlp_layer_types": ["dense", "sparse"],
                                        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                            "mrope_section": [3, 3, 2]}}},
    "glm5_next": {"text_config": EQUAL_HEADS},
    "glm5_next_text": EQUAL_HEADS,
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "2/4"},
    "emu3": {"vocabulary_map": {"<image>": 120}, "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1]}},
    "qwen4_exp": {"text_config": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16,
                                  "indexer_budget": 32, "indexer_compress_ratio": 8}},
    "qwen3_omni_moe": {"talker_config": {"spatial_merge_size": 2,
                                         "text_config": {"shared_expert_intermediate_size": 32}}},
    "moonshine_streaming": {"num_attention_heads": 4, "num_key_value_heads": 2, "encoder_num_key_value_heads": 2},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "esmc": EQUAL_HEADS,
    "inkling_mm_model": {"text_config": {"n_shared_experts": 2}},
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 32,
                       "indexer_compress_ratio": 8},
    "wav2vec2-bert": {"vocab_size": 32},
    "wav2vec2-conformer": {"vocab_size": 32},
    "autoformer": {"prediction_length": 4},
    "informer": {"prediction_length": 4},
    "time_series_transformer": {"prediction_length": 4},
    "blt": {"encoder_hash_byte_group_vocab": 128},
    "gemma4": {"text_config": {"vocab_size_per_layer_input": 128}},
    "gemma4_text": {"vocab_size_per_layer_input": 128},
}  # fmt: skip
IDS = re.compile(r".*(token_id|token_index|_id|_index|token_ids)$")


def class_of(model_type: str) -> str | None:
    """The model class, by the first mapping that has it; for encoders the plain one."""
    if model_type in CLASSES:
        return CLASSES[model_type]
    for name in MAPPINGS:
        found = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES").get(model_type)
        if found:
            return found if isinstance(found, str) else found[0]
    found = modeling_auto.MODEL_MAPPING_NAMES.get(model_type)
    return found if isinstance(found, str) or found is None else found[0]


def every_type() -> list[str]:
    """Every model type that has such a class."""
    found: dict[str, None] = {}
    for name in MAPPINGS:
        found |= dict.fromkeys(getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES"))
    return [*found, *(one for one in modeling_auto.MODEL_MAPPING_NAMES if one not in found)]


class _Ids:
    """Token ids below the small vocabulary, each once."""

    def __init__(self) -> None:
        self._next = 127

    def take(self) -> int:
        self._next -= 1
        return self._next + 1


def small(config: PreTrainedConfig, ids: _Ids | None = None, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """The settings that make a config small, nested ones included; `settings` go first."""
    ids = ids or _Ids()
    settings = settings or {}
    found: dict[str, Any] = {}
    layers = _chosen_layers(config)
    for name, value in vars(config).items():
        if name.startswith("_") or name in ("transformers_version",):
            continue
        if isinstance(value, PreTrainedConfig):
            found[name] = (
                {"model_type": value.model_type, **small(value, ids)} if value.model_type else small(value, ids)
            )
            continue
        new = _smaller(name, value, layers, ids, config)
        if new is not None:
            found[name] = new
    return _merged(found, settings)


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found = dict(one)
    for name, value in other.items():
        nested = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = _merged(found[name], value) if nested else value
    return found


def _chosen_layers(config: PreTrainedConfig) -> list[int] | None:
    """Which layers stay, where some list tells them apart: one of each kind at least, and two of them."""
    count = _depth(config)
    if count is None:
        return None
    kinds: list[int] = []
    for value in vars(config).values():
        if isinstance(value, list | tuple) and len(value) == count and all(isinstance(one, str | int) for one in value):
            seen: set[Any] = set()
            for at, one in enumerate(value):
                if one not in seen and len(seen) < 4:
                    seen.add(one)
                    kinds.append(at)
    chosen = sorted(set(kinds))
    for at in range(count):
        if len(chosen) >= LAYERS:
            break
        if at not in chosen:
            chosen.append(at)
    return sorted(chosen)


def _depth(config: PreTrainedConfig) -> int | None:
    for name in DEPTHS:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 1:
            return value
    return None


def _smaller(name: str, value: Any, layers: list[int] | None, ids: _Ids, config: PreTrainedConfig) -> Any:
    """The small value of one setting; None where it stays."""
    if isinstance(value, bool):
        return None
    if IDS.fullmatch(name):
        return _id(value, ids)
    if isinstance(value, list | tuple) and layers and len(value) == _depth(config) and len(value) > len(layers):
        return [value[at] for at in layers]
    if isinstance(value, dict) and len(value.get("mrope_section", ())) == 3:
        return {**value, "mrope_section": [2, 3, 3]}
    if not isinstance(value, int) or value <= 1:
        return None
    size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)
    if size is None:
        return None
    return min(value, len(layers) if layers and name in DEPTHS else size)


def _id(value: Any, ids: _Ids) -> Any:
    several = value if isinstance(value, list) else [value]
    if not several or not all(isinstance(one, int) for one in several) or max(several) < 128:
        return None
    return [ids.take() for _ in value] if isinstance(value, list) else ids.take()


def config_of(model_type: str, settings: dict[str, Any] | None = None) -> PreTrainedConfig:
    """The small config of a model type."""
    chosen = CONFIG_MAPPING[model_type]
    cls = getattr(transformers, class_of(model_type) or "", None)
    if cls is not None and not isinstance(chosen(), cls.config_class):  # a part of it
        chosen = cls.config_class
    return chosen(**small(chosen(), settings=SETTINGS.get(model_type, {}) if settings is None else settings))


def config_for(chosen: Any, **settings: Any) -> PreTrainedConfig:
    """The small config of any class, with further settings."""
    start = chosen.config_class()
    small_config: PreTrainedConfig = chosen.config_class(
        **_merged(small(start, settings=SETTINGS.get(start.model_type, {})), settings)
    )
    return small_config


def empty(model_type: str, settings: dict[str, Any] | None = None) -> PreTrainedModel:
    """The tiny model without memory for its weights."""
    with torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, class_of(model_type) or "")(config_of(model_type, settings))
    return model
