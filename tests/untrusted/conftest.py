"""The command in a process of its own, with its own streams and environment, and a local Hub that can be made to lie."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from bot.devhub import DevHub

ROOT = Path(__file__).resolve().parents[2]
Started = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token, endpoint or cache of this machine's user; LFS in this process."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[DevHub]:
    """A fresh local Hub."""
    with DevHub(tmp_path / "devhub") as served:
        yield served


@pytest.fixture
def start(tmp_path: Path) -> Started:
    """Run `adapter-merge` as a person's shell would."""

    def run(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        env |= {"PYTHONPATH": str(ROOT), **more.pop("env", {})}
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace", "timeout": 60}
        command = [sys.executable, "-m", "bot", *map(str, arguments)]
        return subprocess.run(command, env=env, cwd=tmp_path, check=False, **(given | more))

    return run
