"""The bot's own merges, proven by checks that share none of its code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bot.records import Options
from bot.verify import table
from tests.faults.conftest import Builder, prove, statuses
from tests.faults.models import RECIPES
from tests.steps import merge_folders, plan_folders


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_engine_writes_is_verified(built: Builder, tmp_path: Path, name: str):
    one = built(name)
    if refusals := plan_folders(one.base, one.adapter).refusals:
        pytest.skip(f"the plan refuses it: {refusals[0].reason}")
    folder = merge_folders(one.base, one.adapter, tmp_path / "merged", Options(dtype=one.recipe.to))
    report = prove(one, folder)
    assert statuses(report, "fail", "skip", "warn") == {}, table(report)


def test_a_lora_begun_as_mica_is_verified(built: Builder, tmp_path: Path):
    """Its B is taken from the base, and A starts from zero, so that the base is not changed: a LoRA like any other."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    one = built("llama-tied-sharded")
    model = AutoModelForCausalLM.from_pretrained(one.base)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="mica"))
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    one = replace(one, adapter=tmp_path / "adapter")
    report = prove(one, merge_folders(one.base, one.adapter, tmp_path / "merged"))
    assert statuses(report, "fail", "skip", "warn") == {}, table(report)
