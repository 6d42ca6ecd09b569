"""One embedding that a model asks by several names: a refusal that is true. (Blocks at several depths: the next file.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, TrainableTokensConfig, get_peft_model

from bot.checks.case import Case
from bot.checks.expected.adapter_claims import adapter_claims
from bot.events import silent
from tests.faults.conftest import claim
from tests.oracle.one_architecture import load
from tests.steps import plan_folders
from tools.small_models import class_of, config_of


def base_of(model_type: str, folder: Path) -> Any:
    torch.manual_seed(0)
    chosen = getattr(transformers, str(class_of(model_type)))
    model = chosen(config_of(model_type))
    with torch.no_grad():
        for one in model.parameters():
            one += 0.05 * torch.randn_like(one)
    model.save_pretrained(folder)
    return chosen


EMBEDDINGS: dict[str, Any] = {
    "the head saved whole": LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "the shared embedding saved whole": LoraConfig(target_modules=["q_proj"], modules_to_save=["shared"]),
    "both embeddings saved whole": LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "LoRA on the decoder's": LoraConfig(target_modules=["q_proj", "decoder.embed_tokens"]),
    "trained tokens": TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[3, 5]),
}


@pytest.mark.parametrize("model_type", ["m2m_100", "marian"])
@pytest.mark.parametrize("way", EMBEDDINGS)
def test_one_embedding_of_encoder_decoder_and_head_is_refused(way: str, model_type: str, tmp_path: Path) -> None:
    """PEFT changes one of its names, and the others stay; nothing is said of another base. The verifier says so too."""
    chosen = base_of(model_type, tmp_path / "base")
    model = get_peft_model(load(chosen, tmp_path / "base"), EMBEDDINGS[way])
    for one in model.parameters():
        if one.requires_grad and one.numel():
            one.data += 0.05 * torch.randn_like(one)
    model.save_pretrained(tmp_path / "adapter")
    refusals = plan_folders(tmp_path / "base", tmp_path / "adapter").refusals
    assert {one.code for one in refusals} == {"shared-weight"}
    assert Case(claim(tmp_path / "base", tmp_path / "adapter", tmp_path / "base"), silent).once(adapter_claims).problems
