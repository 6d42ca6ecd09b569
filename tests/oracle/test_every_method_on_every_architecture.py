"""The support matrix: every method that merges, on every architecture that PEFT puts it on, planned and merged whole.

Each cell merges a tiny float32 base with a randomly trained adapter and holds the result to PEFT's unmerged model in
float64. `python -m tests.oracle.write_matrix` runs this file and writes docs/support-matrix.md.
"""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from bot.adapters.methods import METHODS
from tests.factory import ALL_ARCHITECTURES, model_inputs, outputs, save_base
from tests.oracle.peft_cases import USUAL
from tests.oracle.test_peft_methods_equal_the_unmerged_model import FLOAT32_INSIDE
from tests.oracle.unmerged import distance, load
from tests.steps import merge_folders, plan_folders

COLUMNS = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "opt", "bloom", "falcon",
    "mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "t5", "bart", "whisper", "bert", "roberta", "vit",
    "gemma3-vlm", "qwen2_vl", "llava",
)  # fmt: skip
# Row → (peft_type, settings)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LORA", {}),
    "rsLoRA": ("LORA", {"use_rslora": True}),
    "DoRA": ("LORA", {"use_dora": True}),
    "PiSSA": ("LORA", {"init_lora_weights": "pissa"}),
    "OLoRA": ("LORA", {"init_lora_weights": "olora"}),
} | {method.name: (kind, {}) for kind, method in METHODS.items() if method.engine and kind != "LORA"}
CELLS = [(name, row) for name in COLUMNS for row in ROWS]
# PEFT computes in float32 inside, or rebuilds the base in it: there its own model is that far from exact.
LOOSE = {**FLOAT32_INSIDE, "LORA": 1e-5, "PSOFT": 1e-4, "TINYLORA": 1e-4, "ADAMSS": 1e-4}


@cache
def _home(name: str) -> Path:
    """The base of an architecture, made once a process."""
    import atexit
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="matrix-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return save_base(name, folder / "base", dtype=torch.float32)


def _layers(model: torch.nn.Module, kind: str) -> list[str]:
    """Two kinds of layers that the method adapts: the first and the last Linear of a block; norms for LN-tuning."""
    found: list[str] = []
    for path, module in model.named_modules():
        leaf = ".".join(path.split(".")[-2:])
        if "Norm" in type(module).__name__ and kind == "LN_TUNING":
            found.append(leaf)
        elif (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D") and kind not in (
            "LN_TUNING",
            "TRAINABLE_TOKENS",
        ):
            body = any(part.isdigit() for part in path.split("."))
            if body and not any(
                word in path for word in ("visual", "vision", "router", "gate.", "experts", "gate_proj", "up_proj")
            ):
                found.append(leaf)
    return [found[0], found[min(len(set(found)), 6) - 1]] if found else []


def _adapter(name: str, row: str, folder: Path) -> None:
    """Save an adapter of this row on this architecture; whatever PEFT raises is for the caller."""
    kind, settings = ROWS[row]
    model = getattr(transformers, ALL_ARCHITECTURES[name].auto).from_pretrained(_home(name), dtype=torch.float32)
    given: dict[str, Any] = {**USUAL.get(kind, {}), **settings}
    if kind == "TRAINABLE_TOKENS":
        given["token_indices"] = [3, 5, 50]
    else:
        given["target_modules"] = _layers(model, kind)
    if kind == "IA3":
        given["feedforward_modules"] = given["target_modules"][1:]
    torch.manual_seed(1)
    tuned = get_peft_model(model, PEFT_TYPE_TO_CONFIG_MAPPING[kind](**given))
    for weight in tuned.parameters():
        if weight.requires_grad and weight.is_floating_point():
            weight.data += 0.05 * torch.randn(weight.shape)
    tuned.save_pretrained(str(folder))


def _unmerged(name: str, adapter: Path) -> Any:
    """PEFT's unmerged model, loaded in float32 as its users do (some methods change the base then), and widened."""
    chosen = getattr(transformers, ALL_ARCHITECTURES[name].auto)
    model = chosen.from_pretrained(_home(name), dtype=torch.float32, attn_implementation="eager")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    tuned = PeftModel.from_pretrained(model, str(adapter)).double().eval()
    for module in tuned.modules():
        if isinstance(module.__dict__.get("dtype"), torch.dtype):
            module.__dict__["dtype"] = torch.float64
    return tuned


@pytest.mark.slow
@pytest.mark.parametrize(("name", "row"), CELLS, ids=[f"{name}-|-{row}" for name, row in CELLS])
def test_the_merged_model_answers_like_the_unmerged_one(name: str, row: str, tmp_path: Path, record_property) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kind = ROWS[row][0]
    try:
        _adapter(name, row, tmp_path / "adapter")
        expected = outputs(_unmerged(name, tmp_path / "adapter"), model_inputs(name))
    except (ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError, KeyError, IndexError) as error:
        record_property("cell", "n/a")
        pytest.skip(f"PEFT cannot put {row} on {name}: {str(error)[:120]}")
    plan = plan_folders(_home(name), tmp_path / "adapter")
    if plan.refusals:
        record_property("cell", f"refused: {plan.refusals[0].code}")
        pytest.skip(f"refused by name: {plan.refusals[0].reason}")
    folder = merge_folders(_home(name), tmp_path / "adapter", tmp_path / "merged")
    found = outputs(load(name, folder), model_inputs(name))
    record_property("cell", plan.engine)
    assert distance(found, expected) < max(3e-6, LOOSE.get(kind, 0.0))
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
