"""A runner: its files, its environment, an event, and the action in this process or in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bot.action.entry import act
from tests.gh.fake import TOKEN, FakeGitHub
from tests.stories.conftest import World, adapter_merge, tiny, world

__all__ = ["adapter_merge", "tiny", "world"]
ROOT = Path(__file__).parents[2]
EVENTS: dict[str, list[dict[str, Any]]] = json.loads((ROOT / "tests/gh/events.json").read_bytes())
PUSHED_TAG = "simple-tag"  # of GitHub's own example of a push
NO_TORCH = (
    "import os, sys; from bot.action.entry import act; code = act(sys.argv[1:], os.environ); "
    "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; sys.exit(code)"
)


@dataclass(frozen=True)
class Step:
    """How a step ended. `log` is without the lines that the runner swallows (masks)."""

    code: int
    log: str
    raw: str
    outputs: dict[str, str]
    summary: str

    def annotations(self, kind: str) -> list[str]:
        return [line for line in self.log.splitlines() if line.startswith(f"::{kind} ")]


class Runner:
    """A runner of GitHub Actions. `environment` is what the job sets; inputs come as `adapter_revision=…`."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self._folder, self._capfd = folder, capfd
        self.workspace, self.temp = folder / "workspace", folder / "temp"
        self.workspace.mkdir()
        self.temp.mkdir()
        self.environment: dict[str, str] = {}
        self.event("workflow_dispatch", EVENTS["workflow_dispatch"][0])

    def event(self, name: str, payload: dict[str, Any], ref: str = "refs/heads/main") -> None:
        """What made the workflow run."""
        path = self._folder / "event.json"
        path.write_text(json.dumps(payload))
        kind = "tag" if ref.startswith("refs/tags/") else "branch"
        self.environment |= {
            "GITHUB_ACTIONS": "true",
            "GITHUB_EVENT_NAME": name,
            "GITHUB_EVENT_PATH": str(path),
            "GITHUB_REF": ref,
            "GITHUB_REF_NAME": ref.split("/", 2)[2],
            "GITHUB_REF_TYPE": kind,
            "GITHUB_REPOSITORY": "octo/adapters",
            "GITHUB_RUN_ID": "1",
            "GITHUB_SERVER_URL": "https://github.com",
            "GITHUB_SHA": "c" * 40,
            "GITHUB_WORKFLOW_REF": "octo/adapters/.github/workflows/merge.yml@refs/heads/main",
            "GITHUB_WORKSPACE": str(self.workspace),
            "RUNNER_TEMP": str(self.temp),
        }

    def push_tag(self) -> None:
        """GitHub's example of a pushed tag."""
        payload = next(event for event in EVENTS["push"] if event["ref"] == f"refs/tags/{PUSHED_TAG}")
        self.event("push", payload, ref=payload["ref"])

    @property
    def work(self) -> Path:
        return self.temp / "adapter-merge"

    def step(self, phase: str = "all", **inputs: str) -> Step:
        """The action in this process."""
        environment = self._environment(inputs)
        before = dict(os.environ), Path.cwd()
        self._capfd.readouterr()
        os.environ.update(environment)
        for name in ("HF_TOKEN", "HF_READ_TOKEN", "HF_OIDC_RESOURCE"):
            if name not in environment:
                os.environ.pop(name, None)
        try:
            code = act([phase], os.environ)
        finally:
            os.environ.clear()
            os.environ.update(before[0])
            os.chdir(before[1])
        return self._ended(code, "".join(self._capfd.readouterr()))

    def process(self, phase: str, *, light: bool = False, **inputs: str) -> Step:
        """One phase in a process of its own, with nothing else in its environment. `light`: torch is forbidden."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", NO_TORCH, phase] if light else [sys.executable, "-m", "bot.action", phase]
        environment = {"HF_ENDPOINT": os.environ["HF_ENDPOINT"]} | kept | quiet | self._environment(inputs)
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=self.workspace)
        return self._ended(ran.returncode, ran.stdout + ran.stderr)

    def _environment(self, inputs: dict[str, str]) -> dict[str, str]:
        for name in ("output", "summary"):
            (self._folder / name).write_text("")
        named = {f"INPUT_{name.upper()}": value for name, value in inputs.items()}
        files = {"GITHUB_OUTPUT": "output", "GITHUB_STEP_SUMMARY": "summary"}
        return self.environment | named | {name: str(self._folder / file) for name, file in files.items()}

    def _ended(self, code: int, raw: str) -> Step:
        log = "\n".join(line for line in raw.splitlines() if not line.startswith("::add-mask::"))
        written = (self._folder / "output").read_text()
        return Step(code, log, raw, parse_outputs(written), (self._folder / "summary").read_text())


def parse_outputs(text: str) -> dict[str, str]:
    """GITHUB_OUTPUT as the runner reads it."""
    found: dict[str, str] = {}
    lines = iter(text.splitlines())
    for line in lines:
        name, _, end = line.partition("<<")
        value = []
        for inner in lines:
            if inner == end:
                break
            value.append(inner)
        found[name] = "\n".join(value)
    return found


@pytest.fixture
def runner(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Runner:
    folder = tmp_path / "runner"
    folder.mkdir()
    return Runner(folder, capfd)


@pytest.fixture
def run(runner: Runner, world: World) -> Callable[..., Step]:
    """The whole action on demo/adapter with the write token, proven by its weights, unless told otherwise."""

    def start(phase: str = "all", **inputs: str) -> Step:
        defaults = {"adapter": "demo/adapter", "hf_token": world.hub.token, "verify": "weights"}
        return runner.step(phase, **defaults | inputs)

    return start


@pytest.fixture
def github(runner: Runner) -> Iterator[FakeGitHub]:
    with FakeGitHub() as fake:
        runner.environment |= {"GITHUB_API_URL": fake.url, "INPUT_GITHUB_TOKEN": TOKEN}
        yield fake
        assert fake.violations == []
