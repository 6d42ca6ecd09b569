"""Tiny real models, PEFT adapters over them, and a reference merger that shares no code with the bot.

The reference merger takes each ΔW from PEFT itself (in float64) and rounds it by trying neighbours; later the real
engine can stand in its place: anything that fills a folder from a base and an adapter will do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SIZE = 0.03  # ‖D‖ / ‖W‖
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 160, "max_position_embeddings": 128, "rope_theta": 10000.0,
    "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 160, "n_positions": 128,
    "architectures": ["GPT2LMHeadModel"],
}  # fmt: skip
BERT = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 160, "max_position_embeddings": 128, "architectures": ["BertModel"],
}  # fmt: skip
VIT = {
    "model_type": "vit", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 4, "num_labels": 3, "architectures": ["ViTForImageClassification"],
}  # fmt: skip
NEOX = {
    "model_type": "gpt_neox", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 160, "max_position_embeddings": 128,
    "architectures": ["GPTNeoXForCausalLM"],
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 160,
    "decoder_start_token_id": 0, "architectures": ["T5ForConditionalGeneration"],
}  # fmt: skip
LLAVA = {
    "model_type": "llava", "text_config": {**LLAMA, "rms_norm_eps": 1e-6},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48,
                      "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4},
    "image_token_index": 159, "architectures": ["LlavaForConditionalGeneration"],
}  # fmt: skip


def unchanged(key: str) -> str:
    return key


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model, how it is stored, and how it was tuned."""

    config: dict[str, Any]
    targets: Any = ("q_proj", "v_proj", "up_proj", "down_proj")
    dtype: str = "bfloat16"
    shard: str = "5GB"
    tokenizer: bool = False
    lora: dict[str, Any] = field(default_factory=dict)
    rename: Callable[[str], str] = unchanged  # how the base's author named the keys
    to: str = "auto"  # the dtype asked for


def vit_key(module: str) -> str:
    """The key under which transformers has stored a ViT's weight ever since 4.x."""
    for new, old in (
        ("vit.layers", "vit.encoder.layer"), ("attention.q_proj", "attention.attention.query"),
        ("attention.v_proj", "attention.attention.value"), ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"),
    ):  # fmt: skip
        module = module.replace(new, old)
    return module


RECIPES = {
    "llama-tied-sharded": Recipe(config={**LLAMA, "tie_word_embeddings": True}, shard="20KB", tokenizer=True),
    "llama-float16-patterns": Recipe(
        config={**LLAMA, "num_key_value_heads": 2},
        dtype="float16",
        lora={"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
    ),
    "llama-to-float16": Recipe(config=LLAMA, to="float16"),
    "llama-float32-to-bfloat16": Recipe(config=LLAMA, dtype="float32", to="bfloat16", shard="40KB"),
    "gpt2": Recipe(config=GPT2, targets=("c_attn", "c_proj", "c_fc")),
    "gpt2-without-prefix": Recipe(
        config=GPT2, targets=("c_attn", "c_proj"), rename=lambda key: key.removeprefix("transformer."), dtype="float32"
    ),
    "bert-encoder": Recipe(config=BERT, targets=("query", "value", "dense"), dtype="float32"),
    "vit": Recipe(config=VIT, targets=("q_proj", "v_proj", "fc1"), rename=vit_key),
    "gpt-neox": Recipe(
        config=NEOX,
        targets=("query_key_value", "dense", "lm_head", "embed_out"),
        rename=lambda key: key.replace("lm_head", "embed_out"),
    ),
    "llava": Recipe(config=LLAVA, targets=r".*language_model.*(q_proj|up_proj)"),
    "t5": Recipe(config=T5, targets=("q", "v", "wo"), dtype="float16"),
}


@dataclass(frozen=True, kw_only=True)
class Built:
    """Three folders, and the recipe that they were built by."""

    recipe: Recipe
    base: Path
    adapter: Path
    merged: Path

    def fresh(self, folder: Path) -> Path:
        """A copy of the merged folder, free to be damaged."""
        return Path(shutil.copytree(self.merged, folder))


def build(recipe: Recipe, root: Path, *, seed: int = 0) -> Built:
    """Base, adapter and a correct merge, below `root`."""
    built = Built(recipe=recipe, base=root / "base", adapter=root / "adapter", merged=root / "merged")
    save_base(recipe, built.base, seed)
    save_adapter(recipe, built.base, built.adapter)
    merge(built, built.merged)
    return built


def model_class(recipe: Recipe) -> Any:
    return getattr(transformers, recipe.config["architectures"][0])


def save_base(recipe: Recipe, folder: Path, seed: int) -> None:
    """The model as its author would have uploaded it: weights, config, tokenizer, license."""
    torch.manual_seed(seed)
    settings = {key: value for key, value in recipe.config.items() if key != "model_type"}
    config = AutoConfig.for_model(recipe.config["model_type"], **settings)
    model = model_class(recipe)(config).to(getattr(torch, recipe.dtype))
    for name, weight in model.named_parameters():  # norms and biases start as ones and zeros: make them tell-tale
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.1)
    model.save_pretrained(folder, max_shard_size=recipe.shard)
    rename_keys(folder, recipe.rename)
    (folder / "LICENSE").write_text("Apache License 2.0\n")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "max_new_tokens": 20}))
    if recipe.tokenizer:
        save_tokenizer(folder)


