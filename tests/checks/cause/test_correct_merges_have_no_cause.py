"""A correct merge, ours or another tool's, however it was saved: no cause is named, or none but how it was rounded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bot.verify import table
from tests.checks.cause import planted
from tests.faults import damage
from tests.faults.conftest import prove
from tests.faults.models import Built

LLAMA = "llama-tied-sharded"
Plant = Callable[[Path, Built], Any]


def as_it_is(folder: Path, built: Built) -> None:
    """Ours."""


def in_one_file(folder: Path, built: Built) -> None:
    tensors = planted.tensors_of(folder)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file(dict(sorted(tensors.items(), reverse=True)), folder / "model.safetensors", metadata={"format": "pt"})


def in_other_shards(folder: Path, built: Built) -> None:
    tensors = planted.tensors_of(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    names = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(sorted(tensors))}
    for name in set(names.values()):
        own = {key: value for key, value in tensors.items() if names[key] == name}
        save_file(own, folder / name, metadata={"format": "pt"})
    total = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / damage.INDEX).write_text(json.dumps(index))


def with_the_tied_head(folder: Path, built: Built) -> None:
    head = planted.tensors_of(folder)["model.embed_tokens.weight"].clone()
    path = damage.shard_of(folder, damage.K0)
    damage.rewrite(path, lambda tensors: tensors.update({"lm_head.weight": head}))
    damage.change_index(folder, lambda index: index["weight_map"].update({"lm_head.weight": path.name}))
    damage.declare_size(folder)


def with_other_metadata(folder: Path, built: Built) -> None:
    for path in folder.glob("*.safetensors"):
        save_file(load_file(path), path, metadata={"format": "pt", "made_by": "somebody"})


def with_harmless_files(folder: Path, built: Built) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "notes.txt").write_text("merged on a Tuesday\n")
    (folder / "LICENSE").unlink()


def without_cache(folder: Path, built: Built) -> None:
    damage.in_config(use_cache=False, transformers_version="4.40.0")(folder, built)


CORRECT: dict[str, tuple[str, Plant, str | None]] = {
    **{f"{name}, ours": (name, as_it_is, None) for name in planted.RECIPES},
    **{f"{name}, ours": (name, as_it_is, None) for name in ("dora", "dora-conv1d", "experts-fused", "experts", "tokens-tied",
                                                           "embedding-tied", "head-tied", "classifier", "resized",
                                                           "biases", "replicated", "whole-embedding-and-norm")},
    "in one file, keys in another order": (LLAMA, in_one_file, None),
    "in other shards": (LLAMA, in_other_shards, None),
    "with the tied head": (LLAMA, with_the_tied_head, None),
    "other metadata": (LLAMA, with_other_metadata, None),
    "other files": (LLAMA, with_harmless_files, None),
    "a remark in config.json": (LLAMA, without_cache, None),
    "PEFT, bfloat16": (LLAMA, planted.by_peft("bfloat16"), "rounded"),
    "PEFT, bfloat16, Conv1D": ("gpt2", planted.by_peft("bfloat16"), "rounded"),
    "PEFT, float16": ("llama-float16-patterns", planted.by_peft("float16"), "rounded"),
    "PEFT, float32": ("wide-float32", planted.by_peft("float32"), "rounded"),
    "PEFT, float32, BERT": ("bert-encoder", planted.by_peft("float32"), "rounded"),
    "PEFT, float32 of a bfloat16 base": (LLAMA, planted.by_peft("float32"), "rounded"),
    "PEFT, experts": ("experts", planted.by_peft_of_kin("experts"), "rounded"),
    "PEFT, DoRA": ("dora", planted.by_peft_of_kin("dora"), "rounded"),
    "PEFT, tokens": ("tokens-tied", planted.by_peft_of_kin("tokens-tied"), "rounded"),
}  # fmt: skip


@pytest.mark.parametrize("name", CORRECT)
def test_no_cause_is_named_but_the_arithmetic(models_built: Callable[[str], Built], tmp_path: Path, name: str):
    on, plant, kind = CORRECT[name]
    built = models_built(on)
    folder = built.fresh(tmp_path / "merged")
    plant(folder, built)
    report = prove(built, folder, ours=name.endswith(", ours"), dtype=built.recipe.to if plant is as_it_is else "auto")
    cause = report.document.cause
    assert report.verdict == "verified", table(report)
    assert (cause and cause["kind"]) in {kind, None}, table(report)
    if cause is not None:
        assert cause["sentence"].startswith("Rounded differently ("), cause
        assert "also" not in cause, cause


def test_a_good_merge_imports_none_of_it():
    import subprocess
    import sys

    script = "import sys, bot.verify; print([name for name in sys.modules if name.startswith('bot.checks.cause')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_verdict_does_not_depend_on_the_cause(
    models_built: Callable[[str], Built], tmp_path: Path, monkeypatch: Any
):
    from bot.checks.cause import diagnosis

    built = models_built(LLAMA)
    folder = built.fresh(tmp_path / "merged")
    planted.unmerged()(folder, built)
    report = prove(built, folder, ours=False)
    monkeypatch.setattr(diagnosis, "find_cause", lambda case, findings: None)
    without = prove(built, folder, ours=False)
    assert report.verdict == without.verdict == "not-verified"
    assert [finding.status for finding in report.findings] == [finding.status for finding in without.findings]
    shutil.rmtree(folder)


def test_two_verifications_name_the_same_with_the_same_figures(models_built: Callable[[str], Built], tmp_path: Path):
    built = models_built(LLAMA)
    folder = built.fresh(tmp_path / "merged")
    planted.times(1.37)(folder, built)
    threads = torch.get_num_threads()
    try:
        causes = []
        for count in (1, 2):
            torch.set_num_threads(count)
            causes.append(prove(built, folder, ours=False).document.cause)
    finally:
        torch.set_num_threads(threads)
    assert causes[0] == causes[1]
    assert causes[0] is not None
    assert causes[0]["kind"] == "factor"
