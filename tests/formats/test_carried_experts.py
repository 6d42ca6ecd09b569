"""Experts that are quantised one by one, as published checkpoints have them, stay as they are under an adapter on the attention."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bot.events import silent
from bot.records import Json, Options, Report
from bot.verify import table, verify
from tests.faults import family, quantised
from tests.faults.conftest import claim, named
from tests.faults.models import Recipe, save_base
from tests.steps import merge_folders, plan_folders

Tensors = dict[str, torch.Tensor]
SIZES = {**family.EXPERTS, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "head_dim": 16}
QWEN = {**SIZES, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4}
DEEPSEEK = {**family.DEEPSEEK, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64,
            "num_local_experts": 4, "num_experts": 4}  # fmt: skip
MODELS = {"qwen3_moe": QWEN, "deepseek_v3": DEEPSEEK}
ATTENTION = {"qwen3_moe": ["q_proj", "v_proj"], "deepseek_v3": ["q_a_proj", "o_proj"]}


def blockwise(key: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Blocks of 32 × 32, the last of which may end outside the matrix, as those of DeepSeek's kv_a_proj_with_mqa do."""
    rows, columns = weight.shape
    whole = torch.nn.functional.pad(weight.float(), (0, -columns % 32, 0, -rows % 32))
    tiles = whole.reshape(len(whole) // 32, 32, whole.shape[1] // 32, 32)
    scale = tiles.abs().amax((1, 3)) / 448
    spread = scale.repeat_interleave(32, 0).repeat_interleave(32, 1)
    codes = (whole / spread).to(torch.float8_e4m3fn)
    parts = {key: codes[:rows, :columns].clone(), f"{key}_scale_inv": scale}
    return parts, (codes.float() * spread)[:rows, :columns]


def tensorwise(key: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """One scale for each weight, and one for its inputs, as AutoFP8 and compressed-tensors have them."""
    scale = (weight.float().abs().max() / 448).reshape(1)
    codes = (weight.float() / scale).to(torch.float8_e4m3fn)
    parts = {key: codes, f"{key}_scale": scale, key.replace("weight", "input_scale"): torch.ones(1)}
    return parts, codes.float() * scale


def tensorwise_said() -> Json:
    args = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
    group = {"targets": ["Linear"], "weights": args, "input_activations": args, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
            "config_groups": {"group_0": group}}  # fmt: skip


PLAIN = ["lm_head", "re:.*self_attn.*", r"re:.*mlp\.gate$"]
# how experts are stored: by which form, and what config.json says, whose list of what stays plain has a name of its own
FORMS: dict[str, tuple[Callable[..., tuple[Tensors, torch.Tensor]], Json]] = {
    "int4": (quantised.compressed, {**quantised.ct_said(), "ignore": PLAIN}),
    "fp8 blocks": (blockwise, {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic",
                                   "modules_to_not_convert": ["lm_head", "self_attn", "mlp.gate"]}),
    "fp8 tensors": (tensorwise, {**tensorwise_said(), "ignore": PLAIN}),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Made:
    base: Path
    adapter: Path

    def proven(self, folder: Path, level: str = "weights") -> Report:
        return verify(claim(self.base, self.adapter, folder, quantize="same", level=level), silent)


def is_packed(key: str, everything: bool) -> bool:
    """The experts, the shared ones and a dense layer's MLP; `everything`: the attention too."""
    return key.endswith("proj.weight") and (".mlp." in key or everything)


def make(model: str, form: str, root: Path, *, everything: bool = False) -> Made:
    recipe = Recipe(config=MODELS[model], tokenizer=True, shard="60KB")
    made, plain = Made(base=root / "base", adapter=root / "adapter"), root / "plain"
    save_base(recipe, plain, 0)
    shutil.copytree(plain, made.base)
    pack, said = FORMS[form]
    weight_map: dict[str, str] = {}
    for path in sorted(plain.glob("*.safetensors")):
        tensors: Tensors = {}
        for key, value in load_file(path).items():
            tensors |= pack(key, value)[0] if is_packed(key, everything) else {key: value}
        held = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
        save_file(held, made.base / path.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, path.name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (made.base / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((plain / "config.json").read_text())
    (made.base / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    kin = family.Kin(config=recipe.config, peft={"target_modules": ATTENTION[model]})
    family._save_adapter(kin, family.Built(recipe=recipe, base=plain, adapter=made.adapter, merged=plain))
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Made]:
    return cache(lambda model, form: make(model, form, tmp_path_factory.mktemp(f"{model}-{form.replace(' ', '-')}")))


def raw(folder: Path) -> dict[str, bytes]:
    return {
        key: value.reshape(-1).view(torch.uint8).numpy().tobytes()
        for path in folder.glob("*.safetensors")
        for key, value in load_file(path).items()
    }


BOTH = [(model, form) for model in MODELS for form in FORMS]


@pytest.mark.parametrize(("model", "form"), BOTH)
def test_every_byte_of_every_expert_stays_and_it_is_proven(
    made: Callable[[str, str], Made], tmp_path: Path, model: str, form: str
) -> None:
    one = made(model, form)
    plan = plan_folders(one.base, one.adapter)
    assert plan.options.quantize == "same"
    merged = merge_folders(one.base, one.adapter, tmp_path / "merged")
    before, after = raw(one.base), raw(merged)
    assert before.keys() == after.keys()
    changed = [key for key in before if before[key] != after[key]]
    assert {key.split("self_attn.")[1] for key in changed} == {f"{name}.weight" for name in ATTENTION[model]}
    suffix = "weight_packed" if form == "int4" else "weight"
    assert f"model.layers.1.mlp.experts.0.gate_proj.{suffix}" in before
    assert (merged / "config.json").read_bytes() == (one.base / "config.json").read_bytes()
    report = one.proven(merged)
    assert report.verdict == "verified", table(report)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "form"), [*BOTH[:3], ("deepseek_v3", "fp8 blocks")])
def test_plain_transformers_loads_it_and_it_is_proven_in_full(
    made: Callable[[str, str], Made], tmp_path: Path, model: str, form: str
) -> None:
    one = made(model, form)
    merged = merge_folders(one.base, one.adapter, tmp_path / "merged")
    report = one.proven(merged, "full")
    assert (report.verdict, report.level) == ("verified", "full"), table(report)
    loads = named(report, "loads")
    assert loads.status == "pass", table(report)
    assert ("It has no use for" in loads.why) == (form == "fp8 tensors")


def test_one_byte_of_one_expert_is_missed(made: Callable[[str, str], Made], tmp_path: Path) -> None:
    one = made("qwen3_moe", "int4")
    merged = merge_folders(one.base, one.adapter, tmp_path / "merged")
    key = "model.layers.1.mlp.experts.2.down_proj.weight_packed"
    for path in merged.glob("*.safetensors"):
        tensors = load_file(path)
        if key in tensors:
            tensors[key].view(torch.uint8)[3, 5] ^= 16
            save_file(tensors, path, metadata={"format": "pt"})
    report = one.proven(merged)
    assert report.verdict == "not-verified"
    assert named(report, "quantised").status == "fail", table(report)


@pytest.mark.parametrize("form", ["fp8 blocks", "fp8 tensors"])
@pytest.mark.parametrize("model", MODELS)
def test_an_attention_in_fp8_is_written_again_beside_experts_that_stay(tmp_path: Path, model: str, form: str) -> None:
    one = make(model, form, tmp_path, everything=True)
    plan = plan_folders(one.base, one.adapter, Options(quantize="same"))
    assert "quantize: 4 merged weights are stored as same." in plan.notes
    merged = merge_folders(one.base, one.adapter, tmp_path / "merged", Options(quantize="same"))
    before, after = raw(one.base), raw(merged)
    assert before.keys() == after.keys()
    assert all(any(name in key for name in ATTENTION[model]) for key in before if before[key] != after[key])
    report = one.proven(merged)
    assert report.verdict == "verified", table(report)
