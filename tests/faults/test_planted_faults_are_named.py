"""One fault each, planted in a correct merge; the check whose job it is says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from bot.verify import table
from tests.faults import damage
from tests.faults.conftest import Builder, named, prove
from tests.faults.models import Built

FAILS = {
    "a module left unmerged": (damage.unmerged_module, ("touched", "coverage")),
    "scaling twice too large": (damage.doubled_scaling, ("touched",)),
    "scaling α/√r for α/r": (damage.root_scaling, ("touched",)),
    "a square delta transposed": (damage.transposed_delta, ("touched",)),
    "two layers swapped": (damage.swapped_layers, ("touched",)),
    "A and B of another layer": (damage.delta_of_another_layer, ("touched",)),
    "merged twice": (damage.merged_twice, ("touched",)),
    "one flipped bit in a touched tensor": (damage.flipped_bit_touched, ("touched",)),
    "one flipped bit in an untouched tensor": (damage.flipped_bit_untouched, ("untouched", "coverage")),
    "the delta rounded before it is added": (damage.rounded_twice, ("touched",)),
    "a dropped tensor": (damage.dropped_tensor, ("keys",)),
    "an extra tensor": (damage.extra_tensor, ("keys",)),
    "a .base_layer key": (damage.base_layer_key, ("keys", "coverage")),
    "prefixed keys": (damage.prefixed_keys, ("keys",)),
    "a head that the base has not": (damage.stale_head, ("keys",)),
    "another shape": (damage.other_shape, ("shapes", "untouched")),
    "another dtype": (damage.other_dtype, ("dtypes",)),
    "NaN in a touched tensor": (damage.nan_in_touched, ("finite", "touched")),
    "infinity in an untouched tensor": (damage.infinity_in_untouched, ("finite", "untouched")),
    "a stale model.safetensors beside the shards": (damage.stale_single_file, ("strays",)),
    "a shard that the index does not name": (damage.unreferenced_shard, ("strays",)),
    "adapter files left behind": (damage.adapter_left_behind, ("strays",)),
    "a pickle": (damage.pickle_left, ("pickles",)),
    "a temporary file": (damage.temporary_left, ("leftovers",)),
    "a hidden folder": (damage.hidden_left, ("leftovers",)),
    "a link to nothing": (damage.dangling_link, ("leftovers",)),
    "an index that names the wrong file": (damage.index_names_wrong_file, ("index",)),
    "an index that forgets a key": (damage.index_forgets_key, ("index",)),
    "an index that leads out of the folder": (damage.index_leaves_the_folder, ("headers",)),
    "an index with a wrong total": (damage.wrong_total_size, ("index",)),
    "a truncated file": (damage.truncated_file, ("headers",)),
    "a missing shard": (damage.missing_shard, ("headers",)),
    "a drifted rope_theta": (damage.in_config(rope_parameters__rope_theta=5e5), ("config",)),
    "a drifted rms_norm_eps": (damage.in_config(rms_norm_eps=1e-5), ("config",)),
    "an architecture renamed": (damage.in_config(architectures=["MistralForCausalLM"]), ("config",)),
    "a quantization_config left": (damage.in_config(quantization_config={"quant_method": "bitsandbytes"}), ("config",)),
    "no config": (damage.no_config, ("config",)),
    "a changed tokenizer": (damage.changed_tokenizer, ("tokenizer",)),
    "a lost tokenizer file": (damage.without("tokenizer.json"), ("tokenizer",)),
    "a lost chat template": (damage.lost_template, ("chat-template",)),
    "a changed chat template": (damage.changed_template, ("chat-template",)),
}
WARNS = {
    "a lost LICENSE": (damage.without("LICENSE"), "license"),
    "a lost generation config": (damage.without("generation_config.json"), "generation-config"),
    "no format metadata": (damage.no_format, "format"),
    "a file that nobody knows": (damage.stranger, "strays"),
}


@pytest.mark.parametrize("fault", FAILS)
def test_it_is_caught(llama: Built, copy: Path, fault: str):
    plant, expected = FAILS[fault]
    plant(copy, llama)
    report = prove(llama, copy)
    assert report.verdict == "not-verified"
    assert {id: named(report, id).status for id in expected} == dict.fromkeys(expected, "fail"), table(report)


@pytest.mark.parametrize("fault", WARNS)
def test_it_is_remarked_and_does_not_stop_the_merge(llama: Built, copy: Path, fault: str):
    plant, expected = WARNS[fault]
    plant(copy, llama)
    report = prove(llama, copy)
    assert named(report, expected).status == "warn", table(report)
    assert report.verdict == "verified"


def test_a_merge_into_another_base_is_caught(llama: Built, tmp_path: Path):
    from tests.faults.models import build

    other = build(llama.recipe, tmp_path, seed=7)
    report = prove(llama, other.merged)
    assert named(report, "touched").status == named(report, "untouched").status == "fail"


def test_a_square_conv1d_merged_the_wrong_way_round_is_caught(built: Builder, tmp_path: Path):
    from safetensors.torch import load_file

    from tests.faults import models

    gpt2 = built("gpt2")
    folder = gpt2.fresh(tmp_path / "merged")
    key = "transformer.h.0.attn.c_proj.weight"
    base, delta = load_file(gpt2.base / "model.safetensors")[key], models.deltas(gpt2)[key]
    wrong = models.round_by_trial(base.double() + delta.T, base.dtype)
    damage.rewrite(folder / "model.safetensors", lambda tensors: tensors.update({key: wrong}))
    assert named(prove(gpt2, folder), "touched").status == "fail"


def test_drift_in_a_nested_config_is_named_by_its_path(built: Builder, tmp_path: Path):
    llava = built("llava")
    folder = llava.fresh(tmp_path / "merged")
    damage.in_config(text_config__rms_norm_eps=1e-5)(folder, llava)
    found = named(prove(llava, folder, level="files"), "config")
    assert found.status == "fail"
    assert "text_config.rms_norm_eps: 1e-06 → 1e-05" in found.why


def test_the_worst_tensor_is_named_with_the_share_of_the_delta_that_it_has(llama: Built, copy: Path):
    damage.unmerged_module(copy, llama)
    found = named(prove(llama, copy), "touched")
    assert any(line.startswith(damage.Q0) and " 0× the delta" in line for line in found.worst), found


def test_what_the_base_has_of_infinities_is_a_remark_and_a_nan_is_not(llama: Built, copy: Path, tmp_path: Path):
    """An attention mask that was saved, a row that nobody reads: no adapter touches it, and the merge is the base there."""
    base = Path(shutil.copytree(llama.base, tmp_path / "base"))
    for folder in (base, copy):
        value = damage.read(folder, damage.K0).clone()
        value[3, 4], value[3, 5] = torch.inf, -torch.inf
        damage.replace(folder, damage.K0, value)
    report = prove(llama, copy, base=base)
    found = named(report, "finite")
    assert (found.status, report.verdict) == ("warn", "verified"), table(report)
    assert f"{damage.K0} has 2 values that are infinite, as the base has." in found.why
    for row, folders in ((5, (copy,)), (2, (base, copy))):  # one of the merge's own; a NaN of the base's
        for folder in folders:
            damage.replace(
                folder, damage.K0, damage.read(folder, damage.K0).index_fill(0, torch.tensor([row]), torch.nan)
            )
        assert named(prove(llama, copy, base=base), "finite").status == "fail"
        damage.replace(copy, damage.K0, damage.read(base, damage.K0))
