"""Somebody else's merge need not be exact: the arithmetic that explains it is named. A fault is still a fault."""

from __future__ import annotations

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
