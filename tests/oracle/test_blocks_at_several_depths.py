"""Blocks that a model stores once and calls at several depths: PEFT trains a change for each, and the merge writes each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bot.checkpoint.depths import depths_of, unstored_names
from bot.events import silent
from bot.records import Options, Stored
from bot.verify import verify
from tests.faults.conftest import claim
from tests.faults.held import found, hold, job_of
from tests.oracle.one_architecture import adapted, answers, load, proven
from tests.oracle.test_weights_of_several_names import base_of
from tests.steps import merge_folders, plan_folders
from tools.small_models import class_of, config_of

BLOCK = r".*(self_attn|feed_forward)\.\w+_proj"
INPUTS = [{"input_ids": torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(4))}]
Tensors = dict[str, torch.Tensor]


def far(one: torch.Tensor | None, other: torch.Tensor | None) -> float:
    assert one is not None
    assert other is not None
    return float((one - other).norm() / other.norm())


def tensors_of(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def depths(model_type: str) -> tuple[int, int]:
    """Two layers of the small model that have one block."""
    return (2, 5) if model_type == "zamba" else (1, 5)


@pytest.mark.parametrize("model_type", ["zamba", "zamba2"])
def test_each_depth_gets_what_peft_trained_for_it(model_type: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    chosen = base_of(model_type, base)
    tuned = adapted(load(chosen, base), tmp_path / "adapter", target_modules=BLOCK)
    plan = plan_folders(base, tmp_path / "adapter")
    merged = merge_folders(base, tmp_path / "adapter", tmp_path / "merged")
    expected = answers(tuned, INPUTS)
    with tuned.disable_adapter():
        plain = answers(tuned, INPUTS)
    assert far(plain, expected) > 1e-3, "the adapter does nothing, so this test could not fail"
    assert far(answers(load(chosen, merged), INPUTS), expected) < 1e-5
    assert not proven(tmp_path)
    # The weights that nothing changes stay one, and config.json ties them still.
    before, after = tensors_of(base), tensors_of(merged)
    new = after.keys() - before.keys()
    assert new
    assert all(".layers.5.shared_transf" in key and key.endswith("_proj.weight") for key in new)
    assert json.loads((merged / "config.json").read_text()) == json.loads((base / "config.json").read_text())
    size = sum(after[key].numel() * 4 for key in new)
    (note,) = [note for note in plan.notes if "once for each depth" in note]
    assert f"{len(new)} tensors and {size / 1000:.1f} kB more" in note
    # A base that has them at each depth already gets nothing new, and answers the same.
    first, other = depths(model_type)
    save_file(before | {key: before[key.replace(f".{other}.", f".{first}.")].clone() for key in new},
              base / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    again = merge_folders(base, tmp_path / "adapter", tmp_path / "again")
    assert all(torch.equal(tensor, after[key]) for key, tensor in tensors_of(again).items())


LORAS: dict[str, dict[str, Any]] = {
    "the first depth alone": {"target_modules": ["q_proj", "down_proj"], "layers_pattern": "layers"},
    "another depth alone": {"target_modules": ["q_proj"], "layers_pattern": "layers", "layers_to_transform": [5]},
    "DoRA": {"target_modules": BLOCK, "use_dora": True},
    "a module saved whole": {"target_modules": ["k_proj"], "modules_to_save": ["o_proj"]},
    "the embedding too, which unties all": {"target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.mark.parametrize(("case", "model_type"), [*zip(LORAS, ("zamba", "zamba2") * 3, strict=False)])
def test_whatever_changes_at_whichever_depth(case: str, model_type: str, tmp_path: Path) -> None:
    """A depth that nobody changes keeps the base's values, under its own name where the others leave it."""
    base, (first, _) = tmp_path / "base", depths(model_type)
    chosen = base_of(model_type, base)
    narrow = {"layers_to_transform": [first]} if case == "the first depth alone" else {}
    tuned = adapted(load(chosen, base), tmp_path / "adapter", **LORAS[case], **narrow)
    for name, weight in tuned.named_parameters():
        if "modules_to_save" in name:
            weight.data += 0.05 * torch.randn_like(weight)
    tuned.save_pretrained(str(tmp_path / "adapter"))
    merged = merge_folders(base, tmp_path / "adapter", tmp_path / "merged")
    assert far(answers(load(chosen, merged), INPUTS), answers(tuned, INPUTS)) < 1e-5
    assert not proven(tmp_path)
    ties = json.loads((merged / "config.json").read_text())["tie_word_embeddings"]
    assert ties is ("unties" not in case)


def leave_out(tensors: Tensors, first: str, other: str) -> None:
    del tensors[other]


def give_the_firsts(tensors: Tensors, first: str, other: str) -> None:
    tensors[other] = tensors[first].clone()


def forget(tensors: Tensors, first: str, other: str) -> None:
    """As the base has it."""
    tensors[other] = tensors_of(BASE[0])[first].clone()


BASE: list[Path] = []
FAULTS: dict[str, tuple[Callable[[Tensors, str, str], None], str]] = {
    "left out": (leave_out, "keys"),
    "the first depth's": (give_the_firsts, "touched"),
    "forgotten": (forget, "touched"),
}


