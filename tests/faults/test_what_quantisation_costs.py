"""The ways to use a quantised base or result, measured side by side; and the order in which they stand for a trained model."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bot.card import evidence
from bot.demo.model import MODULES, _answer, _chats, make_base
from bot.demo.training import Course, train
from bot.records import Json, Report
from bot.verify import table
from tests.faults import models, quantised
from tests.faults.conftest import named, prove
from tests.faults.quantised import Quantised

pytestmark = pytest.mark.slow


def rows(report: Report) -> dict[str, Json]:
    return {row["id"]: row for row in report.document.comparison}


# --- a tiny model, not trained ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    return quantised.build("nf4", tmp_path_factory.mktemp("costs"))


@pytest.fixture(scope="module")
def as_nf4(one: Quantised, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nf4") / "merged"
    return quantised.store(one, quantised.exact_merge(one, one.original), "nf4", folder)


def measured(one: Quantised, folder: Path, name: str, **changes: Any) -> Report:
    given = {"base": one.original, "dtype": "auto", "quantize": name, "level": "full", **changes}
    return prove(one.as_built(), folder, **given)


def test_a_result_that_has_lost_the_tune_fails_and_names_the_better_way(one: Quantised, as_nf4: Path):
    report = measured(one, as_nf4, "nf4")
    found = named(report, "requantised")
    assert found.status == "fail", table(report)
    assert "Keep the adapter separate" in found.why
    assert "publish the merge in 16 bits" in found.why
    assert named(report, "loads").status == "pass", table(report)
    assert rows(report)["re-quantised"]["published"]
    assert rows(report)["re-quantised"]["kl_ratio"] > 1
    assert rows(report)["original-merged"]["kl_ratio"] < 0.05
    assert report.noise_floor is None


def test_it_passes_with_a_remark_where_that_was_forced(one: Quantised, as_nf4: Path):
    report = measured(one, as_nf4, "nf4", force=True)
    assert named(report, "requantised").status == "warn"
    assert report.verdict == "verified", table(report)


def test_a_result_that_keeps_the_tune_passes(one: Quantised, tmp_path: Path):
    folder = quantised.store(one, quantised.exact_merge(one, one.original), "int8", tmp_path / "merged")
    report = measured(one, folder, "int8")
    assert report.verdict == "verified", table(report)
    assert 0.01 < rows(report)["re-quantised"]["kl_ratio"] < 0.2
    assert rows(report)["re-quantised"]["bytes"] < rows(report)["original-merged"]["bytes"]


@pytest.mark.parametrize("name", ["fp8", "int8", "compressed"])
def test_every_kind_of_base_is_compared(tmp_path: Path, name: str):
    made = quantised.build(name, tmp_path)
    report = prove(made.as_built(), made.merged, dtype="auto", level="full", original=made.original)
    assert report.verdict == "verified", table(report)
    assert report.noise_floor is not None
    assert 0.2 < report.noise_floor["ratio"] < 0.8, "theory says 0.5"
    found = rows(report)
    assert found["as-trained"]["kl_ratio"] == 0
    assert found["dequantise-merged"]["kl_ratio"] < found["original-merged"]["kl_ratio"]
    assert ("not_run" in found["re-quantised"]) == (name != "int8")


def test_what_was_not_run_is_said(one: Quantised):
    report = prove(one.as_built(), one.merged, dtype="auto", level="full")
    assert "not at hand" in rows(report)["original-merged"]["not_run"]
    assert "original-merged: not run" in table(report)
    card = evidence.comparison(report.document)
    assert "| **merged into the dequantised base (this model)** |" in card
    assert "not run" in card


def test_plain_merges_are_not_compared(one: Quantised, tmp_path: Path):
    folder = quantised.merge(one, one.original, tmp_path / "merged")
    report = prove(one.as_built(), folder, base=one.original, dtype="auto", level="full")
    assert "comparison" not in report.document.json
    assert evidence.comparison(report.document) == ""


# --- a trained one ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    """A model that has learnt a little English, its nf4 form, and an adapter trained over that (QLoRA)."""
    root = tmp_path_factory.mktemp("trained")
    made = Quantised(**{name: root / name for name in ("base", "dense", "original", "adapter", "merged")})
    make_base(made.original, steps=60)
    _quantise(made)
    _tune(made)
    return made


def _quantise(made: Quantised) -> None:
    for folder in (made.base, made.dense):
        shutil.copytree(made.original, folder)
    where: dict[str, str] = {}
    for path in sorted(made.original.glob("*.safetensors")):
        stored: dict[str, torch.Tensor] = {}
        meant: dict[str, torch.Tensor] = {}
        for key, weight in load_file(path).items():
            if ".layers." in key and weight.dim() == 2:
                parts, meant[key] = quantised.nf4(key, weight)
                stored |= parts
            else:
                stored[key] = meant[key] = weight
        for folder, tensors in ((made.base, stored), (made.dense, meant)):
            save_file(tensors, folder / path.name, metadata={"format": "pt"})
        where |= dict.fromkeys(stored, path.name)
    (made.base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config = json.loads((made.base / "config.json").read_text())
    config["quantization_config"] = {**quantised.NF4, "llm_int8_skip_modules": None}
    (made.base / "config.json").write_text(json.dumps(config))


def _tune(made: Quantised) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(made.dense, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    chats = _chats(AutoTokenizer.from_pretrained(made.dense), 1)
    train(tuned, chats, Course(what="adapter", steps=15, muon_rate=0.002, progress=None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.save_pretrained(made.adapter, save_embedding_layers=False)


def test_the_known_order_of_a_qlora_adapter(trained: Quantised, tmp_path: Path):
    """Merged into what it was trained on, the tune is kept; into the original, part of it is not; quantised again, most of
    it is lost."""
    text = tmp_path / "eval.txt"
    text.write_text("\n".join(_answer(module, 1) for module in MODULES))
    shutil.copytree(trained.original, trained.merged)
    model = AutoModelForCausalLM.from_pretrained(trained.dense, dtype=torch.float32)
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(model, trained.adapter).double()
    changes = {
        f"{name}.weight": layer.get_delta_weight("default").detach() for name, layer in models.layers(tuned).items()
    }
    for path in trained.merged.glob("*.safetensors"):
        held = load_file(trained.dense / path.name)
        made = {key: models.round_by_trial(weight.double() + changes.get(key, 0.0), torch.bfloat16)
                for key, weight in held.items()}  # fmt: skip
        save_file(made, path, metadata={"format": "pt"})
    built = trained.as_built()
    report = prove(built, trained.merged, dtype="auto", level="full", original=trained.original, eval_text=text)
    assert report.verdict == "verified", table(report)
    found = {id: row.get("kl_ratio") for id, row in rows(report).items()}
    assert found["dequantise-merged"] < 1e-3, table(report)
    assert 20 * found["dequantise-merged"] < found["original-merged"] < found["re-quantised"] / 2, table(report)
    assert found["re-quantised"] > 0.3, table(report)
    assert rows(report)["base"]["perplexity"] > rows(report)["as-trained"]["perplexity"]
