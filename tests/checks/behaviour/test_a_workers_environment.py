"""What the processes that run models are given."""

from __future__ import annotations

import os
from pathlib import Path

import bot
from bot.checks.behaviour.job import WorkerJob
from bot.checks.behaviour.trial import _environment


def test_a_worker_runs_the_code_that_started_it(tmp_path: Path) -> None:
    """From a checkout that is not installed, too: -P keeps the folder that we stand in out."""
    job = WorkerJob(
        base=tmp_path, adapter=tmp_path, folder=tmp_path, work=tmp_path, storage="bfloat16", compute="float32"
    )
    first = _environment(job)["PYTHONPATH"].split(os.pathsep)[0]
    assert Path(first, "bot", "__init__.py").samefile(bot.__file__)
