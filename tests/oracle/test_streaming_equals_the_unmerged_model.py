"""The oracle: PEFT's *unmerged* model. Base and output are float32 and both models run in float64, so that what is left
between them is one float32 rounding per weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bot.checks.elementwise.rounding import round_once
from bot.records import Options
from tests.factory import ALL_ARCHITECTURES, save_adapter, save_base
from tests.oracle.unmerged import assert_same_answers, unmerged
from tests.steps import merge_folders

# nn.MultiheadAttention multiplies with its output projection's own weight, so that PEFT's unmerged LoRA on it is never
# asked: such an adapter has nothing to be compared with (and trains to zero).
LEFT_OUT = {"siglip": {"exclude_modules": r".*head\.attention\.out_proj"}}
# Routers that are Linear and return two things: PEFT's unmerged forward raises on them.
LEFT_OUT |= {name: {"exclude_modules": ["router"]} for name in ("phimoe", "llama4")}


@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_the_merged_model_answers_like_the_unmerged_one(name: str, tmp_path: Path) -> None:
    base = save_base(name, tmp_path / "base", dtype=torch.float32, shard_size="60KB")
    adapter = save_adapter(base, name, tmp_path / "adapter", **LEFT_OUT.get(name, {}))
    folder = merge_folders(base, adapter, tmp_path / "merged")
    assert_same_answers(name, base, adapter, folder)


WAYS = {
    "rsLoRA": {"use_rslora": True, "r": 8},
    "rank patterns": {"rank_pattern": {"q_proj|c_attn": 2, r"layers\.1\.mlp\.down_proj|c_fc": 6}},
    "alpha patterns": {"alpha_pattern": {"v_proj": 3, r"layers\.0\.self_attn\.k_proj|c_proj": 64}},
    "both patterns with rsLoRA": {
        "use_rslora": True,
        "rank_pattern": {"o_proj|c_attn": 3},
        "alpha_pattern": {r"^(model|transformer)\..*(o_proj|c_attn)": 5},
    },
    "a few modules": {"target_modules": ["v_proj", "c_attn"]},
    "one layer": {"layers_to_transform": [1], "target_modules": ["q_proj", "up_proj", "c_fc"]},
    "excluded modules": {"exclude_modules": ["k_proj", "c_fc"]},
    "another initialisation": {"init_lora_weights": "gaussian", "lora_dropout": 0.5},
    "a rank that does not divide alpha": {"r": 3, "lora_alpha": 7},
    "negative alpha": {"lora_alpha": -8},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_lora_setting_merges_to_what_peft_would_answer(name: str, way: str, tmp_path: Path) -> None:
    base = save_base(name, tmp_path / "base", dtype=torch.float32)
    adapter = save_adapter(base, name, tmp_path / "adapter", **WAYS[way])
    folder = merge_folders(base, adapter, tmp_path / "merged")
    assert_same_answers(name, base, adapter, folder)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", ["auto", "bfloat16", "float16", "float32"])
def test_every_merged_tensor_is_pefts_own_delta_rounded_once(stored: torch.dtype, wanted: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = save_base("llama", tmp_path / "base", dtype=stored)
    adapter = save_adapter(base, "llama", tmp_path / "adapter", size=0.01)
    folder = merge_folders(base, adapter, tmp_path / "merged", Options(dtype=wanted))
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    model = unmerged("llama", base, adapter)
    deltas = {
        module_name.removeprefix("base_model.model.") + ".weight": module.get_delta_weight("default")
        for module_name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert len(deltas) == 14
    dtype = stored if wanted == "auto" else getattr(torch, wanted)
    for key, weight in before.items():
        exact = weight.double() + deltas.get(key, 0.0)
        assert after[key].dtype == dtype
        assert torch.equal(after[key], round_once(exact, dtype)), key


def test_tensors_kept_apart_from_the_main_dtype_keep_theirs(tmp_path: Path) -> None:
    """A float32 router beside bfloat16 weights: --dtype float16 rounds the weights and leaves the router alone."""
    from safetensors.torch import load_file, save_file

    base = save_base("llama", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    norm = next(key for key in tensors if "norm" in key)
    tensors[norm] = tensors[norm].float() * 1.0001
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    adapter = save_adapter(base, "llama", tmp_path / "adapter")
    folder = merge_folders(base, adapter, tmp_path / "merged", Options(dtype="float16"))
    after = load_file(folder / "model.safetensors")
    assert torch.equal(after[norm], tensors[norm])
    assert {tensor.dtype for key, tensor in after.items() if key != norm} == {torch.float16}
