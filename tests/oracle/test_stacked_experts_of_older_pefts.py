"""Adapters on stacked experts (`target_parameters`) whose sides an older PEFT saved the other way round.

The deltas are written as PEFT's own releases compute them, from their source: 0.17 and 0.18 take E × m × n for experts ×
inputs × outputs whatever the module, 0.19.0 exchanges them for `is_transposed`, 0.19.1 and later for all others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bot.checks.behaviour.adapter_for_peft import adapter_for_peft
from bot.events import silent
from bot.records import Report
from bot.report_document import InputPins, MergeFacts
from bot.verify import Subject, verify
from tests.factory import build, save_base
from tests.oracle.unmerged import load
from tests.steps import merge_folders, plan_folders

RANK, ALPHA = 4, 8
# gate_up_proj of both is 4 × 64 × 64 here: the shapes say nothing. gpt_oss has its experts in × out.
SQUARE = "gate_up_proj"
VERSIONS = [
    ("qwen3_moe", "0.17.1", "e i o"),
    ("qwen3_moe", "0.18.1", "e i o"),
    ("qwen3_moe", "0.18.2.dev0@5356277d0", "e i o"),
    ("qwen3_moe", "0.19.0", "e i o"),
    ("qwen3_moe", "0.19.1", "e o i"),
    ("qwen3_moe", "0.21.2", "e o i"),
    ("gpt_oss", "0.18.1", "e i o"),
    ("gpt_oss", "0.19.0", "e o i"),
    ("gpt_oss", "0.19.1", "e i o"),
]
UNDATED = [("qwen3_moe", None), ("qwen3_moe", "0.19.1.dev0@UNKNOWN"), ("gpt_oss", "0.18.2.dev0"), ("gpt_oss", "new")]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: save_base(name, root / name, dtype=torch.float32) for name in ("qwen3_moe", "gpt_oss")}


def write(
    folder: Path, name: str, version: str | None, order: str, parts: tuple[str, ...] = (SQUARE,)
) -> dict[str, torch.Tensor]:
    """An adapter on every layer's `parts`, as a ParamWrapper with that einsum saves it; the deltas, by parameter."""
    torch.manual_seed(7)
    tensors, deltas = {}, {}
    for key, stack in build(name).state_dict().items():
        experts, part = key.rpartition(".")[::2]
        if part not in parts or stack.dim() != 3:
            continue
        count, first, second = stack.shape
        reads, writes = (first, second) if order == "e i o" else (second, first)
        a, b = torch.randn(RANK * count, reads), torch.randn(writes, RANK * count) * 0.05
        inner = ".base_layer" if part == SQUARE and len(parts) > 1 else ""
        tensors |= {f"{experts}{inner}.lora_A.weight": a, f"{experts}{inner}.lora_B.weight": b}
        terms = b.double().reshape(writes, RANK, count), a.double().reshape(count, RANK, reads)
        deltas[key] = ALPHA / RANK * torch.einsum(f"o r e, e r i -> {order}", *terms)
    folder.mkdir()
    config: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "target_modules": [],
        "target_parameters": [f"mlp.experts.{part}" for part in parts],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config | ({"peft_version": version} if version else {})))
    save_file({f"base_model.model.{key}": one for key, one in tensors.items()}, folder / "adapter_model.safetensors")
    return deltas


def changed(name: str, base: Path, merged: Path) -> dict[str, torch.Tensor]:
    """What a merge has added, by transformers' own parameters."""
    before, after = (load(name, folder).state_dict() for folder in (base, merged))
    return {key: after[key] - before[key] for key in after if not torch.equal(after[key], before[key])}


def prove(base: Path, adapter: Path, merged: Path) -> Report:
    inputs = {"base": {"repo": "o/b", "sha": "b" * 40}, "adapter": {"repo": "o/a", "sha": "a" * 40}, "recipe": "1"}
    subject = Subject(
        folder=merged, base=base, adapter=adapter, inputs=InputPins.of(inputs), recorded=None, merge=MergeFacts.of({}),
        dtype="auto", ours=True,
        level="weights", not_run=(), trust_remote_code=False,
    )  # fmt: skip
    return verify(subject, silent)


