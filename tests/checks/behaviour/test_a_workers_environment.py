"""What the processes that run models are given."""

from __future__ import annotations

import os
import subprocess
import sys
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


def test_scipy_is_there_again_once_transformers_is_imported() -> None:
    """In a process of its own, as a worker is: some models import it."""
    program = (
        "import sys; from bot.checks.behaviour import worker\n"
        "with worker.without_losses():\n"
        "    import bot.checks.behaviour.joint\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'scipy']\n"
        "from transformers.utils import is_scipy_available; assert is_scipy_available()\n"
        "from transformers.models.fnet import modeling_fnet; assert modeling_fnet.linalg\n"
        "assert 'scipy.linalg' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
