"""The worker of `--verify full`: `python -m bot.checks.behaviour.worker JOB.json`, one model in one process, no network.

role `reference`: PEFT's own unmerged model, and the control. role `merged`: the folder, loaded as its users will,
where `peft` does not exist. role `joint`: both in one process, where there is memory for two models.
Each writes `<role>.json` into the job's folder.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from bot.checks.behaviour.forward_counts import FORWARDS
from bot.checks.behaviour.job import Answer, CannotRun, Stopped, WorkerJob, write_answer
from bot.checks.behaviour.quick_imports import quick_imports
from bot.checks.reading.folders import read_json
from bot.signals import end_with_parent


def main(path: Path) -> None:
    """Do the job, and write down what came of it, an error included."""
    gc.disable()  # until all is imported: modules stay, and would be searched through again and again
    end_with_parent()
    job = WorkerJob.read(path)
    cut_network()
    lost = start_device(job)
    confined = confine_for(job) if job.trust else True
    if job.role == "merged":
        # None in sys.modules makes `import peft` raise and find_spec answer None: as if it were not installed.
        sys.modules["peft"] = None  # type: ignore[assignment]
    if not is_quantised(job):
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    FORWARDS.begin(job.work / f"{job.role}.forwards")
    write_answer(job.work / f"{job.role}.json", lost or attempt(job), confined)


def start_device(job: WorkerJob) -> Stopped | None:
    """None where the job's device is ready."""
    from bot.checks.behaviour import device

    try:
        device.prepare(job)
    except Exception as error:
        why = device.failed(error) or " ".join(str(error).split())[:160]
        return Stopped(status="skip", why=why, unrunnable=True, of_device=True)
    return None


def attempt(job: WorkerJob) -> Answer:
    """What came of the job: its role's answer, or Stopped."""
    answer: Answer = attempt_to(job, lambda: _answer(job))
    return answer


def _answer(job: WorkerJob) -> Answer:
    with quick_imports():
        if job.role == "joint":
            from bot.checks.behaviour.joint import joint
        elif job.running == "layers":
            from bot.checks.behaviour.layer_roles import LAYERED as ROLES
        else:
            from bot.checks.behaviour.roles import ROLES
    gc.freeze()
    gc.enable()
    return joint(job, partial(attempt_to, job)) if job.role == "joint" else ROLES[job.role](job)


def attempt_to(job: WorkerJob, run: Callable[[], Any]) -> Any:
    """What came of a part of the job, or Stopped."""
    from bot.checks.behaviour import device

    try:
        return run()
    except Exception as error:  # the gate of this process: its parent reads a file, not a traceback
        lost = None if job.device == "cpu" else device.failed(error)
        if lost is not None:
            return Stopped(status="skip", why=lost, unrunnable=True, of_device=True)
        if isinstance(error, CannotRun):
            return Stopped(status="skip", why=str(error), unrunnable=True)
        import traceback

        traceback.print_exc()
        return Stopped(status="error", why=f"{type(error).__name__}: {error}", raised=True)


def is_quantised(job: WorkerJob) -> bool:
    """Whether this worker needs bitsandbytes, which PEFT would import in any case: it takes as long as all the rest of PEFT, and
    compilers with it."""
    configs = [read_json(folder / "config.json") or {} for folder in (job.base, job.folder)]
    return job.quantised or job.usages is not None or job.trust or any("quantization_config" in str(c) for c in configs)


def confine_for(job: WorkerJob) -> bool:
    """Leave a stranger's code what it needs to run: the files that it reads, and the job's own folder to write. Whether the
    system could do that."""
    from bot.checks.behaviour.device import driver_files
    from bot.checks.behaviour.sandbox import confine

    given = [job.base, job.adapter, job.folder, *filter(None, (job.text, job.same_form))]
    given += [usage.folder for usage in job.usages or ()]
    # A folder of the Hub's cache is made of links to where the files are.
    targets = {path.resolve().parent for folder in given if folder.is_dir() for path in folder.rglob("*")}
    written, read = driver_files(job)
    return confine(writable=[job.work, *written], readable=[*given, *targets, *read])


def cut_network() -> None:
    """What is proven must not depend on what a hub answers."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"

    def refuse(*_: object, **__: object) -> NoReturn:
        raise ConnectionError("the network is off while a model is verified")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    socket.create_connection = refuse


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking torch apart again costs half a second, and the answer is written
