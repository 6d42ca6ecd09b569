"""What this verifier cannot account for is never waved through."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bot.errors import Refused
from tests.faults.conftest import named, prove
from tests.faults.models import Built

SETTINGS = {
    "another method": {"peft_type": "LOHA"},
    "DoRA": {"use_dora": True},
    "a setting from the future": {"use_quantum": True},
    "an initialisation that changes the base": {"init_lora_weights": "pissa_niter_4"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "another rank than the tensors'": {"r": 8},
    "a pattern that is no pattern": {"rank_pattern": {"q_proj(": 4}},
    "patterns that are a list": {"alpha_pattern": ["q_proj"]},
    "a rank of zero": {"r": 0},
    "an alpha in words": {"lora_alpha": "sixteen"},
}


@pytest.fixture
def adapter(llama: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama.adapter, tmp_path / "adapter"))


def configure(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add(adapter: Path, key: str, value: torch.Tensor) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({**load_file(path), key: value}, path)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_changes_the_arithmetic_fails(llama: Built, copy: Path, adapter: Path, name: str):
    configure(adapter, **SETTINGS[name])
    report = prove(llama, copy, adapter=adapter)
    assert named(report, "method").status == "fail"
    assert named(report, "touched").status == "skip"
    assert report.verdict == "not-verified"


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.self_attn.k_proj.bias",
        "base_model.model.model.embed_tokens.lora_embedding_A",
    ],
)
def test_an_adapter_tensor_without_a_place_fails_by_its_name(llama: Built, copy: Path, adapter: Path, key: str):
    add(adapter, key, torch.zeros(4, 32))
    found = named(prove(llama, copy, adapter=adapter), "method")
    assert found.status == "fail"
    assert key.removeprefix("base_model.model.").split(".lora_")[0] in found.why


def test_a_copy_of_the_bases_embedding_is_harmless_if_it_is_one(llama: Built, copy: Path, adapter: Path):
    own = next(tensors for path in sorted(llama.base.glob("*.safetensors"))
               if "model.embed_tokens.weight" in (tensors := load_file(path)))["model.embed_tokens.weight"]  # fmt: skip
    add(adapter, "base_model.model.model.embed_tokens.weight", own.float())
    assert named(prove(llama, copy, adapter=adapter), "method").status == "pass"
    assert prove(llama, copy, adapter=adapter).verdict == "verified"
    add(adapter, "base_model.model.model.embed_tokens.weight", own.float() + 1)
    report = prove(llama, copy, adapter=adapter)
    assert named(report, "touched").status == named(report, "coverage").status == "fail"
    assert "model.embed_tokens.weight is still the base's" in named(report, "coverage").why


def test_an_adapter_without_safetensors_is_refused(llama: Built, copy: Path, adapter: Path):
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(Refused, match=r"adapter_model\.safetensors"):
        prove(llama, copy, adapter=adapter)


def test_a_wholly_zero_delta_proves_nothing(llama: Built, adapter: Path, tmp_path: Path):
    path = adapter / "adapter_model.safetensors"
    save_file({key: value * 0 if "lora_B" in key else value for key, value in load_file(path).items()}, path)
    folder = Path(shutil.copytree(llama.base, tmp_path / "same"))
    report = prove(llama, folder, adapter=adapter)
    assert report.verdict == "not-verified"
    assert [found.id for found in report.findings if found.status in ("fail", "skip")] == ["effect"]
    assert "every delta is exactly zero" in named(report, "effect").why
    assert named(report, "retention").measured == "no delta"
    assert "8 too small to show" in named(report, "coverage").why
