"""The process of one local run: `python -m bot.dispatch.backends.local_runner FOLDER`. It waits for its turn, runs the command, and
writes down how that ended. See `bot.dispatch.backends.local` for the folder."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

COMMAND = (sys.executable, "-P", "-m", "bot")
# A run gets what it needs; what only the server needs stays with it.
TRIES, PAUSE = 10, 0.1  # seconds
KEPT_BACK = ("ADAPTER_MERGE_WEBHOOK_SECRET", "GITHUB_TOKEN")


def run(folder: Path) -> None:
    """Nothing, where another runner has the request or it has ended."""
    with (folder / "lock").open("ab") as lock:
        if not _take(lock):
            return
        if (folder / "exit").exists():
            return
        with (folder.parent / "one-at-a-time").open("ab") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            with (folder / "starts").open("ab") as starts:
                starts.write(f"{os.getpid()}\n".encode())
            _run(folder, (lock.fileno(), turn.fileno()))


def _take(lock: IO[bytes]) -> bool:
    """Whether it is ours now. Who only looks at it has it for a moment: that is waited for."""
    for left in reversed(range(TRIES)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(PAUSE if left else 0)
    return False


def _run(folder: Path, locks: tuple[int, ...]) -> None:
    """`locks` are the command's too: as long as it lives, nobody else starts, even where this process was killed."""
    arguments = json.loads((folder / "command.json").read_text(encoding="utf-8"))["arguments"]
    environment = {name: value for name, value in os.environ.items() if name not in KEPT_BACK}
    if token := environment.pop("ADAPTER_MERGE_HUB_TOKEN", None):
        environment["HF_TOKEN"] = token
    with (folder / "output.json").open("wb") as output, (folder / "log").open("ab") as log:
        ended = subprocess.run(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=log,
            env=environment,
            cwd=folder,  # where nothing lies that could be taken for the adapter: a folder owner/name, before the Hub's repo
            pass_fds=locks,
            check=False,
        )
        os.fsync(output.fileno())
    if ended.returncode < 0:
        return  # killed, by the machine or a person: it came to no end, and is begun again
    fresh = folder / "exit.tmp"
    with fresh.open("w", encoding="ascii") as written:
        written.write(str(ended.returncode))
        written.flush()
        os.fsync(written.fileno())
    fresh.replace(folder / "exit")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
