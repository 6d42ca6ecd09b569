"""What a plan says of disk and memory is what a run takes, at the most: measured of real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.factory import save_adapter
from tests.stories.conftest import World, name_base, tiny, world

__all__ = ["tiny", "world"]
WIDE, LAYERS, FILE = 1024, 12, 30_000_000  # some 340 MB in a dozen files: more than what may lie beside them
LOOK_EVERY = 0.01  # seconds
NOTES = 1_000_000  # bytes: last blocks of files that are not full, refs, and what is noted of a run
# The largest resident set of a process and its children, in KiB, behind what the command prints.
MEASURED = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, adapter)"""
    root = tmp_path_factory.mktemp("large")
    config = AutoConfig.for_model(
        "llama", hidden_size=WIDE, intermediate_size=3 * WIDE, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_key_value_heads=8, vocab_size=512, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        root / "base", max_shard_size=f"{FILE // 1_000_000}MB"
    )
    adapter = save_adapter(root / "base", "llama", root / "adapter", r=8, target_modules="all-linear")
    name_base(adapter, "demo/large")
    return root / "base", adapter


@contextmanager
def watching(folder: Path) -> Iterator[list[int]]:
    """For as long as the block runs, the most bytes that lie below a folder, in a list of one."""
    most, stopped = [0], threading.Event()

    def look() -> None:
        while not stopped.wait(LOOK_EVERY):
            most[0] = max(most[0], bytes_below(folder))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield most
    finally:
        stopped.set()
        looking.join()


def bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(parent) / name).st_blocks * 512
            except OSError:  # it has gone meanwhile
                continue
    return total


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["whole", "shards"])
def test_disk_and_memory(world: World, large: tuple[Path, Path], disk: str, tmp_path: Path) -> None:
    for repo, folder in zip(("demo/large", "demo/tune"), large, strict=True):
        world.api.create_repo(repo)
        world.api.upload_folder(repo_id=repo, folder_path=folder)
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "bot"]
    given = ["demo/tune", "--disk", disk, "--verify", "weights"]
    planned = subprocess.run([*command, "plan", *given, "--json"], env=environment, check=True, capture_output=True)
    budget: dict[str, Any] = json.loads(planned.stdout)["budget"]
    room = budget["by_shard"]["disk"] if disk == "shards" else budget["disk"]
    run = [sys.executable, "-c", MEASURED, *command, "run", *given, "--to", "demo/made", "--quiet"]
    with watching(home) as most:
        ran = subprocess.run(run, env=environment, check=True, capture_output=True, text=True)
    assert most[0] <= room + NOTES
    assert int(ran.stdout.split()[-1]) * 1024 <= budget["peak_memory"]
    weights = sum(path.stat().st_size for path in large[0].glob("*.safetensors"))
    if disk == "shards":
        assert most[0] < weights, "the base alone is more"
        assert room < 3 * FILE * 1.1 + 100_000_000
    else:
        assert most[0] > 1.9 * weights
