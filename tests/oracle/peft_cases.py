"""Adapters of every PEFT method on tiny models: made by PEFT, trained by chance, saved as their authors would."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from bot.adapters.method_modules import modules_of
from bot.checkpoint.header import read_header
from bot.records import Json, PeftMerge

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Case:
    """A method with settings, on one of MODELS; `targets` None: the model's usual layers."""

    method: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] | None = None

    def __str__(self) -> str:
        said = ",".join(f"{name}={_short(value)}" for name, value in self.settings.items() if name != "target_modules")
        return f"{self.method}-{self.model}" + (f"-{said}" if said else "") + ("-embedding" if self.targets else "")


def _short(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float | bool) else type(value).__name__


def _llama(tied: bool = False) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=tied, attention_bias=True,
        )
    )  # fmt: skip


def _gpt2() -> PreTrainedModel:
    sizes = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


def _bert() -> PreTrainedModel:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_labels=3,
        )
    )


def _vit() -> PreTrainedModel:
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16,
            patch_size=4, num_channels=4,
        )
    )  # fmt: skip


def _t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    )


# name → (how it is built, layers that are adapted, norms, layers that IA³ takes for feed-forward ones)
MODELS: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "llama": (_llama, ("q_proj", "k_proj", "down_proj"), ("input_layernorm",), ("down_proj",)),
    "llama-tied": (lambda: _llama(tied=True), ("q_proj",), ("input_layernorm",), ()),
    "gpt2": (_gpt2, ("c_attn", "c_fc", "mlp.c_proj"), ("ln_1",), ("mlp.c_proj",)),
    "bert": (_bert, ("query", "value", "intermediate.dense"), ("attention.output.LayerNorm",), ("intermediate.dense",)),
    "vit": (_vit, ("projection", "fc1"), ("layernorm_before",), ("fc1",)),
    "t5": (_t5, ("q", "wo"), ("layer_norm",), ("wo",)),
}
# Sizes that fit the tiny models, and settings without which a method cannot be made.
USUAL: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10}, "ADAMSS": {"r": 8}, "C3A": {"block_size": 16}, "DEFT": {"r": 4},
    "FOURIERFT": {"n_frequency": 40}, "FROD": {"progressbar": False}, "GRALORA": {"r": 8}, "HIRA": {"r": 4},
    "LORA": {"r": 4}, "MISS": {"r": 8}, "OFT": {"oft_block_size": 8}, "OSF": {"effective_rank": 4},
    "PEANUT": {"r": 8}, "PSOFT": {"r": 8}, "PVERA": {"r": 8}, "RANDLORA": {"r": 4}, "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4}, "SUPERTUNING": {"sparsity": 0.9}, "TINYLORA": {"u": 8}, "UNILORA": {"theta_d_length": 64},
    "VBLORA": {"vector_length": 16, "num_vectors": 8}, "VERA": {"r": 8}, "WAVEFT": {"n_frequency": 40},
}  # fmt: skip

LINEAR = ("llama", "bert", "t5")
ANY = ("ADALORA", "ADAMSS", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA", "HIRA", "HRA",
       "IA3", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "ROAD",
       "SHIRA", "SUPERTUNING", "TINYLORA", "UNILORA", "VBLORA", "VERA", "WAVEFT")  # fmt: skip
ON_CONV1D = ("ADALORA", "DEFT", "FOURIERFT", "FROD", "GRALORA", "HIRA", "IA3", "LN_TUNING", "PVERA", "RANDLORA",
             "TINYLORA", "UNILORA", "VBLORA", "VERA", "WAVEFT")  # fmt: skip
