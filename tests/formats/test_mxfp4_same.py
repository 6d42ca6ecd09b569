"""A LoRA on gpt-oss's experts, stored in MXFP4 again: planned, written, proven, loaded; and what is wrong in it is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from bot.errors import Refused
from bot.events import silent
from bot.formats.mxfp4.encoding import encode
from bot.records import Options, Quantize, Report
from bot.verify import table, verify
from tests.faults import family
from tests.faults.conftest import claim, named
from tests.faults.models import Recipe, save_base
from tests.formats.test_parts_in_other_shards import bytes_of
from tests.steps import merge_folders, plan_folders

Tensors = dict[str, torch.Tensor]
CONFIG = {**family.GPT_OSS, "hidden_size": 64, "intermediate_size": 64, "num_experts_per_tok": 2, "head_dim": 16}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                                            "model.embed_tokens", "lm_head"]}  # fmt: skip
EXPERTS = "model.layers.0.mlp.experts"
GATE_UP, DOWN = f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"
SAME = Options(quantize="same")


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """experts × in × out → blocks and scales."""
    experts, deep, out = weight.shape
    groups = weight.float().transpose(1, 2).reshape(experts, out, deep // 32, 32)
    blocks, scales = encode(groups.contiguous().numpy())
    return torch.from_numpy(blocks), torch.from_numpy(scales)


@dataclass(frozen=True, kw_only=True)
class Made:
    """`base` has its experts in MXFP4, `dense` the same numbers in float32; the adapter's deltas were taken from PEFT."""

    base: Path
    dense: Path
    adapter: Path

    def merged(self, folder: Path, options: Options = SAME) -> Path:
        return merge_folders(self.base, self.adapter, folder, options)

    def proven(self, folder: Path, **changes: Any) -> Report:
        return verify(claim(self.base, self.adapter, folder, **{"quantize": "same", **changes}), silent)


