"""Two runs of the same merge on one machine, and what a killed one leaves: one commit, nothing lost, nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bot.devhub import Fault
from tests.stories.conftest import World

TARGET = "demo/adapter-merged"


class Runs:
    """`run demo/adapter` in processes of their own, with one cache."""

    def __init__(self, world: World, home: Path) -> None:
        self.world, self.home = world, home
        self.env = os.environ | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bot", "run", "demo/adapter", "--verify", "files", *more]
        return subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def wait_for(self, path: str, running: subprocess.Popen[str]) -> None:
        """Until the Hub is asked for a path."""
        while not any(path in asked for _, asked, _ in self.world.hub.requests):
            assert running.poll() is None, running.communicate()[0]
            time.sleep(0.01)

    def commits(self) -> list[str]:
        titles = [commit.title for commit in self.world.api.list_repo_commits(TARGET)]
        return [title for title in titles if title.startswith("Merge")]

    def left(self) -> list[str]:
        return sorted(path.name for path in (self.home / "adapter-merge" / "merged").glob("*"))


@pytest.fixture
def runs(world: World, tmp_path: Path) -> Runs:
    return Runs(world, tmp_path / "home")


def test_a_second_run_leaves_the_folder_alone_that_the_first_one_uploads(runs: Runs) -> None:
    commit = f"/{TARGET}/commit/"
    runs.world.hub.faults.add(Fault(path=commit, delay=6, times=1))
    first = runs.start()
    runs.wait_for(f"/{TARGET}/preupload/", first)
    second = runs.start()
    said = second.communicate()[0]
    assert second.returncode == 2, said
    assert "Another merge into this folder is running." in said
    told = first.communicate()[0]
    assert first.returncode == 0, told
    assert len(runs.commits()) == 1
    assert runs.left() == []


@pytest.mark.slow
def test_runs_that_start_at_once_publish_one_commit(runs: Runs) -> None:
    for version in range(1, 4):
        if version > 1:
            runs.world.new_version(f"v{version}", seed=version)
        both = [runs.start("--publish", "push"), runs.start("--publish", "push")]
        said = [one.communicate()[0] for one in both]
        codes = sorted(one.returncode for one in both)
        assert codes in ([0, 0], [0, 2]), said
        assert len(runs.commits()) == version
        assert runs.left() == []


def test_a_run_killed_after_its_commit_leaves_nothing_to_the_next_one(runs: Runs) -> None:
    hub = runs.world.hub

    def read_back_slowly(repo: str, revision: str) -> None:
        if repo == TARGET:
            hub.faults.add(Fault(path=f"/{TARGET}/tree/", delay=30, times=1))

    hub.before_commit = read_back_slowly
    first = runs.start()
    runs.wait_for(f"/{TARGET}/commit/", first)
    while not runs.commits():
        time.sleep(0.01)
    first.kill()
    first.communicate()
    assert runs.left(), "the merged model still lies in our folder"
    hub.before_commit = None
    hub.faults.clear()
    again = runs.start()
    said = again.communicate()[0]
    assert again.returncode == 0, said
    assert len(runs.commits()) == 1
    assert runs.left() == []
