"""What bitsandbytes would convert is known from names alone: the same weights that transformers' own quantizer converts."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from bot.formats.bitsandbytes.linears import find
from bot.records import Json
from tests.formats.shelf import headers
from tests.pinned import pinned
from tools.make_linears import TARGET, rows

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS: dict[str, Json] = {
    "llama": {**SMALL, "intermediate_size": 48},
    "llama tied": {**SMALL, "model_type": "llama", "intermediate_size": 48, "tie_word_embeddings": True},
    "qwen2": {**SMALL, "intermediate_size": 48},
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32},
    "gpt2 alone": {
        "model_type": "gpt2", "architectures": ["GPT2Model"], "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4,
    },
    "opt": {
        "vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "word_embed_proj_dim": 16, "max_position_embeddings": 32,
    },
    "mixtral": {**SMALL, "intermediate_size": 48, "num_local_experts": 4},
    "qwen3_moe": {
        **SMALL, "intermediate_size": 48, "moe_intermediate_size": 16, "num_experts": 4, "mlp_only_layers": [0], "head_dim": 8,
    },
    "deepseek_v3": {
        **SMALL, "intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
        "num_experts_per_tok": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
        "v_head_dim": 8, "first_k_dense_replace": 1, "num_key_value_heads": 4,
    },
    "olmo": {**SMALL, "intermediate_size": 48},
    "olmo tied": {**SMALL, "model_type": "olmo", "intermediate_size": 48, "tie_word_embeddings": True},
    "gpt_neox": {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "falcon": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "phi": {**SMALL, "intermediate_size": 48},
    "gemma2": {**SMALL, "intermediate_size": 48, "head_dim": 8},
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"vocab_size": 64, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2},
}  # fmt: skip
SKIPS: list[list[str] | None] = [
    None,
    ["lm_head", "o_proj"],
    ["model.layers.1", "fc1"],
    ["layers.*.mlp", "c_proj", "score"],
]


def built(name: str) -> PreTrainedModel:
    said = {"model_type": name, **MODELS[name]}
    config = AutoConfig.for_model(**said)
    if said.get("architectures"):
        import transformers

        return getattr(transformers, said["architectures"][0])(config)
    return AutoModelForCausalLM.from_config(config)


@cache
def saved(name: str, root: Path) -> Path:
    torch.manual_seed(0)
    built(name).save_pretrained(root / name)
    return root / name


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("linears")


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("name", MODELS)
def test_the_weights_are_those_that_transformers_converts(name: str, skip: list[str] | None, root: Path) -> None:
    folder = saved(name, root)
    with torch.device("meta"):
        model = built(name)
    conv1d = {path for path, one in model.named_modules() if isinstance(one, Conv1D)}
    said = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skip)
    before = {path: type(one) for path, one in model.named_modules()}
    Bnb4BitHfQuantizer(said, pre_quantized=False)._process_model_before_weight_loading(model, device_map=None)
    converted = {path for path, one in model.named_modules() if type(one) is not before[path]}

    found = find({key: one.shape for key, one in headers(folder).items()}, config_of(folder), skip)

    assert found.known
    assert not found.mixed
    stored = {module for module in converted if f"{module}.weight" in dict(built(name).named_parameters())}
    assert set(found.modules.values()) == stored
    assert {found.modules[key] for key, is_conv1d in found.keys.items() if is_conv1d} == stored & conv1d


def config_of(folder: Path) -> Json:
    found: Json = json.loads((folder / "config.json").read_text())
    return found


def test_names_of_transformers_4_lead_to_the_same_modules(root: Path) -> None:
    """Experts that are stacked on load are no Linear; a checkpoint without the base model's prefix is none the poorer."""
    old = {"block_sparse_moe.experts.0.w1": (48, 32), "block_sparse_moe.gate": (4, 32), "self_attn.q_proj": (32, 32)}
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in old.items()}
    found = find(shapes, {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]})
    assert list(found.keys) == ["model.layers.0.self_attn.q_proj.weight"]
    bare = find({"h.0.attn.c_attn.weight": (32, 96), "wte.weight": (64, 32)}, {"model_type": "gpt2"})
    assert bare.keys == {"h.0.attn.c_attn.weight": True}


def test_what_is_left_alone_is_named_for_readers() -> None:
    shapes = {f"model.layers.0.mlp.{name}_proj.weight": (64, 64) for name in ("up", "down")} | {
        "lm_head.weight": (64, 64)
    }
    found = find(shapes, {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    assert found.left(found.keys) == ("lm_head",)
    assert found.left(["model.layers.0.mlp.up_proj.weight"]) == ("lm_head", "model.layers.0.mlp.down_proj")


def test_of_an_unknown_architecture_nothing_is_guessed() -> None:
    found = find({"model.layers.0.mlp.up_proj.weight": (8, 8)}, {"model_type": "nobody-knows"})
    assert not found.known
    assert not found.keys


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "GPT2LMHeadModel", "OlmoForCausalLM", "T5ForConditionalGeneration"]
)
def test_the_table_is_the_pinned_transformers(name: str) -> None:
    """A few classes, built again by what is installed; `python -m tools.make_linears` writes the whole."""
    table = json.loads(TARGET.read_text())
    assert table["transformers"] == pinned("transformers")
    for one, row in rows([name]).items():
        assert table["rows"][table["classes"][one]] == row
