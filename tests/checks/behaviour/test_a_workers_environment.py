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


def in_its_own_process(program: str) -> None:
    """As a worker is."""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_scipy_is_there_again_once_transformers_is_imported() -> None:
    """Some models import it."""
    in_its_own_process(
        "import sys; from bot.checks.behaviour.quick_imports import quick_imports\n"
        "with quick_imports():\n"
        "    import bot.checks.behaviour.joint\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'scipy']\n"
        "from transformers.utils import is_scipy_available; assert is_scipy_available()\n"
        "from transformers.models.fnet import modeling_fnet; assert modeling_fnet.linalg\n"
        "assert 'scipy.linalg' in sys.modules"
    )


def test_the_models_are_listed_as_transformers_lists_them_and_read_once() -> None:
    """All that `transformers.models` offers is what it offers otherwise; its files are read for transformers itself only."""
    in_its_own_process(
        "import transformers; from transformers.utils import import_utils\n"
        "scan, scans = import_utils.create_import_structure_from_path, []\n"
        "import_utils.create_import_structure_from_path = lambda path: scans.append(path) or scan(path)\n"
        "from bot.checks.behaviour.quick_imports import quick_imports\n"
        "real = import_utils.define_import_structure\n"
        "with quick_imports():\n"
        "    import transformers.models as models\n"
        "    ours = import_utils.define_import_structure(models.__file__)\n"
        "assert import_utils.define_import_structure is real\n"
        "assert scans == [], scans\n"
        "assert ours == real(models.__file__) and len(ours) > 5 and scans\n"
        "assert models.LlamaForCausalLM is transformers.LlamaForCausalLM"
    )


def test_nothing_that_a_worker_imports_comes_before_its_quick_imports(tmp_path: Path) -> None:
    """Whatever is imported earlier is imported at its full length: scipy, above all, whose absence shows it."""
    job = WorkerJob(
        base=tmp_path,
        adapter=tmp_path,
        folder=tmp_path,
        work=tmp_path,
        storage="bfloat16",
        compute="float32",
        role="joint",
    )
    job.write(tmp_path / "job.json")
    in_its_own_process(
        "import sys; from pathlib import Path; from bot.checks.behaviour import worker\n"
        f"worker.main(Path({str(tmp_path / 'job.json')!r}))\n"
        "assert 'bot.checks.behaviour.joint' in sys.modules\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'scipy']"
    )
