"""A merged repo is proven again where the disk holds neither it nor its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import CommitOperationAdd
from safetensors.torch import load_file, save_file

from tests.stories.conftest import Command, World

MERGED = "demo/adapter-merged"
BY_SHARD = ("--disk", "shards", "--verify", "weights", "--json")


@pytest.fixture
def merged(world: World, adapter_merge: Command) -> str:
    assert adapter_merge("run", "demo/adapter", "--verify", "weights").code == 0
    return MERGED


def findings(text: str) -> dict[str, Any]:
    """Every finding but for the time that it took, and what was not run."""
    document = json.loads(text)
    checks = {
        check["id"]: {name: value for name, value in check.items() if name != "seconds"} for check in document["checks"]
    }
    return {"verdict": document["verdict"], "files": document["subject"], "checks": checks}


def change_last_file(world: World, repo: str, how: Any) -> None:
    """Commit another last weight file."""
    name = max(name for name in world.api.list_repo_files(repo) if name.endswith(".safetensors"))
    path = Path(world.api.hf_hub_download(repo, name))
    tensors = load_file(path)
    how(tensors)
    changed = world.base / "changed.safetensors"
    save_file(tensors, changed, metadata={"format": "pt"})
    world.api.create_commit(repo, [CommitOperationAdd(name, str(changed))], commit_message="another")


def test_the_same_findings_as_with_everything_on_the_disk(world: World, adapter_merge: Command, merged: str) -> None:
    whole = adapter_merge("verify", merged, "--verify", "weights", "--disk", "whole", "--json")
    shards = adapter_merge("verify", merged, *BY_SHARD)
    assert shards.code == whole.code == 0, shards.err
    assert findings(shards.out) == findings(whole.out)
    assert "Compared one weight file after the other" in shards.err


def test_one_wrong_element_in_the_last_file_is_found(world: World, adapter_merge: Command, merged: str) -> None:
    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensor = tensors[min(tensors)]
        tensor.view(-1)[-1] += 1

    change_last_file(world, merged, nudge)
    shards = adapter_merge("verify", merged, *BY_SHARD)
    whole = adapter_merge("verify", merged, "--verify", "weights", "--disk", "whole", "--json")
    assert shards.code == whole.code == 4
    assert findings(shards.out) == findings(whole.out)


def test_somebody_elses_merge_is_judged_alike(world: World, adapter_merge: Command, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.bfloat16)
    theirs = PeftModel.from_pretrained(model, world.adapter).merge_and_unload()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    world.api.create_repo("demo/theirs")
    world.api.upload_folder(repo_id="demo/theirs", folder_path=tmp_path / "theirs")
    given = ("demo/theirs", "--base", "demo/base", "--adapter", "demo/adapter")
    shards = adapter_merge("verify", *given, *BY_SHARD)
    whole = adapter_merge("verify", *given, "--verify", "weights", "--disk", "whole", "--json")
    assert shards.code == whole.code
    assert findings(shards.out) == findings(whole.out)


@pytest.mark.parametrize(
    ("asked", "why"),
    [(("--verify", "full"), "--verify full runs the whole model"), ((), "The merged model lies on this disk")],
)
def test_what_cannot_be_is_refused_by_name(
    world: World, adapter_merge: Command, tmp_path: Path, asked: tuple[str, ...], why: str
) -> None:
    where = MERGED if asked else tmp_path
    ran = adapter_merge("verify", where, "--disk", "shards", *asked)
    assert ran.code == 3
    assert why in ran.err
