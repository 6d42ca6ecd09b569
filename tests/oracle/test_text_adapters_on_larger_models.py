"""An adapter that was trained on the language model alone (`…ForCausalLM` names), on the checkpoint of the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from bot.checks.behaviour.adapter_for_peft import adapter_for_peft
from bot.checks.behaviour.load_models import readable_adapter
from bot.events import silent
from bot.report_document import InputPins, MergeFacts
from bot.verify import Subject, verify
from tests.factory import MORE_ARCHITECTURES, TEXT
from tests.faults.held import job_of
from tests.steps import merge_folders

VOXTRAL = {
    "text_config": {"model_type": "llama", **TEXT}, "audio_token_id": 120,
    "audio_config": {"model_type": "voxtral_encoder", "hidden_size": 64, "intermediate_size": 128,
                     "num_hidden_layers": 3, "num_attention_heads": 4, "num_mel_bins": 16, "max_source_positions": 32},
}  # fmt: skip
# name → (model type, auto class, config); their towers have layers with the language model's names.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    name: (MORE_ARCHITECTURES[name].model_type, MORE_ARCHITECTURES[name].auto, MORE_ARCHITECTURES[name].config)
    for name in ("gemma3-vlm", "idefics3", "mllama", "llava")
} | {"voxtral": ("voxtral", "AutoModelForSeq2SeqLM", VOXTRAL)}
FEW = ("q_proj", "v_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def save(name: str, folder: Path) -> Any:
    model_type, auto, config = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(AutoConfig.for_model(model_type, **config)).float().eval()
    model.save_pretrained(folder)
    return model


def write(folder: Path, model: Any, targets: tuple[str, ...], front: str) -> dict[str, torch.Tensor]:
    """A LoRA over the first layer's targets, named as the language model alone names them; deltas by full parameter."""
    torch.manual_seed(3)
    decoder = model.get_decoder()
    path = next(name for name, module in model.named_modules() if module is decoder)
    tensors, deltas = {}, {}
    for name, module in decoder.named_modules():
        if name.startswith("layers.0.") and name.endswith(targets) and isinstance(module, torch.nn.Linear):
            a, b = torch.randn(4, module.in_features), torch.randn(module.out_features, 4) * 0.05
            tensors |= {f"base_model.model.{front}{name}.lora_A.weight": a}
            tensors |= {f"base_model.model.{front}{name}.lora_B.weight": b}
            deltas[f"{path}.{name}.weight"] = 2 * (b.double() @ a.double())
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": list(targets),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return deltas


@pytest.mark.parametrize("name", MODELS)
def test_the_language_models_names_win_and_its_towers_stay(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path / "base")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for number, (targets, front) in enumerate([(FEW, "model."), (FEW, ""), (ALL, "model.")]):
        adapter, out = tmp_path / f"adapter{number}", tmp_path / f"merged{number}"
        deltas = write(adapter, model, targets, front)
        merged = type(model).from_pretrained(merge_folders(tmp_path / "base", adapter, out), dtype=torch.float32)
        after = merged.state_dict()
        assert {key for key in before if not torch.equal(before[key], after[key])} == deltas.keys()
        for key, delta in deltas.items():
            assert float((after[key].double() - before[key].double() - delta).abs().max()) < 1e-5, key
    inputs = {"base": {"repo": "o/b", "sha": "b" * 40}, "adapter": {"repo": "o/a", "sha": "a" * 40}, "recipe": "1"}
    subject = Subject(
        folder=tmp_path / "merged0", base=tmp_path / "base", adapter=tmp_path / "adapter0", inputs=InputPins.of(inputs), recorded=None,
        merge=MergeFacts.of({}), dtype="auto", ours=True, level="weights", not_run=(), trust_remote_code=False,
    )  # fmt: skip
    report = verify(subject, silent)
    assert [one.why for one in report.findings if one.status == "fail"] == []


def test_the_unmerged_model_gets_the_text_adapter_under_the_whole_models_names(tmp_path: Path) -> None:
    model = save("gemma3-vlm", tmp_path / "base")
    write(tmp_path / "adapter", model, FEW, "model.")
    (tmp_path / "work").mkdir()
    found = readable_adapter(model, job_of(tmp_path / "base", tmp_path / "adapter", tmp_path, work=tmp_path / "work"))
    modules = dict(model.named_modules())
    keys = load_file(found / "adapter_model.safetensors")
    assert {key.removeprefix("base_model.model.").split(".lora_")[0] for key in keys} <= modules.keys()
    assert all("language_model" in key for key in keys)
    targets = json.loads((found / "adapter_config.json").read_text())["target_modules"]
    assert targets
    assert set(targets) <= modules.keys()
    assert adapter_for_peft(found, tmp_path / "work", modules, lambda module: module) == found