def make(root: Path, peft: dict[str, Any], size: float = 0.1) -> Made:
    """An adapter of this kind. `size`: of its numbers; at 0.1 a delta is of the size of the steps between two codes."""
    recipe = Recipe(config=CONFIG, tokenizer=True, shard="60KB")
    plain = root / "plain"
    save_base(recipe, plain, 0)
    torch.manual_seed(2)
    made = Made(base=root / "base", dense=root / "dense", adapter=root / "adapter")
    for folder in (made.base, made.dense):
        shutil.copytree(plain, folder)
    weight_map: dict[str, str] = {}
    for path in sorted(plain.glob("*.safetensors")):
        stored, meant = {}, {}
        for key, value in load_file(path).items():
            if key.endswith(("gate_up_proj", "down_proj")):
                blocks, scales = pack(value * 3)
                stored |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
                meant[key] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            elif key.endswith("_proj_bias"):
                stored[key] = meant[key] = torch.randn(value.shape).bfloat16() / 10
            else:
                stored[key] = meant[key] = value
        save_file(stored, made.base / path.name, metadata={"format": "pt"})
        save_file(meant, made.dense / path.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(stored, path.name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (made.base / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((plain / "config.json").read_text())
    (made.base / "config.json").write_text(json.dumps({**config, "quantization_config": MXFP4}))
    kin = family.Kin(config=CONFIG, peft=peft)
    family._save_adapter(kin, family.Built(recipe=recipe, base=made.dense, adapter=made.adapter, merged=made.dense))
    weights = load_file(made.adapter / "adapter_model.safetensors")
    scaled = {key: value * (size / 0.1) ** 0.5 for key, value in weights.items()}
    save_file(scaled, made.adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    return made


ON_EXPERTS = {"target_modules": ["q_proj", "v_proj"], "target_parameters": family.BOTH}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """LoRA on the attention and on both weights of all experts."""
    return make(tmp_path_factory.mktemp("experts"), ON_EXPERTS)


@pytest.fixture(scope="module")
def merged(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.merged(tmp_path_factory.mktemp("merged") / "merged")


def held(folder: Path) -> Tensors:
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def exact_merge(made: Made) -> Tensors:
    """The experts in float64, by PEFT's own layers on the dequantised base."""
    kin = family.Kin(config=CONFIG, peft=ON_EXPERTS)
    model = family.PeftModel.from_pretrained(family._load(kin, made.dense), made.adapter, autocast_adapter_dtype=False)
    merged = model.double().merge_and_unload()
    return {key: value for key, value in merged.state_dict().items() if key.endswith(("gate_up_proj", "down_proj"))}


def test_the_plan_says_which_weights_are_written_as_the_base_has_them(made: Made) -> None:
    plan = plan_folders(made.base, made.adapter, SAME)
    assert not plan.refusals
    assert "quantize: 4 merged weights are stored as same." in plan.notes
    parts = [part.key for op in plan.ops if isinstance(op, Quantize) for part in op.parts]
    assert sorted(parts) == sorted(key for key in held(made.base) if key.endswith(("_blocks", "_scales")))
    assert [change.path for change in plan.config_changes] == []


def test_what_is_touched_is_written_from_the_exact_merge_and_all_else_stays(made: Made, merged: Path) -> None:
    before, after = bytes_of(made.base, exact=False), bytes_of(merged, exact=False)
    assert before.keys() == after.keys()
    changed = {key for key in before if before[key] != after[key]}
    assert changed <= {key for key in before if key.endswith(("_blocks", "_scales", "q_proj.weight", "v_proj.weight"))}
    assert {f"{GATE_UP}_blocks", f"{DOWN}_blocks", f"{GATE_UP}_scales"} <= changed
    assert f"{GATE_UP}_bias" in before.keys() - changed
    assert (merged / "config.json").read_bytes() == (made.base / "config.json").read_bytes()
    tensors = held(merged)
    for key, exact in exact_merge(made).items():
        blocks, scales = pack(exact)  # no group of these is left alone
        assert torch.equal(tensors[f"{key}_blocks"], blocks), key
        assert torch.equal(tensors[f"{key}_scales"], scales), key


def test_it_is_proven_at_the_level_weights(made: Made, merged: Path) -> None:
    report = made.proven(merged)
    assert report.verdict == "verified", table(report)
    found = named(report, "quantised")
    assert (found.status, found.measured) == ("pass", "4 weights")
    assert "its rounding is" in found.why


@pytest.mark.slow
def test_plain_transformers_loads_it_and_it_is_proven_in_full(tmp_path: Path) -> None:
    """A tune so large that what FP4 costs is far from all of it, on every processor."""
    made = make(tmp_path, ON_EXPERTS, size=0.4)
    merged = made.merged(tmp_path / "merged")
    report = made.proven(merged, level="full")
    assert (report.verdict, report.level) == ("verified", "full"), table(report)
    assert named(report, "loads").status == "pass"
    loaded = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).state_dict()
    tensors = held(merged)
    for key in (GATE_UP, DOWN):
        meant = convert_moe_packed_tensors(tensors[f"{key}_blocks"], tensors[f"{key}_scales"], dtype=torch.float32)
        assert torch.equal(loaded[key].float(), meant)


def rewrite(folder: Path, change: Callable[[Tensors], None]) -> None:
    """Damage tensors, wherever they lie."""
    files = {path: load_file(path) for path in folder.glob("*.safetensors")}
    tensors = {key: value for inside in files.values() for key, value in inside.items()}
    change(tensors)
    for path, inside in files.items():
        save_file({key: tensors[key] for key in inside}, path, metadata={"format": "pt"})


def another_scale(tensors: Tensors, made: Made) -> None:
    tensors[f"{GATE_UP}_scales"][1, 5, 1] += 1


def a_flipped_code(tensors: Tensors, made: Made) -> None:
    tensors[f"{DOWN}_blocks"][2, 7, 1, 3] ^= 1


def swapped_nibbles(tensors: Tensors, made: Made) -> None:
    blocks = tensors[f"{GATE_UP}_blocks"]
    tensors[f"{GATE_UP}_blocks"] = (blocks >> 4) | (blocks << 4)


def gate_and_up_in_halves(tensors: Tensors, made: Made) -> None:
    """As others stack them; gpt-oss has them in turn."""
    for part in ("blocks", "scales"):
        held = tensors[f"{GATE_UP}_{part}"]
        tensors[f"{GATE_UP}_{part}"] = torch.cat([held[:, 0::2], held[:, 1::2]], 1).contiguous()


def another_expert(tensors: Tensors, made: Made) -> None:
    for part in ("blocks", "scales"):
        tensors[f"{DOWN}_{part}"] = tensors[f"{DOWN}_{part}"].roll(1, 0)


def one_expert_unmerged(tensors: Tensors, made: Made) -> None:
    before = held(made.base)
    for part in ("blocks", "scales"):
        tensors[f"{DOWN}_{part}"][2] = before[f"{DOWN}_{part}"][2]


def from_the_rounded_merge(tensors: Tensors, made: Made) -> None:
    """By way of bfloat16, as a merge that is saved and quantised afterwards goes."""
    tensors[f"{GATE_UP}_blocks"], tensors[f"{GATE_UP}_scales"] = pack(exact_merge(made)[GATE_UP].bfloat16())


def scales_rounded_up(tensors: Tensors, made: Made) -> None:
    """What Model-Optimizer would write: the smallest scale under which nothing is beyond 6."""
    exact = exact_merge(made)[GATE_UP].float()
    scales = pack(exact)[1]
    groups = exact.transpose(1, 2).reshape(*scales.shape, 32)
    tensors[f"{GATE_UP}_scales"] = torch.where(
        groups.abs().amax(-1) > 6 * 2.0 ** (scales.float() - 127), scales + 1, scales
    )


def a_lost_bias(tensors: Tensors, made: Made) -> None:
    tensors[f"{GATE_UP}_bias"] = torch.zeros_like(tensors[f"{GATE_UP}_bias"])


FAULTS: dict[str, tuple[Callable[[Tensors, Made], None], str]] = {
    "another scale": (another_scale, "quantised"),
    "a flipped code": (a_flipped_code, "quantised"),
    "swapped nibbles": (swapped_nibbles, "quantised"),
    "gate and up in halves": (gate_and_up_in_halves, "quantised"),
    "another expert": (another_expert, "quantised"),
    "one expert unmerged": (one_expert_unmerged, "quantised"),
    "from the rounded merge": (from_the_rounded_merge, "quantised"),
    "scales rounded up": (scales_rounded_up, "quantised"),
    "a lost bias": (a_lost_bias, "untouched"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_found(made: Made, merged: Path, tmp_path: Path, fault: str) -> None:
    folder = Path(shutil.copytree(merged, tmp_path / "merged"))
    plant, check = FAULTS[fault]
    rewrite(folder, lambda tensors: plant(tensors, made))
    report = made.proven(folder)
    assert report.verdict == "not-verified"
    assert named(report, check).status == "fail", table(report)
    if fault == "a flipped code":
        assert (
            f"{DOWN}: its blocks are not what MXFP4 makes of the exact merge (1 of 6,144 bytes differ; in experts 2 of 3)"
            in (named(report, check).why)
        )


def change_adapter(made: Made, folder: Path, change: Callable[[Tensors], None]) -> Made:
    """The same with another adapter."""
    adapter = Path(shutil.copytree(made.adapter, folder))
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    return Made(base=made.base, dense=made.dense, adapter=adapter)


def test_what_a_delta_of_zero_leaves_alone_keeps_bytes_that_nobody_would_write(made: Made, tmp_path: Path) -> None:
    """A delta on the first 32 inputs alone; every group's scale is one that the rule would not have taken."""
    odd = Made(base=Path(shutil.copytree(made.base, tmp_path / "base")), dense=made.dense, adapter=made.adapter)

    def halve(tensors: Tensors) -> None:
        for key in (GATE_UP, DOWN):
            tensors[f"{key}_blocks"] &= 0x99  # nothing beyond half a scale
        tensors[f"{DOWN}_blocks"][0, 0] = 0x88

    rewrite(odd.base, halve)

    def narrow(tensors: Tensors) -> None:
        for key, value in tensors.items():
            if ".experts." in key and "lora_A" in key:
                value[:, 32:] = 0

    narrowed = change_adapter(odd, tmp_path / "adapter", narrow)
    before, after = held(odd.base), held(narrowed.merged(tmp_path / "merged"))
    for key in (GATE_UP, DOWN):
        for part in ("blocks", "scales"):
            assert torch.equal(after[f"{key}_{part}"][:, :, 1], before[f"{key}_{part}"][:, :, 1])
        stays = (after[f"{key}_blocks"] == before[f"{key}_blocks"]).all(-1)[:, :, 0].float().mean()
        assert stays < 0.1
    report = narrowed.proven(tmp_path / "merged")
    assert report.verdict == "verified", table(report)


def test_a_tune_that_no_code_holds_is_no_merge(made: Made, tmp_path: Path) -> None:
    def shrink(tensors: Tensors) -> None:
        for key, value in tensors.items():
            if "lora_B" in key:
                value *= 1e-6 if ".experts." in key else 0

    tiny = change_adapter(made, tmp_path / "adapter", shrink)
    with pytest.raises(Refused, match="none of its deltas survives"):
        tiny.merged(tmp_path / "merged")
    report = tiny.proven(Path(shutil.copytree(made.base, tmp_path / "copy")))
    assert named(report, "quantised").status == "pass", table(report)
    assert named(report, "effect").status == "fail", table(report)


def test_a_form_asked_for_by_name_is_none_of_the_names(made: Made) -> None:
    from bot.formats import WRITERS

    assert "mxfp4" not in WRITERS
    (refusal,) = plan_folders(made.dense, made.adapter, SAME).refusals
    assert refusal.code == "quantize-same"
