"""The LoRA family over tiny models, and correct merges of it that owe nothing to the bot.

What a merge must hold is asked of PEFT's unmerged layers, one unit vector at a time, in float64; a plain model of
transformers takes these numbers and writes them under a checkpoint's names; then each is rounded once by trying neighbours.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig

from tests.faults.models import BERT, GPT2, LLAMA, VIT, Built, Recipe, round_by_trial, save_base

TIED = {**LLAMA, "tie_word_embeddings": True}
UNTIED = {**LLAMA, "tie_word_embeddings": False}
EXPERTS = {
    **LLAMA,
    "intermediate_size": 32,
    "num_local_experts": 3,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}
MIXTRAL = {**EXPERTS, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
GPT_OSS = {**EXPERTS, "model_type": "gpt_oss", "head_dim": 8, "architectures": ["GptOssForCausalLM"]}
DEEPSEEK = {
    **EXPERTS, "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "n_routed_experts": 4,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 24, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_group": 2, "topk_group": 1,
}  # fmt: skip
BOTH = ["experts.gate_up_proj", "experts.down_proj"]
Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Kin:
    """A base and what is trained on it. `declares`: what config.json must say of the merge, by dotted path."""

    config: dict[str, Any]
    peft: dict[str, Any]
    dtype: str = "bfloat16"
    to: str = "auto"
    declares: dict[str, Any] = field(default_factory=dict)
    trained: str | None = None  # the class that the adapter is trained with, where it is not the base's
    labels: int | None = None
    vocabulary: int | None = None
    as_modules: bool = False  # the checkpoint has the names of transformers' own modules, experts fused
    older: Callable[[Tensors], Tensors] | None = None  # the adapter in the names of an older transformers


def per_expert(tensors: Tensors) -> Tensors:
    """Mixtral's fused experts (rank 4 on each) as transformers 4 named them: w1 and w3 of the fused one, and w2."""
    found: Tensors = {}
    for key, value in tensors.items():
        if ".mlp.experts." not in key:
            found[key] = value
            continue
        front, _, tail = key.partition(".mlp.experts.")
        gate_up = tail.startswith("base_layer.")
        for expert in range(3):
            half = value[expert * 4 : expert * 4 + 4] if "lora_A" in tail else value[:, expert::3]
            for name in ("w1", "w3") if gate_up else ("w2",):
                part = half
                if "lora_B" in tail and gate_up:
                    rows = half.shape[0] // 2
                    part = half[:rows] if name == "w1" else half[rows:]
                side = "lora_A" if "lora_A" in tail else "lora_B"
                found[f"{front}.block_sparse_moe.experts.{expert}.{name}.{side}.weight"] = part.clone()
    return found


def named_as_before(tensors: Tensors) -> Tensors:
    """An adapter's name in its keys, a compiler's and a wrapper's prefixes, magnitudes with `.weight`, biases without base_layer."""
    found = {}
    for key, value in tensors.items():
        key = key.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.weight", "lora_B.default.weight")
        key = key.replace("lora_magnitude_vector", "lora_magnitude_vector.default.weight").replace(
            ".base_layer.bias", ".bias"
        )
        found[f"module._orig_mod.{key}"] = value
    return found


