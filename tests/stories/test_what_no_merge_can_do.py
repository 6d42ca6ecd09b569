"""Sound adapters, made by PEFT, that no merge into their base can honour: each is refused by its name, with a way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, OFTConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.factory import ALL_ARCHITECTURES, save_base
from tests.stories.conftest import Command
from tests.stories.test_bad_input import assert_nothing_left, assert_said

Maker = Callable[[Path, Path], object]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def trained(name: str, config: Any, base: Path, folder: Path, *, auto: str | None = None, **loading: Any) -> Path:
    """An adapter by PEFT itself, all of whose own tensors have moved."""
    model = getattr(transformers, auto or ALL_ARCHITECTURES[name].auto).from_pretrained(base, **loading)
    torch.manual_seed(0)
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    return folder


def on(name: str, config: Any, **given: Any) -> Maker:
    """An adapter of this config on a tiny model of the architecture."""

    def make(base: Path, adapter: Path) -> None:
        save_base(name, base)
        trained(name, config, base, adapter, **given)

    return make


def grouped(base: Path, adapter: Path) -> None:
    """Depthwise convolutions: one input channel for each output."""
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32)
    transformers.ConvNextModel(config).save_pretrained(base)
    trained("convnext", LoraConfig(r=16, target_modules=["dwconv"]), base, adapter, auto="AutoModel")


def overlapping(base: Path, adapter: Path) -> None:
    """3 × 3 kernels, one step apart."""
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    transformers.ResNetModel(config).save_pretrained(base)
    oft = OFTConfig(r=0, oft_block_size=2, target_modules=["layer.1.convolution"])
    trained("resnet", oft, base, adapter, auto="AutoModel")


def half_resized(base: Path, adapter: Path) -> None:
    """Eight tokens more in the embedding, whose head is another tensor and was not saved."""
    save_base("llama", base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(136, mean_resizing=False)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    get_peft_model(model, config).save_pretrained(adapter, save_embedding_layers=False)


def nameless_head(base: Path, adapter: Path) -> None:
    """A classifier, and a config that does not say of which class."""
    save_base("llama", base)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["score"])
    trained("llama", config, base, adapter, auto="AutoModelForSequenceClassification", num_labels=3)
    path = adapter / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_mapping": None, "task_type": None}))


def without(part: str, make: Maker) -> Maker:
    """The same without one of its tensors."""

    def lose(base: Path, adapter: Path) -> None:
        make(base, adapter)
        tensors = load_file(adapter / WEIGHTS)
        del tensors[next(key for key in sorted(tensors) if part in key)]
        save_file(tensors, adapter / WEIGHTS)

    return lose


def added(key: str, tensor: torch.Tensor, make: Maker) -> Maker:
    """The same with a tensor more."""

    def add(base: Path, adapter: Path) -> None:
        make(base, adapter)
        save_file(load_file(adapter / WEIGHTS) | {f"base_model.model.{key}": tensor}, adapter / WEIGHTS)

    return add


def zero_rows(base: Path, adapter: Path) -> None:
    """A DoRA on a weight one of whose rows is zero, and stays so."""
    on("llama", LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))(base, adapter)
    for folder, part in ((base / "model.safetensors", "0.self_attn.q_proj"), (adapter / WEIGHTS, "q_proj.lora_B")):
        tensors = load_file(folder)
        tensors[next(key for key in sorted(tensors) if part in key)][3] = 0
        save_file(tensors, folder, metadata={"format": "pt"})


IA3 = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
PROMPTS = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
TOKENS = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 9])

# name: (what makes base and adapter, refusal's code, or "" where only the merge itself can tell; the sentence; the remedy)
CASES: dict[str, tuple[Maker, str, str, str]] = {
    "LoRA on grouped convolutions": (
        grouped, "conv-groups", "grouped convolutions, whose delta mixes the groups", "Keep the adapter separate.",
    ),
    "a LoRA bias where the layer has none": (
        on("llama", LoraConfig(r=4, target_modules=["q_proj"], lora_bias=True)),
        "lora-bias", "2 adapter modules have a LoRA bias, and the base's layer has no bias", "without lora_bias",
    ),
    "an embedding by whose tie the model scales": (
        on("t5", LoraConfig(r=4, target_modules=["shared", "q"])),
        "tied-scaling", "ties to its head and scales by that: shared.weight", "Keep the adapter separate.",
    ),
    "a vocabulary resized by half": (
        half_resized, "vocabulary", "model.embed_tokens.weight has 136 rows, lm_head.weight has 128", "Save the adapter with both.",
    ),
    "a head without a class": (
        nameless_head, "new-head", "1 tensors that the base's architecture does not have: score.weight", "--base",
    ),
    "prompts": (
        on("llama", PROMPTS), "no-merged-form", "Prompt tuning adds virtual tokens to the input", "Keep the adapter separate.",
    ),
    "aLoRA": (
        on("llama", LoraConfig(r=4, target_modules=["q_proj"], alora_invocation_tokens=[5], task_type="CAUSAL_LM")),
        "alora", "aLoRA acts on some tokens of a text only", "Keep the adapter separate, or train it without that.",
    ),
    "tokens that the config does not name": (
        added("model.embed_tokens.token_adapter.trainable_tokens_delta", torch.ones(3, 64), on("llama", TOKENS)),
        "trainable-tokens", "another number of rows than the config has token indices", "Save the adapter again with PEFT.",
    ),
    "a tensor that is no method's": (
        added("model.layers.0.self_attn.q_proj.lora_C.weight.seed", torch.ones(3), on("llama", TOKENS)),
        "unknown-key", "1 adapter tensors are of an unknown kind", "Save the adapter again with PEFT.",
    ),
    "a tensor that is not this method's": (
        added("model.layers.0.self_attn.q_proj.lora_A", torch.ones(3), on("llama", IA3)),
        "unknown-key", "1 adapter tensors are none of IA³'s", "Save the adapter again with PEFT.",
    ),
    "IA³ without one of its vectors": (
        without("k_proj", on("llama", IA3)), "",
        "The adapter lacks 1 tensors that its config calls for, e.g. base_model.model.model.layers.0.self_attn.k_proj",
        "Save the adapter again with PEFT.",
    ),
    "OFT on overlapping patches": (
        overlapping, "", "PEFT's merged layer does something else than its unmerged one", "Keep the adapter separate",
    ),
    "DoRA on a row of zeros": (
        zero_rows, "", "has a row or column of zeros, which DoRA would divide by", "Keep the adapter separate.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_by_name_with_a_way_out_and_nothing_is_left(
    case: str, adapter_merge: Command, tmp_path: Path
) -> None:
    make, code, sentence, remedy = CASES[case]
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make(base, adapter)
    plan = json.loads(adapter_merge("plan", adapter, "--base", base, "--json").out)
    assert [refusal["code"] for refusal in plan["refusals"]] == ([code] if code else [])
    ran = adapter_merge("merge", adapter, "--base", base, "--output", tmp_path / "merged", "--verify", "weights")
    assert_said(ran, 3, sentence)
    assert remedy in " ".join(ran.err.split())
    assert_nothing_left(tmp_path)