ON_CONV2D = ("ADALORA", "BOFT", "HIRA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR")
ON_EMBEDDING = ("HIRA", "OFT", "TINYLORA")
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("LORA", {"init_lora_weights": "pissa"}), ("LORA", {"init_lora_weights": "olora"}),
    ("LORA", {"init_lora_weights": "pissa", "use_dora": True}), ("LORA", {"kasa_config": KasaConfig()}),
    ("LORA", {"velora_config": VeloraConfig(num_groups=4)}), ("LORA", {"monteclora_config": MontecloraConfig()}),
    ("LORA", {"use_bdlora": BdLoraConfig(
        target_modules_bd_a=["q_proj"], target_modules_bd_b=["k_proj"], nblocks=2, match_strict=False)}),
    ("OFT", {"coft": True}), ("OFT", {"block_share": True}), ("OFT", {"use_cayley_neumann": False}),
    ("OFT", {"r": 2, "oft_block_size": 0}), ("BOFT", {"boft_n_butterfly_factor": 2}),
    ("BOFT", {"boft_block_size": 0, "boft_block_num": 4}), ("LOKR", {"r": 2, "decompose_both": True}),
    ("LOKR", {"r": 1, "decompose_factor": 4}), ("MISS", {"init_weights": "bat", "r": 16}),
    ("MISS", {"init_weights": "mini", "mini_r": 4}), ("DEFT", {"decomposition_method": "qr"}), ("DEFT", {"para": True}),
    ("GLORA", {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"}),
    ("GLORA", {"config_A_B": "none", "config_C": "lora", "config_D_E": "constant"}),
    ("VBLORA", {"save_only_topk_weights": True}), ("VERA", {"save_projection": False}),
    ("PVERA", {"save_projection": False}), ("RANDLORA", {"save_projection": False}), ("RANDLORA", {"sparse": True}),
    ("TINYLORA", {"save_projection": False}), ("TINYLORA", {"weight_tying": 1.0}),
    ("SUPERTUNING", {"r": 4, "lora_alpha": 8}), ("SUPERTUNING", {"save_precomputed_indices": False}),
    ("WAVEFT", {"wavelet_family": "db2"}), ("WAVEFT", {"use_idwt": False}), ("HRA", {"apply_GS": True}),
    ("GRALORA", {"hybrid_r": 2}), ("PEANUT", {"depth": 2, "act_fn": "gelu"}), ("PSOFT", {"psoft_orth": False}),
    ("ROAD", {"variant": "road_2"}), ("ROAD", {"variant": "road_4"}), ("UNILORA", {"save_indices": True}),
    ("C3A", {"block_size_pattern": {"q_proj": 8}}), ("ADAMSS", {"use_dynamic_rank": True}),
    ("LOHA", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 3}}), ("VERA", {"bias": "all"}),
    ("BOFT", {"bias": "boft_only"}), ("VERA", {"modules_to_save": ["lm_head"]}),
)  # fmt: skip
NO_BIAS_ON_DOWN = ("q_proj", "k_proj")

CASES = (
    *(Case(method, model) for method in ANY for model in LINEAR),
    *(Case("BEFT", model, targets=targets) for model, targets in (("llama", NO_BIAS_ON_DOWN), ("bert", ("query",)))),
    *(Case(method, "gpt2") for method in ON_CONV1D),
    *(Case(method, "vit") for method in ON_CONV2D),
    *(Case(method, "llama", targets=("embed_tokens", "q_proj")) for method in ON_EMBEDDING),
    *(Case(method, "llama", settings) for method, settings in SETTINGS),
)


def base(name: str, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Save a tiny model, with biases that are not zero, in `dtype`; returns it in float32."""
    torch.manual_seed(0)
    model: PreTrainedModel = MODELS[name][0]()
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data += 0.1 * torch.randn(weight.shape)
        else:
            weight.data *= 4.0  # as initialised, such small models hardly react to anything
    model.to(dtype).save_pretrained(folder)
    return model.float().eval()


def adapter(case: Case, model: PreTrainedModel, folder: Path) -> Json:
    """Put an adapter on `model`, move each of its weights, and save it. Returns its config."""
    _, layers, norms, feedforward = MODELS[case.model]
    settings = {**USUAL.get(case.method, {}), **case.settings}
    if case.method == "IA3":
        settings["feedforward_modules"] = list(feedforward)
    targets = case.targets or (norms if case.method == "LN_TUNING" else layers)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = PEFT_TYPE_TO_CONFIG_MAPPING[case.method](target_modules=list(targets), **settings)
        tuned = get_peft_model(model, config)
        for weight in tuned.parameters():
            if weight.requires_grad and weight.is_floating_point():
                weight.data += 0.05 * torch.randn(weight.shape)
        tuned.save_pretrained(str(folder))
    said: Json = json.loads((folder / "adapter_config.json").read_text())
    return said


def merges(
    case: Case, config: Json, base_folder: Path, adapter_folder: Path, model: PreTrainedModel
) -> list[PeftMerge]:
    """The ops of a plan, with the stored tensors found by their bytes: this test has no naming code of the house's."""
    keys = [tensor.key for tensor in read_header(adapter_folder / "adapter_model.safetensors").tensors]
    stored = {tensor.key: tensor for tensor in read_header(base_folder / WEIGHTS, file=WEIGHTS).tensors}
    names = _by_content(model, base_folder)
    changed = modules_of(config, keys, [key.rpartition(".")[0] for key in names])
    assert not changed.refusals
    assert {key for own in changed.keys.values() for key in own} | {*changed.shared, *changed.whole} == set(keys)
    ops = []
    for module, parameters in changed.modules.items():
        for parameter in parameters:
            key = names.get(f"{module}.{parameter}")
            if key is not None:
                ops.append(PeftMerge(source=stored[key], target=stored[key], module=module, parameter=parameter))
    return ops


def _by_content(model: PreTrainedModel, folder: Path) -> dict[str, str]:
    """{the model's parameter: the stored key with its numbers}, an equal name first."""
    found: dict[str, str] = {}
    tensors = load_file(folder / WEIGHTS)
    by_bytes: dict[bytes, list[str]] = {}
    for key, tensor in tensors.items():
        by_bytes.setdefault(tensor.float().numpy().tobytes(), []).append(key)
    for name, tensor in model.state_dict().items():
        keys = by_bytes.get(tensor.float().contiguous().numpy().tobytes(), [])
        if keys:
            found[name] = name if name in keys else keys[0]
    return found