LINEAR = {"target_modules": ["q_proj", "down_proj"]}
UNTIE = {"tie_word_embeddings": False}
V4 = {"target_modules": ["q_proj", "w1", "w2", "w3"], "target_parameters": None}
FAMILY = {
    "dora": Kin(config=UNTIED, peft={**LINEAR, "use_dora": True}),
    "dora-conv1d": Kin(config=GPT2, peft={"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "dora-rslora-float16": Kin(config=UNTIED, peft={**LINEAR, "use_dora": True, "use_rslora": True}, dtype="float16"),
    "dora-embedding": Kin(config=UNTIED, peft={"target_modules": ["embed_tokens"], "use_dora": True}),
    "square-embedding": Kin(config={**UNTIED, "vocab_size": 32}, peft={"target_modules": ["embed_tokens"]}),
    "embedding-tied": Kin(config=TIED, peft={"target_modules": ["embed_tokens", "q_proj"]}, declares=UNTIE),
    "head-tied": Kin(config=TIED, peft={"target_modules": ["lm_head", "q_proj"]}, declares=UNTIE),
    "both-tied-by-peft": Kin(config=TIED, peft={"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "whole-embedding-tied": Kin(config=TIED, peft={**LINEAR, "modules_to_save": ["embed_tokens"]}, declares=UNTIE),
    "whole-embedding-and-norm": Kin(config=UNTIED, peft={**LINEAR, "modules_to_save": ["embed_tokens", "model.norm"]}),
    "tokens-tied": Kin(config=TIED, peft={**LINEAR, "trainable_token_indices": [7, 3, 120]}),
    "tokens-of-the-head": Kin(
        config=TIED, peft={**LINEAR, "trainable_token_indices": {"lm_head": [7, 3]}}, declares=UNTIE
    ),
    "only-tokens": Kin(config=TIED, peft={"token_indices": [9, 2]}),
    "biases": Kin(config=GPT2, peft={"target_modules": ["c_attn"], "bias": "all"}),
    "biases-in-older-names": Kin(
        config=BERT, peft={"target_modules": ["query"], "bias": "lora_only", "use_dora": True}, dtype="float32",
        older=named_as_before,
    ),
    "lora-bias": Kin(config=BERT, peft={"target_modules": ["query", "dense"], "lora_bias": True}, to="bfloat16",
                     dtype="float32"),
    "lora-bias-and-biases": Kin(config=GPT2, peft={"target_modules": ["c_attn"], "lora_bias": True, "bias": "lora_only"}),
    "convolution": Kin(config=VIT, peft={"target_modules": ["projection", "q_proj"]}),
    "dora-convolution": Kin(config=VIT, peft={"target_modules": ["projection"], "use_dora": True}),
    "experts": Kin(config=MIXTRAL, peft={"target_modules": ["q_proj"], "target_parameters": BOTH}),
    "experts-fused": Kin(config=MIXTRAL, peft={"target_modules": ["q_proj"], "target_parameters": BOTH}, as_modules=True),
    "experts-in-older-names": Kin(
        config=MIXTRAL, peft={"target_modules": ["q_proj"], "target_parameters": BOTH}, older=per_expert
    ),
    "experts-fused-in-older-names": Kin(
        config=MIXTRAL, peft={"target_modules": ["q_proj"], "target_parameters": BOTH}, older=per_expert, as_modules=True
    ),
    "experts-transposed": Kin(config=GPT_OSS, peft={"target_modules": ["q_proj"], "target_parameters": BOTH}),
    "one-expert-parameter": Kin(config=DEEPSEEK, peft={"target_modules": ["q_a_proj"], "target_parameters": BOTH[:1]}),
    "router": Kin(config=MIXTRAL, peft={"target_modules": ["q_proj"], "target_parameters": ["gate.weight"]}),
    "replicated": Kin(
        config=UNTIED, peft={**LINEAR, "layer_replication": [[0, 2], [1, 2], [0, 1]]}, declares={"num_hidden_layers": 4}
    ),
    "resized": Kin(
        config=UNTIED, peft={**LINEAR, "modules_to_save": ["embed_tokens", "lm_head"]}, vocabulary=167,
        declares={"vocab_size": 167},
    ),
    "resized-tied": Kin(config=TIED, peft=LINEAR, vocabulary=150, declares={"vocab_size": 150}),
    "classifier": Kin(
        config={**UNTIED, "pad_token_id": 0}, peft={**LINEAR, "task_type": "SEQ_CLS"}, labels=3,
        trained="LlamaForSequenceClassification",
        declares={
            "architectures": ["LlamaForSequenceClassification"],
            "id2label": {str(one): f"LABEL_{one}" for one in range(3)},
            "label2id": {f"LABEL_{one}": one for one in range(3)},
        },
    ),
    "other-labels": Kin(
        config=VIT, peft={"target_modules": ["q_proj"], "modules_to_save": ["classifier"]}, labels=5,
        declares={
            "id2label": {str(one): f"LABEL_{one}" for one in range(5)},
            "label2id": {f"LABEL_{one}": one for one in range(5)},
        },
    ),
}  # fmt: skip


def build(kin: Kin, root: Path) -> Built:
    """Base, adapter and a correct merge, below `root`."""
    recipe = Recipe(config=kin.config, dtype=kin.dtype, to=kin.to)
    built = Built(recipe=recipe, base=root / "base", adapter=root / "adapter", merged=root / "merged")
    save_base(recipe, built.base, 0)
    if kin.as_modules:
        _rename_as_modules(kin, built.base)
    _save_adapter(kin, built)
    merge(kin, built, built.merged)
    if kin.older:
        path = built.adapter / "adapter_model.safetensors"
        save_file(kin.older(load_file(path)), path, metadata={"format": "pt"})
        if kin.older is per_expert:
            path = built.adapter / "adapter_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **V4}))
    return built


def _rename_as_modules(kin: Kin, folder: Path) -> None:
    model = _class(kin).from_pretrained(folder, dtype=getattr(torch, kin.dtype))
    save_file({key: value.clone() for key, value in model.state_dict().items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip


def _class(kin: Kin) -> Any:
    return getattr(transformers, kin.trained or kin.config["architectures"][0])


def _load(kin: Kin, folder: Path) -> Any:
    changes = {"num_labels": kin.labels, "ignore_mismatched_sizes": True} if kin.labels else {}
    torch.manual_seed(3)
    model = _class(kin).from_pretrained(folder, dtype=torch.float64, attn_implementation="eager", **changes)
    if kin.vocabulary:
        model.resize_token_embeddings(kin.vocabulary, mean_resizing=False)
    return model.double()


def _save_adapter(kin: Kin, built: Built) -> None:
    """Trained by chance: every tensor of the adapter's own moves."""
    model = _load(kin, built.base).float()
    tokens = "token_indices" in kin.peft
    config = TrainableTokensConfig(**kin.peft) if tokens else LoraConfig(**{"r": 4, "lora_alpha": 6, **kin.peft})
    tuned = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "magnitude" in name:
                weight.mul_(1 + 0.1 * noise)
            elif "lora_" in name:
                weight.copy_(0.1 * noise)
            elif any(part in name for part in ("trainable_tokens", "modules_to_save")) or _trained_bias(kin, name):
                weight.add_(0.1 * noise)
    tuned.save_pretrained(built.adapter)


def _trained_bias(kin: Kin, name: str) -> bool:
    return name.endswith(".bias") and kin.peft.get("bias", "none") != "none"


# --- a correct merge ------------------------------------------------------------------------------------------------


def merge(kin: Kin, built: Built, folder: Path, change: Callable[[Tensors], None] | None = None) -> None:
    """`change` may spoil the exact numbers (float64, by the model's own names) before they are rounded and written."""
    tuned = (
        PeftModel.from_pretrained(_load(kin, built.base), built.adapter, autocast_adapter_dtype=False).double().eval()
    )
    with torch.no_grad():
        exact = {name: value.detach().clone() for name, value in exact_values(tuned)}
    if change:
        change(exact)
    shutil.copytree(built.base, folder)
    declare(folder, kin.declares)
    before = load_file(built.base / "model.safetensors")
    after = {}
    for key, value in (exact if kin.as_modules else _under_stored_names(kin, folder, exact)).items():
        dtype = before[key].dtype if key in before else getattr(torch, kin.dtype)
        wanted = dtype if kin.to == "auto" else getattr(torch, kin.to)
        after[key] = round_by_trial(value, wanted).contiguous() if value.is_floating_point() else value
    save_file(after, folder / "model.safetensors", metadata={"format": "pt"})
    if kin.to != "auto":
        declare(folder, {"dtype": kin.to})


def plain_model(kin: Kin, folder: Path) -> Any:
    """The base under the names of transformers' modules, in float64."""
    return _load(kin, folder)


def rebuilt(kin: Kin, built: Built, folder: Path) -> Built:
    """The same base with the adapter as PEFT saves it today."""
    today = Built(recipe=built.recipe, base=built.base, adapter=folder, merged=built.merged)
    _save_adapter(kin, today)
    return today


def merge_as_peft_does(kin: Kin, built: Built, folder: Path) -> None:
    """merge_and_unload in the storage dtype."""
    model = _class(kin).from_pretrained(built.base, dtype=getattr(torch, kin.dtype))
    PeftModel.from_pretrained(model, built.adapter, autocast_adapter_dtype=False).merge_and_unload().save_pretrained(
        folder
    )


def declare(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _under_stored_names(kin: Kin, folder: Path, exact: Tensors) -> Tensors:
    """transformers' own way from its modules' names to a checkpoint's: a plain model with these numbers, saved."""
    model = _class(kin)(AutoConfig.from_pretrained(folder)).double()
    missing, unexpected = model.load_state_dict(exact, strict=False)
    assert not unexpected, unexpected
    assert not missing, missing
    there = folder / "float64"
    model.save_pretrained(there, save_original_format=True)
    found = load_file(there / "model.safetensors")
    shutil.rmtree(there)
    return found


def exact_values(tuned: Any) -> Iterator[tuple[str, Tensor]]:
    """(name in a plain model, float64 values) of every parameter and buffer, with the adapter's work done."""
    plain = tuned.get_base_model()
    own = ("lora_", "modules_to_save", "trainable_tokens")
    for name, value in plain.state_dict().items():
        if not any(part in name for part in own):
            yield _bare(name), value
    for path, layer in plain.named_modules(remove_duplicate=False):
        if hasattr(layer, "get_merged_weights"):
            yield f"{_bare(path)}.weight", layer.get_merged_weights(layer.active_adapters)
        elif type(layer).__name__ == "ModulesToSaveWrapper":
            for name, value in layer.modules_to_save["default"].named_parameters():
                yield f"{_bare(path)}.{name}", value
        elif type(layer).__name__ == "ParamWrapper" and not path.endswith(".base_layer"):
            owner = layer.get_base_layer()
            with ExitStack() as stack:
                while hasattr(layer, "parameter_name"):
                    stack.enter_context(layer._activate_lora(["default"]))
                    layer = layer.base_layer
                yield from ((f"{_bare(path)}.{name}", getattr(owner, name).detach().clone())
                            for name in ("gate_up_proj", "down_proj", "weight") if hasattr(owner, name))  # fmt: skip
        elif hasattr(layer, "lora_A") and not hasattr(layer, "parameter_name"):
            yield from ((f"{_bare(path)}.{name}", value) for name, value in asked(layer))


def _bare(name: str) -> str:
    for part in (".base_layer", ".original_module", ".token_adapter"):
        name = name.replace(part, "")
    return name


def asked(layer: Any) -> Iterator[tuple[str, Tensor]]:
    """A layer's weight and bias, by what it answers to unit vectors."""
    owner = layer.get_base_layer()
    if isinstance(owner, nn.Embedding):
        yield "weight", layer(torch.arange(owner.num_embeddings))
    elif isinstance(owner, nn.Conv2d):
        for one in (owner, layer.lora_A["default"]):
            one.padding = (0, 0)
        count = owner.weight[0].numel()
        units = torch.eye(count, dtype=torch.float64).view(count, *owner.weight.shape[1:])
        offset = layer(torch.zeros_like(units[:1]))
        yield "weight", (layer(units) - offset).flatten(1).T.reshape(owner.weight.shape)
    else:
        turned = not isinstance(owner, nn.Linear)
        units = torch.eye(owner.weight.shape[0 if turned else 1], dtype=torch.float64)
        offset = layer(torch.zeros_like(units[:1]))
        yield "weight", layer(units) - offset if turned else (layer(units) - offset).T
        if owner.bias is not None:
            yield "bias", offset[0]
