"""A base that stores a block once for several depths, through whole commands: one machine, weight by weight file, several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.oracle.one_architecture import adapted, load
from tests.oracle.test_weights_of_several_names import base_of
from tests.stories.conftest import Command, World, name_base
from tests.stories.test_one_weight_file_after_the_other import BY_SHARD, report_of, weights_of

KEY = "model.layers.5.shared_transformer.self_attn.q_proj.weight"


@pytest.fixture
def pinned(world: World, tmp_path: Path) -> tuple[str, ...]:
    """demo/zamba in several weight files, and an adapter on its block; both at their commits."""
    chosen = base_of("zamba2", tmp_path / "whole")
    load(chosen, tmp_path / "whole").to(torch.bfloat16).save_pretrained(tmp_path / "zamba", max_shard_size="150KB")
    adapted(load(chosen, tmp_path / "whole"), tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    (tmp_path / "adapter" / "README.md").unlink()  # with a base_model that is a folder
    name_base(tmp_path / "adapter", "demo/zamba")
    sha = {}
    for name, folder in (("zamba", "zamba"), ("of-zamba", "adapter")):
        world.api.create_repo(f"demo/{name}")
        sha[name] = world.api.upload_folder(repo_id=f"demo/{name}", folder_path=tmp_path / folder).oid
    return f"demo/of-zamba@{sha['of-zamba']}", "--base", f"demo/zamba@{sha['zamba']}"


def test_the_same_bytes_and_report_whoever_makes_it(
    world: World, adapter_merge: Command, pinned: tuple[str, ...], tmp_path: Path
) -> None:
    ran = adapter_merge("run", *pinned, "--to", "demo/whole", "--verify", "weights")
    assert ran.code == 0, ran.err
    assert "they are written once for each depth, 2 tensors and" in ran.out + ran.err
    ran = adapter_merge("run", *pinned, "--to", "demo/by-shard", *BY_SHARD)
    assert ran.code == 0, ran.err
    receipts = [tmp_path / f"receipt-{number}.json" for number in (1, 2)]
    for number, path in enumerate(receipts, 1):
        part = "--shard", f"{number}/2", "--receipt", path
        ran = adapter_merge("merge", *pinned, *part, "--to", "demo/shared", "--verify", "weights")
        assert ran.code == 0, ran.err
    ran = adapter_merge("finish", *receipts)
    assert ran.code == 0, ran.err
    files = [name for name in weights_of(world, "demo/whole") if name.startswith("model-")]
    assert len(files) > 2
    index = json.loads(Path(world.api.hf_hub_download("demo/whole", "model.safetensors.index.json")).read_text())
    assert index["weight_map"][KEY] == index["weight_map"][KEY.replace(".5.", ".1.")]
    for other in ("demo/by-shard", "demo/shared"):
        assert weights_of(world, other) == weights_of(world, "demo/whole"), other
        assert report_of(world, other) == report_of(world, "demo/whole"), other
    report = report_of(world, "demo/whole")
    assert "reader that shares such a block by construction" in report["merge"]["shared_blocks"]
    (keys,) = [check for check in report["checks"] if check["id"] == "keys"]
    assert "2 new keys of a block that the base stores once" in keys["why"]
    card = Path(world.api.hf_hub_download("demo/whole", "README.md")).read_text()
    assert "they are written once for each depth" in card
    assert "vllm" not in card
    for how in ("whole", "shards"):
        ran = adapter_merge("verify", "demo/whole", "--verify", "weights", "--disk", how)
        assert ran.code == 0, ran.out + ran.err
