"""float16 ends at 65504: what is larger is refused, or clamped where that is asked for, and the report counts it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bot.engines.streaming import write_shard
from bot.errors import Refused
from bot.events import silent
from bot.numerics.rounder import Arithmetic
from bot.numerics.rounding import RAW
from bot.records import Local, Options, Replace, Report, Shard, Stored
from bot.report_document import InputPins, MergeFacts
from bot.verify import Subject, verify
from tests.factory import save_adapter, save_base
from tests.faults.conftest import INPUTS, named
from tests.faults.damage import rewrite
from tests.steps import merge_folders, plan_folders

LARGEST = 65504.0
TOUCHED, UNTOUCHED = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
LARGE = {TOUCHED: {3: 2.0**18, 70: -90000.0, 5: 2e30}, UNTOUCHED: {1: -3e5, 2: 1e5}}
CLAMP = Options(dtype="float16", overflow="clamp")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bfloat16 base with a few large numbers, and adapters on it by their method."""
    folder = tmp_path_factory.mktemp("large")
    base = save_base("llama", folder / "base")
    lora = save_adapter(base, "llama", folder / "lora")
    return {"base": enlarged(base), "lora": lora, "ia3": ia3(base, folder / "ia3")}


def enlarged(base: Path) -> Path:
    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        for key, some in LARGE.items():
            for at, value in some.items():
                weights[key].view(-1)[at] = value

    rewrite(base / "model.safetensors", enlarge)
    return base


def ia3(base: Path, folder: Path) -> Path:
    from peft import IA3Config, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(
        model, IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"])
    )
    for name, parameter in adapted.named_parameters():
        if "ia3_l" in name:
            torch.nn.init.uniform_(parameter, 0.9, 1.1)
    adapted.save_pretrained(folder)
    return folder


