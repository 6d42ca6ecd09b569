"""A runner that runs action.yml's steps as GitHub's does, with stubs for docker, nvidia-smi and python3."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from bot import __version__

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
TOOLS = ("bash", "sed", "mkdir", "id", "rm")  # all that the launcher takes from the system

VERSION = __version__  # STUB_INSTALLED: the version that python3 has
GITHUB_TOKEN, WRITE, READ, IDENTITY = "ghs_forGitHub", "hf_forWriting", "hf_forReading", "ey.forIdentity"


@dataclass(frozen=True)
class Call:
    """How a stub was called."""

    name: str
    arguments: list[str]
    env: dict[str, str]

    @property
    def phase(self) -> str:
        return self.arguments[-1] if "bot.action" in self.arguments else ""

    def values(self, flag: str) -> list[str]:
        """Every value of a flag, in order."""
        return [value for name, value in zip(self.arguments, self.arguments[1:], strict=False) if name == flag]

    @property
    def given(self) -> dict[str, str]:
        """The environment that the container gets."""
        pairs = (value.partition("=") for value in self.values("--env"))
        return {name: value if sign else self.env[name] for name, sign, value in pairs}

    @property
    def mounts(self) -> dict[str, str]:
        """target → `source`, with `,readonly` where it is."""
        targets = [re.sub(r"^.*,target=|,readonly$|/$", "", value) for value in self.values("--mount")]
        assert len(set(targets)) == len(targets), "Docker: Duplicate mount point"
        found = re.compile(r"type=bind,source=(.*),target=([^,]*)(,readonly)?")
        matches = (found.fullmatch(value) for value in self.values("--mount"))
        return {match[2]: match[1] + (match[3] or "") for match in matches if match}


@dataclass(frozen=True)
class Ran:
    code: int
    log: str
    calls: list[Call]

    def phases(self) -> dict[str, Call]:
        return {call.phase: call for call in self.calls if call.phase}


@dataclass
class Runner:
    """`env` is the job's environment; what a test sets there is what the workflow's author or the runner set."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    user: int = os.getuid()
    action: dict[str, Any] = field(default_factory=lambda: ACTION)

    @property
    def temp(self) -> Path:
        return self.root / "temp"

    @property
    def workspace(self) -> Path:
        return self.root / "work space"

    def has(self, *names: str) -> None:
        """Put stubs on PATH."""
        for name in names:
            stub = self.root / "bin" / name
            stub.write_text(f"#!{sys.executable} -IS\n" + (ROOT / "tests/launcher/stub.py").read_text())
            stub.chmod(0o755)

    def lacks(self, name: str) -> None:
        (self.root / "bin" / name).unlink()

    def start(self, step: int = 0, **inputs: str) -> subprocess.Popen[str]:
        """A step of action.yml, as the runner starts it: a script for bash, every expression already a value."""
        wanted = self.action["runs"]["steps"][step]
        given = {"adapter": "demo/adapter", "image": "image:tag"} | {k.replace("_", "-"): v for k, v in inputs.items()}
        values = {name: given.get(name, defined.get("default", "")) for name, defined in self.action["inputs"].items()}
        values |= {"github-token": given.get("github-token", GITHUB_TOKEN)}
        expressions = wanted.get("env", {}).items()
        inputs_env = {name: values[text[11:-3]] if text.startswith("${{") else text for name, text in expressions}
        script = self.temp / "step.sh"
        script.write_text(wanted["run"])
        os.chown(script, self.user, -1)
        return subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", script],
            env=self.env | inputs_env, cwd=self.workspace, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            **({"user": self.user, "group": self.user, "extra_groups": ()} if self.user != os.getuid() else {}),
        )  # fmt: skip

    def run(self, step: int = 0, **inputs: str) -> Ran:
        return self.ended(self.start(step, **inputs))

    def ended(self, step: subprocess.Popen[str]) -> Ran:
        log, _ = step.communicate(timeout=600)
        return Ran(step.returncode, log, self.calls())

    def calls(self) -> list[Call]:
        log = self.root / "stub" / "calls.jsonl"
        return [Call(**json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []

    def cancelled(self, by: signal.Signals, **inputs: str) -> Ran:
        """A step that is cancelled while the phase of STUB_ENDLESS runs: one signal, to one process."""
        step = self.start(**inputs)
        started = self.root / "stub" / "started"
        while not started.exists():
            assert step.poll() is None, step.stdout
            time.sleep(0.02)
        step.send_signal(by)
        if by is signal.SIGKILL:  # what it started lives on, and has its output open
            return Ran(step.wait(), "", self.calls())
        return self.ended(step)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    made = Runner(tmp_path)
    for folder in ("temp", "work space", "bin", "stub", "tools", "home"):
        (tmp_path / folder).mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    made.has("docker", "python3")
    files = {name: made.temp / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_EVENT_PATH")}
    for file in files.values():
        file.write_text("")
    made.env |= {name: str(file) for name, file in files.items()} | {
        "PATH": str(tmp_path / "bin"),
        "HOME": str(tmp_path / "home"),
        "STUB": str(tmp_path / "stub"),
        "GITHUB_ACTION_PATH": str(ROOT),
        "GITHUB_WORKSPACE": str(made.workspace),
        "GITHUB_RUN_ID": "77",
        "RUNNER_TEMP": str(made.temp),
        "RUNNER_TOOL_CACHE": str(tmp_path / "tools"),
        "ACTIONS_RUNTIME_TOKEN": "ey.neverOurs",
        "SECRET_OF_THE_JOB": "not for us",
        "LANG": os.environ.get("LANG", "C.UTF-8"),
    }
    return made
