"""A merge by weight files that is killed at any moment leaves nothing visible, and the next run goes on to the same result."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.stories.conftest import Command, World, adapter_merge, tiny, world
from tests.stories.test_one_weight_file_after_the_other import MERGED, report_of, weights_of

__all__ = ["adapter_merge", "tiny", "world"]
KILLS = int(os.environ.get("ADAPTER_MERGE_KILLS", "5"))  # 50 were tried by hand
COMMAND = [sys.executable, "-m", "bot", "run", "demo/adapter", "--verify", "weights", "--disk", "shards", "--quiet"]


@pytest.mark.slow
def test_the_next_run_converges_after_kills_at_random_moments(world: World, adapter_merge: Command) -> None:
    chance = random.Random(0)
    began = time.monotonic()
    assert subprocess.run([*COMMAND, "--to", "demo/timed"], env=os.environ.copy(), check=False).returncode == 0
    whole = time.monotonic() - began
    ended = 0
    for _ in range(KILLS):
        running = subprocess.Popen(COMMAND, env=os.environ.copy())
        try:
            running.wait(chance.uniform(0.1, whole))
            ended += 1
            assert running.returncode == 0
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
        there = world.api.list_repo_files(MERGED) if world.api.repo_exists(MERGED) else []
        names = [name for name in there if name.startswith("model")]
        assert not names or "verification.json" in there, "weights are visible with their proof, or not at all"
    assert ended < KILLS, "no run was killed"
    assert adapter_merge("run", "demo/adapter", "--verify", "weights", "--disk", "shards").code == 0
    assert weights_of(world, MERGED) == weights_of(world, "demo/timed")
    assert report_of(world) == report_of(world, "demo/timed")
    assert len(world.api.list_repo_commits(MERGED)) == len(world.api.list_repo_commits("demo/timed"))
    assert adapter_merge("run", "demo/adapter", "--verify", "weights", "--disk", "shards").code == 0
    assert len(world.api.list_repo_commits(MERGED)) == len(world.api.list_repo_commits("demo/timed"))
