"""Somebody else's merge need not be exact: the arithmetic that explains it is named. A fault is still a fault."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from bot.verify import table
from tests.faults import damage, models
from tests.faults.conftest import Builder, named, prove, statuses
from tests.faults.models import Built


def float32_throughout(weight: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    noise = 1 + 4e-8 * torch.sign(torch.sin(1e9 * delta))  # what another order of summation does, in float32
    return (weight.float() + (delta * noise).float()).to(dtype)


def delta_rounded(weight: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return weight + delta.to(weight.dtype)


def product_in_storage(weight: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return weight + (delta.to(weight.dtype) / 1.5).to(weight.dtype) * 1.5


ARITHMETICS = {
    "float32 accumulation": ("gpt2-without-prefix", float32_throughout, "float32 accumulation, then one rounding"),
    "a rounded delta": ("llama-tied-sharded", delta_rounded, "delta rounded to the storage dtype, then added"),
    "a product in bfloat16": (
        "llama-tied-sharded", product_in_storage, "the product computed in the storage dtype, then added",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARITHMETICS)
def test_its_arithmetic_is_named(built: Builder, tmp_path: Path, name: str):
    recipe, add, expected = ARITHMETICS[name]
    one = built(recipe)
    models.merge(one, tmp_path / "merged", add=add)
    found = named(prove(one, tmp_path / "merged", ours=False), "touched")
    assert (found.status, found.allowed) == ("warn", expected), found
    assert named(prove(one, tmp_path / "merged", ours=True), "touched").status == "fail"


def test_pefts_own_merge_is_verified(llama: Built, tmp_path: Path):
    model = models.model_class(llama.recipe).from_pretrained(llama.base, dtype=torch.bfloat16)
    merged = models.PeftModel.from_pretrained(model, llama.adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged", max_shard_size="20KB")
    models.transformers.AutoTokenizer.from_pretrained(llama.base).save_pretrained(tmp_path / "merged")
    report = prove(llama, tmp_path / "merged", ours=False)
    assert report.verdict == "verified", table(report)
    assert named(report, "license").status == "warn"


@pytest.mark.parametrize(
    "plant", [damage.unmerged_module, damage.doubled_scaling, damage.transposed_delta, damage.flipped_bit_untouched]
)
def test_a_real_fault_is_still_a_fault(llama: Built, copy: Path, plant):
    plant(copy, llama)
    report = prove(llama, copy, ours=False)
    assert "fail" in {named(report, "touched").status, named(report, "untouched").status}, table(report)


def test_notes_of_the_saving_library_are_tolerated_and_named(llama: Built, copy: Path):
    damage.in_config(use_cache=False, transformers_version="4.40.0")(copy, llama)
    report = prove(llama, copy, ours=False, level="files")
    assert statuses(report, "warn", "fail") == {"config": "warn"}
    assert "use_cache" in " ".join((named(report, "config").why, *named(report, "config").worst))
    assert named(prove(llama, copy, level="files"), "config").status == "fail"


@pytest.mark.parametrize(
    ("file", "change", "status", "words"),
    [
        ("generation_config.json", {"eos_token_id": 7}, "fail", "eos_token_id is 7, and was 2."),
        ("generation_config.json", {"eos_token_id": [2, 7]}, "fail", "eos_token_id is 2, 7, and was 2."),
        ("generation_config.json", {"bos_token_id": None}, "fail", "bos_token_id is none, and was 1."),
        ("generation_config.json", {"pad_token_id": 0}, "warn", "pad_token_id is 0, and was none."),
        ("generation_config.json", {"eos_token_id": [2], "transformers_version": "4.1"}, "warn", "is not the base's."),
        ("tokenizer_config.json", {"eos_token": "<unk>"}, "fail", "eos_token is <unk>, and was <eos>."),
        ("tokenizer_config.json", {"pad_token": "<eos>"}, "warn", "pad_token is <eos>, and was none."),
    ],
)
def test_other_special_tokens_are_named(
    llama: Built, copy: Path, tmp_path: Path, file: str, change: dict[str, object], status: str, words: str
):
    base = Path(shutil.copytree(llama.base, tmp_path / "base"))
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    for folder in (base, copy):
        (folder / "generation_config.json").write_text(json.dumps(tokens))
    said = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(said | change))
    found = named(
        prove(llama, copy, ours=False, level="files", base=base), {"g": "generation-config", "t": "tokenizer"}[file[0]]
    )
    assert (found.status, words in " ".join((found.why, *found.worst))) == (status, True), found


SCALED = {
    "rounded once": lambda weight, delta, dtype: models.round_by_trial(weight.double() + 1.01 * delta, dtype),
    "all in bfloat16": lambda weight, delta, dtype: weight + (1.01 * delta).to(weight.dtype),
}


@pytest.mark.parametrize("name", SCALED)
def test_one_per_cent_too_much_of_the_delta_is_a_fault_with_its_figure(llama: Built, tmp_path: Path, name: str):
    """All of its elements lie within the error of an arithmetic; together they do not."""
    models.merge(llama, tmp_path / "merged", add=SCALED[name])
    found = named(prove(llama, tmp_path / "merged", ours=False), "touched")
    assert found.status == "fail", found
    assert found.why.startswith("Within the error of ")
    figure = re.search(r"over all \d+ tensors: its delta is (\d\.\d+) ± (\d\.\d+) times what it should be", found.why)
    assert figure is not None, found
    assert abs(float(figure[1]) - 1.01) < 0.003


def test_a_truncated_merge_is_a_fault(llama: Built, tmp_path: Path):
    def truncated(weight: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        exact = weight.double() + delta
        near = models.round_by_trial(exact, dtype)
        return torch.where(near.double().abs() > exact.abs(), (near.view(torch.int16) - 1).view(dtype), near)

    models.merge(llama, tmp_path / "merged", add=truncated)
    found = named(prove(llama, tmp_path / "merged", ours=False), "touched")
    assert (found.status, "rounded toward zero" in found.why) == ("fail", True), found


def test_a_tied_head_that_was_saved_along_is_only_remarked(llama: Built, copy: Path):
    damage.stale_head(copy, llama)
    damage.declare_size(copy)
    assert statuses(prove(llama, copy, ours=False), "warn", "fail") == {"keys": "warn"}


def test_another_dtype_is_the_authors_choice(built: Builder, tmp_path: Path):
    one = built("llama-to-float16")
    report = prove(one, one.merged, ours=False, dtype="auto")
    assert statuses(report, "warn", "fail") == {"config": "warn", "dtypes": "warn"}, table(report)


def test_a_config_in_the_older_spelling_of_rope_is_the_same_config(llama: Built, copy: Path):
    damage.in_config(rope_parameters=None, rope_theta=10000.0)(copy, llama)
    assert named(prove(llama, copy, ours=False, level="files"), "config").status == "pass"
    damage.in_config(rope_theta=500000.0)(copy, llama)
    assert named(prove(llama, copy, ours=False, level="files"), "config").status == "fail"


# --- what libraries write anew, and what trainers set --------------------------------------------------------------------------


def edit(path: Path, **fields: object) -> None:
    """Fields of a JSON file; None takes one away."""
    said = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))


@pytest.fixture
def base(llama: Built, tmp_path: Path) -> Path:
    """The base of `copy`, free to be changed."""
    return Path(shutil.copytree(llama.base, tmp_path / "base"))


def resaved(llama: Built, base: Path, copy: Path) -> dict[str, str]:
    """{check: status} of what is not simply right about a foreign merge, at the level files."""
    return statuses(prove(llama, copy, ours=False, level="files", base=base), "warn", "fail")


def test_a_padding_that_a_trainer_set_is_a_remark(llama: Built, base: Path, copy: Path):
    for folder in (base, copy):
        edit(folder / "generation_config.json", eos_token_id=159)
    said = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**said, "pad_token_id": None}))
    edit(copy / "config.json", pad_token_id=159)
    edit(copy / "tokenizer_config.json", pad_token="<eos>", padding_side="left")
    edit(copy / "generation_config.json", pad_token_id=159)
    expected = dict.fromkeys(("config", "tokenizer", "generation-config", "special-tokens"), "warn")
    assert resaved(llama, base, copy) == expected
    edit(copy / "tokenizer_config.json", eos_token="<unk>")
    assert resaved(llama, base, copy) == expected | {"tokenizer": "fail", "special-tokens": "fail"}


def test_special_tokens_that_the_base_leaves_to_its_class_may_be_written_down(llama: Built, base: Path, copy: Path):
    """GPT-2's and BERT's tokenizer_config.json name none."""
    (base / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    assert resaved(llama, base, copy) == {"tokenizer": "warn", "special-tokens": "warn"}
    (base / "tokenizer_config.json").write_text('{"eos_token": null, "unk_token": "<unk>"}')
    assert resaved(llama, base, copy) == {"tokenizer": "fail", "special-tokens": "fail"}


def test_special_tokens_of_an_older_file_are_the_bases_too(llama: Built, base: Path, copy: Path):
    (base / "tokenizer_config.json").write_text("{}")
    (base / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<eos>"}, "unk_token": "<unk>"}))
    assert resaved(llama, base, copy) == {"tokenizer": "warn"}
    (base / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<end>"}, "unk_token": "<unk>"}))
    assert resaved(llama, base, copy) == {"tokenizer": "fail", "special-tokens": "fail"}


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 10000.0},
         {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}, "pass"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
         {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}, "warn"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
         {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}, "fail"),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False},
         {"model_type": "qwen2", "sliding_window": "null", "use_sliding_window": False}, "warn"),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0},
         {"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": True, "max_window_layers": 0}, "fail"),
        ({"model_type": "of tomorrow", "sliding_window": 64}, {"model_type": "of tomorrow", "sliding_window": 32}, "fail"),
    ],
)  # fmt: skip
def test_a_config_that_is_the_same_to_transformers_is_no_fault(
    llama: Built, base: Path, copy: Path, before: dict[str, object], after: dict[str, object], status: str
):
    edit(base / "config.json", **before)
    edit(copy / "config.json", **after)
    (copy / "config.json").write_text((copy / "config.json").read_text().replace('"null"', "null"))
    found = named(prove(llama, copy, ours=False, level="files", base=base), "config")
    assert found.status == status, found
    if before.get("model_type") == "qwen2" and status == "warn":
        assert "sliding_window: 64 → None" in " ".join((found.why, *found.worst))
