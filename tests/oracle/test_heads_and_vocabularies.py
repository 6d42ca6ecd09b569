"""Adapters that change what the base is: another vocabulary, another head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from bot.checks.case import Case
from bot.checks.expected.adapter_claims import adapter_claims
from bot.events import silent
from tests.factory import ALL_ARCHITECTURES, TEXT, model_inputs, save_base
from tests.faults.conftest import claim
from tests.oracle.unmerged import distance
from tests.pinned import pinned
from tests.steps import merge_folders, plan_folders
from tools.make_heads import TARGET, rows


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "embedding_A" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("rows", [136, 120])
@pytest.mark.parametrize("how", ["saved along", "LoRA on the embedding", "modules_to_save"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])  # untied, tied
def test_a_vocabulary_of_another_size(name: str, how: str, rows: int, tmp_path: Path) -> None:
    base = save_base(name, tmp_path / "base", dtype=torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(rows, mean_resizing=False)
    ways = {
        "saved along": {"target_modules": ["q_proj"]},
        "LoRA on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
        "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    }
    adapted = randomised(get_peft_model(model, LoraConfig(r=4, **ways[how])))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True if how == "saved along" else "auto")
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    if name == "llama" and not any("lm_head" in key for key in keys):
        plan = plan_folders(base, tmp_path / "adapter")
        assert [refusal.code for refusal in plan.refusals] == ["vocabulary"]
        return
    with torch.no_grad():
        tokens = {"input_ids": torch.arange(3, rows).view(1, -1)[:, -20:]}
        expected = adapted.double().eval()(**tokens).logits
    folder = merge_folders(base, tmp_path / "adapter", tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    assert merged.config.vocab_size == rows
    with torch.no_grad():
        assert distance(merged(**tokens).logits, expected) < 2e-6


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 130]},
    ],
)
def test_rows_of_a_resized_vocabulary_that_nobody_saved(settings: dict[str, Any], tmp_path: Path) -> None:
    """The remedy is to save them, and not another base."""
    base = save_base("llama", tmp_path / "base", dtype=torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(132, mean_resizing=False)
    adapted = randomised(get_peft_model(model, LoraConfig(r=4, **settings)))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    save_file({"input_embeddings": torch.randn(4, 64)}, tmp_path / "adapter" / "new_embeddings.safetensors")
    (refusal,) = plan_folders(base, tmp_path / "adapter").refusals
    assert refusal.code == "rows-not-saved"
    assert "save_embedding_layers" in refusal.remedy
    assert "new_embeddings.safetensors" in refusal.reason


@pytest.mark.parametrize(
    ("name", "auto", "task"),
    [
        ("llama", "AutoModelForSequenceClassification", "SEQ_CLS"),
        ("qwen2", "AutoModelForTokenClassification", "TOKEN_CLS"),
        ("gpt2", "AutoModelForSequenceClassification", "SEQ_CLS"),
        ("bert", "AutoModelForTokenClassification", "TOKEN_CLS"),
        ("roberta", "AutoModelForSequenceClassification", "SEQ_CLS"),
        ("llama", "AutoModelForSequenceClassification", None),
    ],
)
def test_a_new_head_on_a_language_model(name: str, auto: str, task: str | None, tmp_path: Path) -> None:
    """The output is a checkpoint of the adapter's class: it loads without a missing or an unexpected tensor."""
    base = save_base(name, tmp_path / "base", dtype=torch.float32)
    chosen = getattr(transformers, auto)
    model = chosen.from_pretrained(base, num_labels=5)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = 0  # a batch of sentences needs one
    heads = ["score", "classifier"]
    settings = {"target_modules": ["q_proj", "v_proj", "c_attn", "query", "value"]}
    settings |= {} if task else {"modules_to_save": heads}
    adapted = randomised(get_peft_model(model, LoraConfig(r=4, task_type=task, **settings)))
    adapted.save_pretrained(tmp_path / "adapter")
    inputs = model_inputs(name)
    with torch.no_grad():
        expected = adapted.double().eval()(**inputs).logits
    folder = merge_folders(base, tmp_path / "adapter", tmp_path / "merged")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert len(config["id2label"]) == 5
    merged, loading = chosen.from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    merged.config.pad_token_id = model.config.pad_token_id
    with torch.no_grad():
        assert distance(merged.eval()(**inputs).logits, expected) < 2e-6


