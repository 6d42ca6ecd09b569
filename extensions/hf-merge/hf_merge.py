"""`hf merge …` is `adapter-merge …`: the arguments go on as they are, and so do output, signals and the exit code."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

MISSING = 127  # as a shell ends where a command is not there
HOW_TO_INSTALL = """\
✗ adapter-merge is not installed, or not on the PATH.
  Install it in an environment of its own, then repeat this command:
    git clone https://github.com/adapter-merge/adapter-merge && cd adapter-merge
    uv tool install --torch-backend cpu .      # with CUDA, or by pip or pipx: docs/install.md there
"""


def program() -> str | None:
    """Where adapter-merge is: on the PATH, else beside this extension."""
    beside = Path(sys.executable).with_name("adapter-merge")
    return shutil.which("adapter-merge") or (str(beside) if beside.exists() else None)


def main() -> int:
    """Become adapter-merge; an exit code where there is none."""
    if path := program():
        os.execv(path, [path, *sys.argv[1:]])
    sys.stderr.write(HOW_TO_INSTALL)
    return MISSING


if __name__ == "__main__":
    sys.exit(main())
