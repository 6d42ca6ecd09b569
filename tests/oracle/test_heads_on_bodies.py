"""A new head on a base that is a body alone, as most encoders of texts and pictures are published: what the class with the head has no
use for goes, what it needs stays, and the whole proof knows both by their names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig

from bot.events import silent
from bot.verify import verify
from tests.faults.conftest import claim, named
from tests.oracle.unmerged import distance
from tests.steps import merge_folders
from tools.make_heads import TARGET, lacks_of
from tools.small_models import SETTINGS, small

TASKS = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}
POOLER = "pooler.dense.weight"
# (the base's class, the class with the head, whether the pooler stays; None: it has none)
PAIRS: tuple[tuple[str, str, bool | None], ...] = (
    ("BertModel", "BertForSequenceClassification", True),
    ("BertModel", "BertForTokenClassification", False),
    ("XLMRobertaModel", "XLMRobertaForSequenceClassification", False),
    ("ViTModel", "ViTForImageClassification", False),
    ("Dinov2Model", "Dinov2ForImageClassification", None),
    ("FunnelModel", "FunnelForSequenceClassification", None),  # its decoder goes
    ("T5Model", "T5ForTokenClassification", None),  # as does this one's
    ("WhisperForConditionalGeneration", "WhisperForAudioClassification", None),  # and this one's
    ("SiglipModel", "SiglipForImageClassification", None),  # of two towers one
    ("Wav2Vec2Model", "Wav2Vec2ForSequenceClassification", None),
    ("ConvNextModel", "ConvNextForImageClassification", None),
    ("ViTMSNModel", "ViTMSNForImageClassification", None),  # some of whose names are renamed, and get a prefix then
)


def trained(base: str, head: str, folder: Path) -> None:
    """A tiny base of this class, and a LoRA with a head of three labels."""
    chosen = getattr(transformers, head)
    default: PreTrainedConfig = chosen.config_class()
    torch.manual_seed(0)
    config = chosen.config_class(**small(default, settings=SETTINGS.get(default.model_type, {})))
    getattr(transformers, base)(config).to(torch.bfloat16).save_pretrained(folder / "base")
    model = chosen.from_pretrained(folder / "base", num_labels=3)
    heads = ["classifier", *(["projector"] if hasattr(model, "projector") else [])]
    linear = next(name for name, module in model.named_modules()
                  if type(module) is torch.nn.Linear and name.split(".")[0] not in heads)  # fmt: skip
    task = next((task for ending, task in TASKS.items() if head.endswith(ending)), None)
    saved: dict[str, Any] = {"task_type": task} if task and len(heads) == 1 else {"modules_to_save": heads}
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[linear], **saved))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(folder / "adapter")


@pytest.mark.parametrize(("base", "head", "stays"), PAIRS)
def test_a_head_on_a_body_is_merged_and_proven(base: str, head: str, stays: bool | None, tmp_path: Path) -> None:
    trained(base, head, tmp_path)
    folder = merge_folders(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert json.loads((folder / "config.json").read_text())["architectures"] == [head]
    with safe_open(folder / "model.safetensors", "pt") as merged:
        keys = list(merged.keys())
    assert any(key.endswith(POOLER) for key in keys) == bool(stays)
    _, loading = getattr(transformers, head).from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    report = verify(claim(tmp_path / "base", tmp_path / "adapter", folder, level="full"), silent)
    assert report.verdict == "verified", [finding for finding in report.findings if finding.status == "fail"]


# What wrote the base's file, what its config says, the class with the head: the file has more than the class that it names.
STRAYS = (
    ("BertForPreTraining", "BertForMaskedLM", "BertForTokenClassification"),  # as bert-base-uncased
    ("BertForPreTraining", "BertForMaskedLM", "BertForSequenceClassification"),
    ("BertModel", "BertForMaskedLM", "BertForTokenClassification"),
    ("XLMRobertaModel", "XLMRobertaForMaskedLM", "XLMRobertaForSequenceClassification"),
    ("ViTModel", "ViTForMaskedImageModeling", "ViTForImageClassification"),
)


@pytest.mark.parametrize(("wrote", "stated", "head"), STRAYS)
def test_tensors_that_neither_class_uses_may_go(wrote: str, stated: str, head: str, tmp_path: Path) -> None:
    trained(wrote, head, tmp_path)
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [stated]}))
    folder = merge_folders(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    _, loading = getattr(transformers, head).from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    report = verify(claim(tmp_path / "base", tmp_path / "adapter", folder), silent)
    assert report.verdict == "verified", [finding for finding in report.findings if finding.status == "fail"]


def test_what_the_new_class_uses_may_not_go(tmp_path: Path) -> None:
    trained("BertForPreTraining", "BertForTokenClassification", tmp_path)
    folder = merge_folders(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    kept = load_file(folder / "model.safetensors")
    lost = next(key for key in kept if "output.dense" in key)
    save_file(
        {key: value for key, value in kept.items() if key != lost}, folder / "model.safetensors", {"format": "pt"}
    )
    report = verify(claim(tmp_path / "base", tmp_path / "adapter", folder), silent)
    assert f"{lost} is missing." in named(report, "keys").why


def test_a_parameter_that_only_another_class_of_the_type_has_goes(tmp_path: Path) -> None:
    """ViT's token for masked patches, which its class for masked pictures has and one for whole pictures has not."""
    trained("ViTForMaskedImageModeling", "ViTForImageClassification", tmp_path)
    folder = merge_folders(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert any(key.endswith("mask_token") for key in base)
    assert not any(key.endswith("mask_token") for key in load_file(folder / "model.safetensors"))
    report = verify(claim(tmp_path / "base", tmp_path / "adapter", folder), silent)
    assert report.verdict == "verified", [finding for finding in report.findings if finding.status == "fail"]


def test_an_adapter_of_a_language_model_on_its_body(tmp_path: Path) -> None:
    """BART is published as its body, and trained as what generates: both have these weights, and the body stays what it is."""
    small_config = transformers.BartConfig(**small(transformers.BartConfig()))
    torch.manual_seed(0)
    transformers.BartModel(small_config).save_pretrained(tmp_path / "base")
    model = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q_proj", "v_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    folder = merge_folders(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    report = verify(claim(tmp_path / "base", tmp_path / "adapter", folder, level="full"), silent)
    assert report.verdict == "verified", [finding for finding in report.findings if finding.status != "pass"]
    merged = transformers.BartForConditionalGeneration.from_pretrained(folder, dtype=torch.float64)
    tokens = {"input_ids": torch.arange(4, 20).view(1, -1), "decoder_input_ids": torch.arange(3, 12).view(1, -1)}
    with torch.no_grad():
        assert distance(merged.eval()(**tokens).logits, adapted.double().eval()(**tokens).logits) < 2e-6


@pytest.mark.parametrize("head", [head for _, head, _ in PAIRS])
def test_what_a_body_lacks_is_as_the_pinned_transformers_builds_it(head: str) -> None:
    assert json.loads(TARGET.read_text())["lacks"].get(head, []) == lacks_of(getattr(transformers, head))