def proven(inputs: dict[str, Path], method: str, folder: Path, **changes: Any) -> Report:
    given: dict[str, Any] = {
        "folder": folder, "base": inputs["base"], "adapter": inputs[method], "inputs": InputPins.of(INPUTS), "recorded": None,
        "merge": MergeFacts.of({}), "dtype": "float16", "ours": True, "level": "weights", "not_run": (), "trust_remote_code": False,
        "clamps": True,
    }  # fmt: skip
    return verify(Subject(**(given | changes)), silent)


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_a_merge_is_refused_unless_it_may_clamp(inputs, method: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as raised:
        merge_folders(inputs["base"], inputs[method], tmp_path / "merged", Options(dtype="float16"))
    assert "values that are too large for float16" in raised.value.what
    assert "--overflow clamp" in raised.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_a_clamped_merge_has_the_largest_number_of_the_same_sign_there_and_is_proven(
    inputs, method: str, tmp_path
) -> None:
    merged = merge_folders(inputs["base"], inputs[method], tmp_path / "merged", CLAMP)
    weights = load_file(merged / "model.safetensors")
    for key, some in LARGE.items():
        assert {at: weights[key].view(-1)[at].item() for at in some} == {
            at: LARGEST if value > 0 else -LARGEST for at, value in some.items()
        }
        assert int((weights[key].abs() == LARGEST).sum()) == len(some)
    report = proven(inputs, method, merged)
    assert report.verdict == "verified"
    finite = named(report, "finite")
    assert (finite.status, finite.measured) == ("warn", "5 values clamped")
    assert finite.worst == (f"{UNTOUCHED}: 2", f"{TOUCHED}: 3") or finite.worst == (f"{TOUCHED}: 3", f"{UNTOUCHED}: 2")


@pytest.mark.parametrize("key", [TOUCHED, UNTOUCHED])
@pytest.mark.parametrize(("value", "check"), [(65472.0, None), (float("inf"), "finite"), (-LARGEST, None)])
def test_another_number_in_its_place_is_found(
    inputs, key: str, value: float, check: str | None, tmp_path: Path
) -> None:
    merged = merge_folders(inputs["base"], inputs["lora"], tmp_path / "merged", CLAMP)
    weights = load_file(merged / "model.safetensors")[key].clone()
    at = next(at for at, large in LARGE[key].items() if large > 0)
    weights.view(-1)[at] = value
    rewrite(merged / "model.safetensors", lambda tensors: tensors.update({key: weights}))
    report = proven(inputs, "lora", merged)
    assert report.verdict == "not-verified"
    assert named(report, "touched" if key == TOUCHED else "untouched").status == "fail"
    assert check is None or named(report, check).status == "fail"


def test_a_clamped_number_that_nobody_asked_for_is_found(inputs, tmp_path: Path) -> None:
    merged = merge_folders(inputs["base"], inputs["lora"], tmp_path / "merged", CLAMP)
    report = proven(inputs, "lora", merged, clamps=False)
    assert named(report, "touched").status == "fail"
    assert named(report, "untouched").status == "fail"


def test_an_infinity_of_the_bases_is_not_clamped(inputs, tmp_path: Path) -> None:
    base = Path(shutil.copytree(inputs["base"], tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    norm = weights[UNTOUCHED].clone()
    norm[7] = float("inf")
    rewrite(base / "model.safetensors", lambda tensors: tensors.update({UNTOUCHED: norm}))
    merged = merge_folders(base, inputs["lora"], tmp_path / "merged", CLAMP)
    assert load_file(merged / "model.safetensors")[UNTOUCHED][7].item() == float("inf")


def test_retention_and_coverage_look_past_what_is_clamped(inputs, tmp_path: Path) -> None:
    """A merge that has only the clamping: a clamped number's distance from the base's would outweigh any delta."""
    merged = merge_folders(inputs["base"], inputs["lora"], tmp_path / "merged", CLAMP)

    def unmerge(weights: dict[str, torch.Tensor]) -> None:
        plain = load_file(inputs["base"] / "model.safetensors")[TOUCHED]
        weights[TOUCHED] = plain.float().clamp(-LARGEST, LARGEST).half()

    rewrite(merged / "model.safetensors", unmerge)
    report = proven(inputs, "lora", merged)
    assert named(report, "coverage").why == f"{TOUCHED} is still the base's: it was not merged."
    assert f"{TOUCHED} keeps" in named(report, "retention").worst[0]


@pytest.mark.parametrize("stored", ["F32", "F64"])
def test_what_replaces_a_tensor_may_be_stored_wider(stored: str, tmp_path: Path) -> None:
    """A base tensor of float64 stays that, whatever may be clamped."""
    values = np.array([1.5, -2.0, 1e30, 0.25], np.float32)
    (tmp_path / "base").write_bytes(np.zeros(4, RAW[stored]).tobytes())
    (tmp_path / "adapter").write_bytes(values.tobytes())
    target = Stored(key="k", file="base", dtype=stored, shape=(4,), start=0, stop=4 * np.dtype(RAW[stored]).itemsize)
    given = Stored(key="v", file="adapter", dtype="F32", shape=(4,), start=0, stop=16, role="adapter")
    op = Replace(source=target, target=target, values=given, module="m")
    shard = Shard(name="base", size=target.stop, header=b"", same_as_base=False)
    write_shard(
        shard,
        [op],
        Local(base=tmp_path, adapter=tmp_path),
        tmp_path / "out",
        lambda _: None,
        arithmetic=Arithmetic(clamps=True),
    )
    assert np.fromfile(tmp_path / "out", RAW[stored]).tolist() == values.tolist()


def test_the_choice_is_in_the_fingerprint_and_another_dtype_needs_none(inputs, tmp_path: Path) -> None:
    base, lora = inputs["base"], inputs["lora"]
    prints = {
        plan_folders(base, lora, Options(dtype="float16", overflow=how)).fingerprint for how in ("refuse", "clamp")
    }
    assert len(prints) == 2
    assert "become its largest, as asked" in plan_folders(base, lora, CLAMP).notes[1]
    plain = merge_folders(base, lora, tmp_path / "plain", Options())
    same = merge_folders(base, lora, tmp_path / "same", Options(overflow="clamp"))
    assert (plain / "model.safetensors").read_bytes() == (same / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_clamped_merge_without_one_module_shows_in_what_it_says(inputs, tmp_path: Path) -> None:
    """One value beyond float16, in a weight of the last layer; what is left of the model still counts."""
    base = save_base("llama", tmp_path / "base")

    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = 3e5

    rewrite(base / "model.safetensors", enlarge)
    merged = merge_folders(base, inputs["lora"], tmp_path / "merged", CLAMP)
    right = proven(inputs, "lora", merged, base=base, level="full")
    assert named(right, "behaviour").status == "pass"

    def unmerge(weights: dict[str, torch.Tensor]) -> None:
        plain = load_file(base / "model.safetensors")
        for name in ("v_proj", "o_proj"):
            weights[f"model.layers.0.self_attn.{name}.weight"] = plain[f"model.layers.0.self_attn.{name}.weight"].half()

    rewrite(merged / "model.safetensors", unmerge)
    assert named(proven(inputs, "lora", merged, base=base, level="full"), "behaviour").status == "fail"


@pytest.mark.slow
def test_the_whole_command_says_so_in_card_and_report_and_proves_it_again(inputs, tmp_path: Path) -> None:
    given = [str(inputs["lora"]), "--base", str(inputs["base"]), "--dtype", "float16", "--overflow", "clamp"]
    output = tmp_path / "merged"
    ran = subprocess.run(
        [sys.executable, "-m", "bot", "merge", *given, "--output", str(output)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "5 values too large for the dtype, stored as its largest number, as asked." in ran.stderr
    card = (output / "README.md").read_text()
    assert "--dtype float16 --overflow clamp" in card
    assert "5 values clamped" in card
    again = [str(output), "--base", str(inputs["base"]), "--adapter", str(inputs["lora"]), "--verify", "weights"]
    assert subprocess.run([sys.executable, "-m", "bot", "verify", *again], capture_output=True).returncode == 0