def test_a_wrong_depth_is_named_and_seen_by_those_who_run_it(tmp_path: Path) -> None:
    base = tmp_path / "base"
    BASE[:] = [base]
    chosen = base_of("zamba2", base)
    adapted(load(chosen, base), tmp_path / "adapter", target_modules=BLOCK)
    merged = merge_folders(base, tmp_path / "adapter", tmp_path / "merged")
    right = tensors_of(merged)
    job = job_of(base, tmp_path / "adapter", merged, storage="float32", work=tmp_path / "work")
    job.work.mkdir()
    assert found(hold(job)).status == "pass"
    key = "model.layers.{}.shared_transformer.self_attn.q_proj.weight"
    for name, (damage, check) in FAULTS.items():
        tensors = dict(right)
        damage(tensors, key.format(1), key.format(5))
        save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
        report = verify(claim(base, tmp_path / "adapter", merged), silent)
        failed = {finding.id: finding for finding in report.findings if finding.status == "fail"}
        assert check in failed, name
        assert any(key.format(5) in row for row in (*failed[check].worst, failed[check].why)), name
        assert found(hold(job)).status == "fail", name


def test_a_block_with_the_change_of_one_depth_for_all_is_not_the_unmerged_model(tmp_path: Path) -> None:
    """What a merge into the one stored tensor would be: the verifier misses the tensors of their own."""
    base = tmp_path / "base"
    chosen = base_of("zamba", base)
    adapted(load(chosen, base), tmp_path / "adapter", target_modules=["q_proj"], layers_to_transform=[2],
            layers_pattern="layers")  # fmt: skip
    merged = merge_folders(base, tmp_path / "adapter", tmp_path / "merged")
    kept = {key: tensor for key, tensor in tensors_of(merged).items() if key in tensors_of(base)}
    assert len(kept) == len(tensors_of(merged)) - 1
    save_file(kept, merged / "model.safetensors", metadata={"format": "pt"})
    assert "keys fail: model.layers.5.shared_transf.self_attn.q_proj.weight is missing" in proven(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("zamba", {}),
        ("zamba", {"num_hidden_layers": 20, "attn_layer_period": 3, "attn_layer_offset": 1}),
        ("zamba", {"num_hidden_layers": 7, "layers_block_type": ["mamba", "hybrid"] * 3 + ["hybrid"]}),
        ("zamba2", {}),
        ("zamba2", {"num_mem_blocks": 2}),
        ("zamba2", {"num_mem_blocks": 4}),
        ("zamba2", {"num_hidden_layers": 9, "num_mem_blocks": 3, "layers_block_type": ["hybrid", "mamba"] * 4 + ["hybrid"]}),
        ("zamba2", {"num_mem_blocks": 2, "tie_word_embeddings": False}),
    ],
)  # fmt: skip
def test_the_depths_are_those_that_transformers_ties(model_type: str, settings: dict[str, Any]) -> None:
    """Also where config.json says nothing of its layers: the defaults are transformers' own."""
    small = config_of(model_type).to_dict()
    kept = {name: value for name, value in small.items() if "layer" not in name and name != "num_mem_blocks"}
    config = type(config_of(model_type))(**(kept | settings))
    with torch.device("meta"):
        model = getattr(transformers, str(class_of(model_type)))(config)
    tied = {target: source for target, source in model.all_tied_weights_keys.items() if "shared_transf" in target}
    stated = {"model_type": model_type, "architectures": [class_of(model_type)], **settings}
    stored = {
        key: Stored(key=key, file="model.safetensors", dtype="BF16", shape=(), start=0, stop=0)
        for key in model.state_dict()
        if key not in tied
    }
    derived = {target: source for source, targets in unstored_names(stored, stated).items() for target in targets}
    assert derived == tied
    assert bool(depths_of(stated))
    assert bool(derived) == (settings.get("tie_word_embeddings", True))


def test_depths_that_config_does_not_name_are_no_guess() -> None:
    for strange in ({"model_type": "zamba2", "num_mem_blocks": "two"}, {"model_type": "zamba", "attn_layer_period": 0},
                    {"model_type": "zamba2", "num_mem_blocks": 0}, {"model_type": "llama"}):  # fmt: skip
        assert depths_of(strange) == []


def test_what_stacks_the_layers_anew_stays_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    chosen = base_of("zamba", base)
    adapted(load(chosen, base), tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_replication": [[0, 6], [3, 6]]}))
    assert "shared-weight" in {refusal.code for refusal in plan_folders(base, tmp_path / "adapter").refusals}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_replication": None}))
    assert not plan_folders(base, tmp_path / "adapter").refusals
    (refusal,) = plan_folders(base, tmp_path / "adapter", Options(quantize="nf4")).refusals
    assert refusal.code == "quantize-blocks"


def test_a_block_in_the_bases_own_shards_and_in_another_dtype(tmp_path: Path) -> None:
    """The new tensors lie where the stored one lies, and the index names them."""
    base = tmp_path / "base"
    chosen = base_of("zamba2", base)
    load(chosen, base).bfloat16().save_pretrained(tmp_path / "cut", max_shard_size="100KB")
    adapted(load(chosen, base), tmp_path / "adapter", target_modules=BLOCK)
    merged = merge_folders(tmp_path / "cut", tmp_path / "adapter", tmp_path / "merged", Options(dtype="float32"))
    index = json.loads((merged / "model.safetensors.index.json").read_text())["weight_map"]
    key = "model.layers.{}.shared_transformer.self_attn.q_proj.weight"
    assert index[key.format(5)] == index[key.format(1)]
    assert len(set(index.values())) > 2
    shutil.rmtree(base)
    (tmp_path / "cut").rename(base)
    assert not proven(tmp_path)
