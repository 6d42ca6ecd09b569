"""What can be trained of an embedding and of the head, tied and not: each merge answers as PEFT's unmerged model does,
is verified by the verifier's own reading, and what PEFT itself cannot run is refused."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig

from bot.events import silent
from bot.verify import table, verify
from tests.factory import TEXT
from tests.faults.conftest import claim
from tests.oracle.unmerged import distance
from tests.steps import merge_folders, plan_folders

ROWS = [5, 9, 11]
WAYS = ("none", "lora", "saved", "tokens")
TOKENS = torch.tensor([[3, 5, 9, 11, 40, 77, 5, 20], [9, 100, 11, 64, 8, 30, 31, 127]])
# PEFT refuses to train these, and its forward raises for the next; a LoRA over trained tokens is one tensor changed twice.
UNTRAINABLE = {("tied", True, "lora", "tokens"), ("tied", True, "saved", "lora"), ("tied", True, "tokens", "lora")}
REFUSED = {
    ("tied", False, "tokens", "lora"),
    ("tied", False, "tokens", "saved"),
    ("tied", True, "saved", "tokens"),
    ("tied", True, "tokens", "saved"),
}
ALL = [(kind, tying, embedding, head)
       for kind, tying in (("tied", False), ("tied", True), ("apart", False), ("apart", True))
       for embedding, head in itertools.product(WAYS, WAYS)
       if (embedding, head) != ("none", "none") and not (kind == "apart" and tying and embedding != head)]  # fmt: skip
CASES = [one for one in ALL if one not in UNTRAINABLE]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The two bases, built once."""

    @cache
    def save(kind: str) -> Path:
        torch.manual_seed(0)
        config = AutoConfig.for_model("qwen3", **TEXT, tie_word_embeddings=kind == "tied")
        folder = tmp_path_factory.mktemp(kind)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return folder

    return save


def settings(tying: bool, embedding: str, head: str) -> dict[str, Any]:
    """LoraConfig's arguments."""
    both = {"embed_tokens": embedding, "lm_head": head}
    given = {way: [name for name, one in both.items() if one == way] for way in WAYS}
    found: dict[str, Any] = {"target_modules": ["q_proj", *given["lora"]], "ensure_weight_tying": tying}
    found |= {"modules_to_save": given["saved"]} if given["saved"] else {}
    return found | ({"trainable_token_indices": dict.fromkeys(given["tokens"], ROWS)} if given["tokens"] else {})


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.double().eval()(input_ids=TOKENS).logits


def train(base: Path, folder: Path, **given: Any) -> Path:
    """An adapter whose every trained tensor has moved."""
    model = get_peft_model(load(base), LoraConfig(r=4, lora_alpha=8, **given))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "tying", "embedding", "head"), CASES)
def test_every_way_to_train_them(base: Any, kind: str, tying: bool, embedding: str, head: str, tmp_path: Path) -> None:
    adapter = train(base(kind), tmp_path / "adapter", **settings(tying, embedding, head))
    if (kind, tying, embedding, head) in REFUSED:
        assert [one.code for one in plan_folders(base(kind), adapter).refusals] == ["tokens-and-weight"]
        return
    folder = merge_folders(base(kind), adapter, tmp_path / "merged")
    expected = answers(PeftModel.from_pretrained(load(base(kind)), adapter))
    assert distance(answers(load(base(kind))), expected) > 1e-3
    assert distance(answers(load(folder)), expected) < 1e-6
    report = verify(claim(base(kind), adapter, folder), silent)
    assert report.verdict == "verified", table(report)


@pytest.mark.parametrize("how", ["lora", "saved"])
def test_half_of_what_is_tied_is_refused(base: Any, how: str, tmp_path: Path) -> None:
    """Of a config that ties both, saved by a PEFT that did not: whether the other followed cannot be told."""
    adapter = train(base("tied"), tmp_path / "adapter", **settings(False, "none", how))
    path = adapter / "adapter_config.json"
    path.write_text(path.read_text().replace('"ensure_weight_tying": false', '"ensure_weight_tying": true'))
    assert [one.code for one in plan_folders(base("tied"), adapter).refusals] == ["tied-by-half"]
