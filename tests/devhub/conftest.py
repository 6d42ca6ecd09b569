"""A local Hub, and the real client that talks to it over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import disable_progress_bars

from bot.devhub import DevHub

ROOT = Path(__file__).resolve().parents[2]
Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _lfs_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of this process uses LFS, as under HF_HUB_DISABLE_XET=1; Xet is tested in processes of its own."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    disable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the hub keeps everything."""
    return tmp_path / "hub"


@pytest.fixture
def hub(folder: Path) -> Iterator[DevHub]:
    """A fresh local Hub without Xet."""
    with DevHub(folder) as served:
        yield served


@pytest.fixture
def api(hub: DevHub) -> HfApi:
    """The default user's client."""
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def repo(api: HfApi) -> str:
    """An empty model repo."""
    return api.create_repo("demo/model").repo_id


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A download cache of its own."""
    return tmp_path / "cache"


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Run a client program in a fresh process, with an environment of its own."""

    def run(code: str, hub: DevHub, *arguments: object, xet: bool = True, token: str | None = None, check: bool = True):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= hub.environment(token)
        environment.pop("HF_HUB_DISABLE_XET", None)
        environment |= {"HF_HOME": str(tmp_path / f"home-{os.urandom(4).hex()}"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment |= {"PYTHONPATH": str(ROOT)} | ({} if xet else {"HF_HUB_DISABLE_XET": "1"})
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        if check and done.returncode != 0:
            raise AssertionError(f"the client failed:\n{done.stdout}\n{done.stderr}")
        return done

    return run