@pytest.mark.parametrize(("name", "version", "order"), VERSIONS)
def test_square_experts_are_read_as_the_peft_that_saved_them_reads_them(
    name: str, version: str, order: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    deltas = write(tmp_path / "adapter", name, version, order)
    merged = merge_folders(bases[name], tmp_path / "adapter", tmp_path / "merged")
    found = changed(name, bases[name], merged)
    assert found.keys() == deltas.keys()
    for key, delta in deltas.items():
        assert float((found[key] - delta).abs().max()) < 1e-6, key


@pytest.mark.parametrize("version", [None, "0.18.1", "0.21.2"])
@pytest.mark.parametrize("order", ["e i o", "e o i"])
def test_the_shapes_say_which_side_is_which_where_they_differ(
    order: str, version: str | None, bases: dict[str, Path], tmp_path: Path
) -> None:
    deltas = write(tmp_path / "adapter", "qwen3_moe", version, order, ("down_proj",))
    merged = merge_folders(bases["qwen3_moe"], tmp_path / "adapter", tmp_path / "merged")
    found = changed("qwen3_moe", bases["qwen3_moe"], merged)
    assert all(float((found[key] - delta).abs().max()) < 1e-6 for key, delta in deltas.items())


@pytest.mark.parametrize(("name", "version"), UNDATED)
def test_square_experts_of_an_unknown_peft_are_refused(
    name: str, version: str | None, bases: dict[str, Path], tmp_path: Path
) -> None:
    write(tmp_path / "adapter", name, version, "e o i")
    (refusal,) = plan_folders(bases[name], tmp_path / "adapter").refusals
    assert refusal.code == "stacked-order"
    assert "peft_version" in refusal.reason
    assert "peft_version" in refusal.remedy
    report = prove(bases[name], tmp_path / "adapter", bases[name])
    assert "either way round" in next(one.why for one in report.findings if one.id == "method")


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [("qwen3_moe", "0.18.1", "0.19.1"), ("qwen3_moe", "0.19.1", "0.19.0"), ("gpt_oss", "0.19.0", "0.18.1")],
)
def test_the_verifier_tells_one_order_from_the_other_by_itself(
    name: str, right: str, wrong: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    order = next(order for known, version, order in VERSIONS if (known, version) == (name, right))
    write(tmp_path / "adapter", name, right, order)
    merged = merge_folders(bases[name], tmp_path / "adapter", tmp_path / "merged")
    assert prove(bases[name], tmp_path / "adapter", merged).verdict == "verified"
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_version": wrong}))
    report = prove(bases[name], tmp_path / "adapter", merged)
    assert {one.id: one.status for one in report.findings}["touched"] == "fail"


def test_the_unmerged_model_gets_a_pair_of_todays_order_with_the_same_product(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    deltas = write(tmp_path / "adapter", "qwen3_moe", "0.18.1", "e i o", (SQUARE, "down_proj"))
    model = load("qwen3_moe", bases["qwen3_moe"])
    work = tmp_path / "work"
    work.mkdir()
    adapter = adapter_for_peft(tmp_path / "adapter", work, dict(model.named_modules()), lambda module: module)
    assert adapter != tmp_path / "adapter"
    tuned = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).double()
    layers = [one for one in tuned.modules() if hasattr(one, "parameter_name")]
    found = [(one.parameter_name, one.get_delta_weight("default")) for one in layers]
    assert len(found) == len(deltas)
    for key, delta in deltas.items():
        assert any(key.endswith(f".{part}") and torch.allclose(one, delta, atol=1e-9) for part, one in found), key
    assert (
        load_file(adapter / "adapter_model.safetensors").keys()
        == load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    )
