"""A merge shared out over Jobs of the local Hub, which run as processes: receipts in a repo, one commit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stories.conftest import World, tiny, world
from tests.stories.test_one_weight_file_after_the_other import report_of, weights_of

__all__ = ["tiny", "world"]
SCRIPT = Path(__file__).parents[2] / "deploy" / "huge_jobs.py"


@pytest.mark.slow
def test_jobs_make_the_parts_and_the_commit_is_that_of_one_machine(world: World) -> None:
    command = [sys.executable, str(SCRIPT), "demo/adapter", "--to", "demo/merged", "--parts", "2", "--pause", "0.5"]
    ran = subprocess.run(command, env=os.environ.copy(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "part 2/2: completed" in ran.stdout
    assert not world.api.repo_exists("demo/merged-receipts")
    assert report_of(world, "demo/merged")["verdict"] == "verified"
    assert set(weights_of(world, "demo/merged")) == set(weights_of(world, "demo/base"))
