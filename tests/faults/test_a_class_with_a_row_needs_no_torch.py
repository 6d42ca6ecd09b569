"""Merge and proof at level weights of models that are no language models: their names are known from a row, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from tests.factory import name_no_path
from tests.faults.conftest import claim
from tests.faults.test_plain_names_are_the_models import both
from tools.small_models import config_for

COMMANDS = """
import json, sys
from bot.cli.exits import _guarded
codes = [_guarded(arguments) for arguments in json.loads(sys.argv[1])]
print("ENDED", *codes, *(name for name in ("torch", "transformers", "peft") if name in sys.modules))
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A class, what is tuned of it, and the class it was tuned as, where that is another one."""

    name: str
    targets: Any
    settings: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    trained_as: str = ""
    built_with: dict[str, Any] = field(default_factory=dict)


CASES = {
    "t5": Case(name="T5ForConditionalGeneration", targets=["q", "v", "wo"], lora={"task_type": "SEQ_2_SEQ_LM"}),
    "flan-t5": Case(
        name="T5ForConditionalGeneration", targets=["q", "v", "wi_0"], lora={"task_type": "SEQ_2_SEQ_LM"},
        settings={"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "vit": Case(
        name="ViTForImageClassification", targets=["q_proj", "v_proj"], lora={"modules_to_save": ["classifier"]}
    ),
    "vit, a new head": Case(
        name="ViTModel", targets=["q_proj", "v_proj"], lora={"modules_to_save": ["classifier"]},
        trained_as="ViTForImageClassification", built_with={"add_pooling_layer": False},
    ),
    "qwen3-vl-moe": Case(name="Qwen3VLMoeForConditionalGeneration", targets=r".*language_model.*\.[qv]_proj"),
    "whisper": Case(name="WhisperForConditionalGeneration", targets=["q_proj", "v_proj"]),
    "xlm-roberta": Case(
        name="XLMRobertaForSequenceClassification", targets=["query", "value"], lora={"task_type": "SEQ_CLS"}
    ),
    "xlm-roberta, a new head": Case(
        name="XLMRobertaForMaskedLM", targets=["query", "value"], lora={"task_type": "SEQ_CLS"},
        trained_as="XLMRobertaForSequenceClassification",
    ),
    "an encoder inside of its base": Case(
        name="XLMRobertaForMaskedLM", targets=["query", "value"], lora={"task_type": "FEATURE_EXTRACTION"},
        trained_as="XLMRobertaModel",
    ),
    "an encoder": Case(name="XLMRobertaModel", targets=["query", "dense"], lora={"task_type": "FEATURE_EXTRACTION"}),
}  # fmt: skip


def made(case: Case, root: Path) -> tuple[Path, Path]:
    """(base, adapter)."""
    torch.manual_seed(0)
    chosen = getattr(transformers, case.name)
    chosen(config_for(chosen, **case.settings), **case.built_with).save_pretrained(root / "base")
    trained = getattr(transformers, case.trained_as or case.name)
    model = trained.from_pretrained(root / "base", **({"num_labels": 3} if case.trained_as else {}))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=case.targets, **case.lora))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(root / "adapter")
    return root / "base", name_no_path(root / "adapter")


@pytest.mark.parametrize("name", CASES)
def test_merge_and_proof_import_none_and_claim_what_the_model_claims(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base, adapter = made(CASES[name], tmp_path)
    merged = tmp_path / "merged"
    quiet = ["--base", str(base), "--verify", "weights", "--quiet"]
    merge = ["merge", str(adapter), "--output", str(merged), *quiet]
    verify = ["verify", str(merged), "--adapter", str(adapter), *quiet]
    program = [sys.executable, "-c", COMMANDS, json.dumps([merge, verify])]
    ran = subprocess.run(program, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "ENDED 0 0", ran.stdout + ran.stderr
    assert json.loads((merged / "verification.json").read_text())["verdict"] == "verified"
    by_rows, by_model, without_model = both(claim(base, adapter, merged), monkeypatch)
    assert by_rows == by_model
    assert without_model