def test_what_the_heads_of_base_and_classifier_have_in_common_stays(tmp_path: Path) -> None:
    """ModernBERT's masked-language model and its classifier both have `head.dense` and `head.norm`."""
    config = transformers.AutoConfig.for_model("modernbert", **TEXT, pad_token_id=0, num_labels=3)
    transformers.ModernBertForMaskedLM(config).save_pretrained(tmp_path / "base")
    chosen = transformers.ModernBertForSequenceClassification
    model = chosen.from_pretrained(tmp_path / "base", num_labels=3)
    adapted = randomised(get_peft_model(model, LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["Wqkv"])))
    adapted.save_pretrained(tmp_path / "adapter")
    folder = merge_folders(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged, loading = chosen.from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    inputs = model_inputs("bert")
    with torch.no_grad():
        assert distance(merged.eval()(**inputs).logits, adapted.double().eval()(**inputs).logits) < 2e-6


def test_a_classifier_with_more_labels_than_the_bases(tmp_path: Path) -> None:
    base = save_base("llama-classifier", tmp_path / "base", dtype=torch.float32)
    auto = getattr(transformers, ALL_ARCHITECTURES["llama-classifier"].auto)
    model = auto.from_pretrained(base, num_labels=7, ignore_mismatched_sizes=True)
    adapted = randomised(get_peft_model(model, LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj"])))
    adapted.save_pretrained(tmp_path / "adapter")
    merged = auto.from_pretrained(merge_folders(base, tmp_path / "adapter", tmp_path / "merged"), dtype=torch.float64)
    assert merged.config.num_labels == 7
    inputs = model_inputs("llama-classifier")
    with torch.no_grad():
        assert distance(merged.eval()(**inputs).logits, adapted.double().eval()(**inputs).logits) < 2e-6


def test_a_head_of_no_known_class_is_refused(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["score"]))
    adapted.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"auto_mapping": {"base_model_class": "NoSuchClass"}, "task_type": None}))
    assert [refusal.code for refusal in plan_folders(base, tmp_path / "adapter").refusals] == ["new-head"]


XLNET = {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128, "vocab_size": 128}


@pytest.mark.parametrize(
    ("model_type", "of_base", "task", "settings", "lost"),
    [
        ("deberta-v2", "AutoModelForMaskedLM", "SEQ_CLS", TEXT, "pooler.dense"),
        ("bert", "AutoModelForMaskedLM", "SEQ_CLS", TEXT, "bert.pooler.dense"),
        ("xlnet", "AutoModelForCausalLM", "SEQ_CLS", XLNET, "logits_proj"),
        ("llama", "AutoModelForCausalLM", None, TEXT, "score"),  # auto_mapping names the class
        ("llama", "AutoModelForCausalLM", "QUESTION_ANS", TEXT, "transformer"),  # its body is called `model`
        ("bert", "AutoModel", "SEQ_CLS", TEXT, None),  # this base has the pooler
        ("deberta-v2", "AutoModelForMaskedLM", "TOKEN_CLS", TEXT, None),  # whose class has none
        ("llama", "AutoModelForCausalLM", "CAUSAL_LM", TEXT, None),
    ],
)
def test_modules_that_nobody_saved(
    model_type: str, of_base: str, task: str | None, settings: dict[str, Any], lost: str | None, tmp_path: Path
) -> None:
    """Random while the adapter was trained, and lost: refused by the plan and, on its own account, by the verifier."""
    config = transformers.AutoConfig.for_model(model_type, **settings)
    getattr(transformers, of_base).from_config(config).save_pretrained(tmp_path / "base")
    kinds = {"TOKEN_CLS": "AutoModelForTokenClassification", "CAUSAL_LM": "AutoModelForCausalLM"}
    kinds["QUESTION_ANS"] = "AutoModelForQuestionAnswering"
    chosen = getattr(transformers, kinds.get(str(task), "AutoModelForSequenceClassification"))
    model = chosen.from_pretrained(tmp_path / "base")
    names = ["query_proj", "query", "q_proj", "layer_1"]
    randomised(get_peft_model(model, LoraConfig(task_type=task, target_modules=names))).save_pretrained(
        tmp_path / "adapter"
    )
    plan = plan_folders(tmp_path / "base", tmp_path / "adapter")
    problems = (
        Case(claim(tmp_path / "base", tmp_path / "adapter", tmp_path / "base"), silent).once(adapter_claims).problems
    )
    if lost is None:
        assert not plan.refusals
        assert not problems
    else:
        assert [one.code for one in plan.refusals] == ["unsaved-modules"]
        assert lost in plan.refusals[0].reason
        assert any(lost in one and one.endswith("random when the adapter was trained, and lost.") for one in problems)


@pytest.mark.parametrize("name", ["DebertaV2ForSequenceClassification", "RobertaForSequenceClassification"])
def test_the_table_of_heads_is_the_pinned_transformers(name: str) -> None:
    """Two classes, built again by what is installed; `python -m tools.make_heads` writes the whole."""
    table = json.loads(TARGET.read_text())
    assert table["transformers"] == pinned("transformers")
    assert table["rows"][table["classes"][name]] == rows([name])[name]
