"""The worker of `--verify full`: `python -m bot.checks.behaviour.worker JOB.json`, one model in one process, no network.

role `reference`: PEFT's own unmerged model, and the control. role `merged`: the folder, loaded as its users will,
where `peft` does not exist. Each writes `<role>.json` into the job's folder.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from bot.checks.behaviour.forward_counts import FORWARDS
from bot.signals import end_with_parent

Job = dict[str, Any]


def main(path: Path) -> None:
    """Do the job, and write down what came of it, an error included."""
    end_with_parent()
    job = json.loads(path.read_bytes())
    cut_network()
    confined = confine_for(job) if job["trust"] else True
    if job["role"] == "merged":
        # None in sys.modules makes `import peft` raise and find_spec answer None: as if it were not installed.
        sys.modules["peft"] = None  # type: ignore[assignment]
    FORWARDS.begin(Path(job["work"]) / f"{job['role']}.forwards")
    answer(job, {**attempt(job), "confined": confined})


def attempt(job: Job) -> dict[str, Any]:
    """What came of the job: what its role found, {"error", "raised"} of an exception, or {"skip"}, with {"beyond"} where no
    merge is to blame."""
    from bot.checks.behaviour.roles import ROLES, CannotRun

    try:
        return ROLES[job["role"]](job)
    except CannotRun as error:
        return {"skip": str(error), "beyond": True}
    except Exception as error:  # the gate of this process: its parent reads a file, not a traceback
        import traceback

        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}", "raised": True}


def answer(job: Job, result: dict[str, Any]) -> None:
    """Write `<role>.json`, whole or not at all."""
    path = Path(job["work"]) / f"{job['role']}.json"
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(result))
    fresh.replace(path)


def confine_for(job: Job) -> bool:
    """Leave a stranger's code what it needs to run: the files that it reads, and the job's own folder to write. Whether the
    system could do that."""
    from bot.checks.behaviour.sandbox import confine

    given = [Path(job[name]) for name in ("base", "adapter", "folder", "text") if job[name]]
    given += [Path(row["folder"]) for row in job["rows"] or ()]
    # A folder of the Hub's cache is made of links to where the files are.
    places = {path.resolve().parent for folder in given if folder.is_dir() for path in folder.rglob("*")}
    return confine(writable=[Path(job["work"])], readable=[*given, *places])


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