def save_tokenizer(folder: Path, template: str = "{{ messages[0].content }}") -> None:
    """A byte-level tokenizer that knows every byte, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(alphabet[:158])} | {"<unk>": 158, "<eos>": 159}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    fast.chat_template = template
    fast.save_pretrained(folder)


def rename_keys(folder: Path, rename: Callable[[str], str]) -> None:
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if any(rename(key) != key for key in tensors):
            save_file({rename(key): value for key, value in tensors.items()}, path, metadata={"format": "pt"})


def save_adapter(recipe: Recipe, base: Path, folder: Path) -> None:
    """A LoRA adapter whose deltas all have ‖D‖ = SIZE · ‖W‖, saved by PEFT."""
    model = model_class(recipe).from_pretrained(base, dtype=torch.float32)
    targets = recipe.targets if isinstance(recipe.targets, str) else list(recipe.targets)
    tuned = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets, **recipe.lora}))
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in layers(tuned).values():
            torch.nn.init.normal_(layer.lora_A["default"].weight)
            torch.nn.init.normal_(layer.lora_B["default"].weight)
            ratio = layer.get_delta_weight("default").norm() / layer.get_base_layer().weight.norm()
            layer.lora_B["default"].weight.mul_(SIZE / ratio)
    tuned.save_pretrained(folder)


def layers(tuned: PeftModel) -> dict[str, Any]:
    """{module name in the plain model: its LoRA layer}."""
    named = tuned.get_base_model().named_modules()
    return {name: module for name, module in named if hasattr(module, "get_delta_weight")}


def deltas(built: Built) -> dict[str, torch.Tensor]:
    """PEFT's ΔW by checkpoint key, in float64."""
    model = model_class(built.recipe).from_pretrained(built.base, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(model, built.adapter).double()
    keys = base_keys(built.base)
    found = {}
    for module, layer in layers(tuned).items():
        key = checkpoint_key(f"{module}.weight", keys, built.recipe)
        found[key] = layer.get_delta_weight("default").detach()
    return found


def base_keys(folder: Path) -> set[str]:
    keys: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as opened:
            keys |= set(opened.keys())
    return keys


def checkpoint_key(name: str, keys: set[str], recipe: Recipe) -> str:
    """By the recipe's own renaming, or llava's: the tests know their models."""
    candidates = (name, recipe.rename(name), name.replace("model.language_model.", "language_model.model."))
    return next(candidate for candidate in candidates if candidate in keys)


def merge(built: Built, folder: Path, *, add: Callable[..., torch.Tensor] | None = None) -> None:
    """The reference merge. `add(weight, delta, dtype)` can stand for another arithmetic."""
    shutil.copytree(built.base, folder)
    changes = deltas(built)
    add = add or (lambda weight, delta, dtype: round_by_trial(weight.double() + delta, dtype))
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for key, weight in tensors.items():
            dtype = weight.dtype if built.recipe.to == "auto" else getattr(torch, built.recipe.to)
            tensors[key] = add(weight, changes[key], dtype) if key in changes else weight.to(dtype)
        save_file(tensors, path, metadata={"format": "pt"})
    if built.recipe.to != "auto":
        declare_dtype(folder, built.recipe.to)


def declare_dtype(folder: Path, dtype: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        found = json.loads(index.read_text())
        tensors = {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}
        found["metadata"]["total_size"] = sum(value.nbytes for value in tensors.values())
        index.write_text(json.dumps(found))


def round_by_trial(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The nearest value of `dtype`, by trying torch's doubly rounded one and both its neighbours; ties to even."""
    near = exact.to(dtype)
    up, down = (torch.nextafter(near, torch.full_like(near, bound)) for bound in (torch.inf, -torch.inf))
    best = near
    for candidate in (up, down):
        gain = (best.double() - exact).abs() - (candidate.double() - exact).abs()
        kind = torch.int16 if dtype.itemsize == 2 else torch.int32
        even = candidate.view(kind) % 2 == 0
        best = torch.where((gain > 0) | ((gain == 0) & even), candidate, best)
    return best
