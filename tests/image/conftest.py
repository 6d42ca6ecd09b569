"""The image, built from the unchanged Dockerfile, and a runner whose job is run by a Docker that everybody may use.

Podman's service stands in for Docker's daemon, and podman's remote client for Docker's (Docker's own loses the exit
codes of this service). What is built and run is what a user's runner builds and runs.

Asked for by ADAPTER_MERGE_IMAGE_TEST=1 (`make image-test`), or by the name of an image that is there already;
IMAGE_BUILDER names the script that builds on a machine without Docker.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.devhub import DevHub
from tests.action.conftest import Step, parse_outputs
from tests.launcher.conftest import ROOT, Runner
from tests.stories.conftest import tiny

__all__ = ["tiny"]
ASKED = os.environ.get("ADAPTER_MERGE_IMAGE_TEST", "")
BUILDER = Path(os.environ.get("IMAGE_BUILDER", "../shared/image/build-local"))
CALLER = 1001  # the uid of GitHub's own runners
GITHUB_TOKEN = "ghs_" + "Qm9iIHdhcyBoZXJlIQ" * 2
EVENT = '{"ref": "refs/tags/v1", "created": true, "deleted": false, "repository": {"full_name": "octo/adapters"}}'

# `docker` as a job sees it: what it is told is written down, and every container gets the memory of a small runner.
CLIENT = """#!/bin/sh
printf '%s\\n' "$*" >>"$ENGINE_LOG"
if [ "$1" = run ]; then shift; set -- run --memory "$RUNNER_MEMORY" "$@"; fi
exec podman --remote --url "$DOCKER_HOST" "$@"
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


def why_not() -> str:
    """Why these tests cannot run here; empty where they can."""
    if not ASKED:
        return "takes minutes: make image-test"
    if os.getuid() != 0:
        return "building without a Docker daemon needs root"
    if not (ROOT / BUILDER).exists():
        return f"there is no builder {BUILDER} (IMAGE_BUILDER)"
    return ""


@dataclass(frozen=True)
class Engine:
    """`environment`: what podman needs to see the image. `url`: where a Docker client finds the service."""

    image: str
    environment: dict[str, str]
    url: str

    def podman(self, *arguments: str) -> str:
        ran = subprocess.run(["podman", *arguments], env=self.environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def containers(self) -> list[str]:
        return self.podman("ps", "--all", "--format", "{{.Names}}").split()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    builder = str((ROOT / BUILDER).resolve())
    image = "localhost/adapter-merge:test" if ASKED == "1" else ASKED
    if ASKED == "1":
        subprocess.run([builder, ".", "adapter-merge:test"], cwd=ROOT, check=True)
    if not Path("/usr/libexec/podman/catatonit").exists():  # what podman takes for --init
        subprocess.run(["apt-get", "install", "-qq", "--no-install-recommends", "catatonit"], check=True)
    said = subprocess.run([builder, "--env"], capture_output=True, text=True, check=True).stdout
    pairs = dict(word.split("=", 1) for word in said.split()[1:])
    folder = Path(tempfile.mkdtemp(prefix="engine-"))
    socket = folder / "podman.sock"
    service = subprocess.Popen(
        ["podman", "system", "service", "--time", "0", f"unix://{socket}"], env=os.environ | pairs
    )
    while not socket.exists():
        assert service.poll() is None, "podman's service ended"
        time.sleep(0.05)
    folder.chmod(0o755)
    socket.chmod(0o666)
    made = Engine(image, os.environ | pairs, f"unix://{socket}")
    made.podman("image", "prune", "--force")  # what an earlier run's image was
    yield made
    service.terminate()
    service.wait()
    shutil.rmtree(folder)


@dataclass
class Job:
    """A workflow's job on a runner that belongs to the caller, with a Hub beside it."""

    hub: DevHub
    api: HfApi
    runner: Runner
    base: Path
    adapter: Path
    read_token: str

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self.hub.token, self.read_token, GITHUB_TOKEN)

    def file(self, name: str) -> str:
        return (self.runner.temp / name).read_text()

    def own(self, source: Path, name: str) -> Path:
        """A folder of the workspace, the caller's."""
        folder = self.runner.workspace / name
        shutil.copytree(source, folder)
        chown(self.runner.workspace)
        return folder

    def run(self, **inputs: str) -> Step:
        """The action, to its end."""
        return self.ended(self.start(**inputs))

    def start(self, **inputs: str) -> subprocess.Popen[str]:
        """The action on demo/adapter with both tokens, proven by its weights, unless told otherwise."""
        defaults = {"adapter": "demo/adapter", "hf_token": self.hub.token, "hf_read_token": self.read_token}
        more = {"github_token": GITHUB_TOKEN, "verify": "weights", "image": self.runner.env["IMAGE"]}
        for name in ("output", "summary"):
            (self.runner.temp / name).write_text("")
        chown(self.runner.root)
        return self.runner.start(**defaults | more | inputs)

    def ended(self, step: subprocess.Popen[str]) -> Step:
        raw, _ = step.communicate(timeout=600)
        log = "\n".join(line for line in raw.splitlines() if not line.startswith("::add-mask::"))
        return Step(step.returncode, log, raw, parse_outputs(self.file("output")), self.file("summary"))


def chown(folder: Path) -> None:
    """Let all of it be the caller's."""
    for path in (folder, *folder.rglob("*")):
        os.lchown(path, CALLER, CALLER)


@pytest.fixture
def job(engine: Engine, tiny: tuple[Path, Path], tmp_path: Path) -> Iterator[Job]:
    root = Path(tempfile.mkdtemp(prefix="runner-"))  # pytest's own folders can only be entered by their owner
    root.chmod(0o755)
    runner = Runner(root, user=CALLER)
    for name in ("temp", "work space", "bin", "tools", "home"):
        (root / name).mkdir()
    shutil.copytree(ROOT / "bot", root / "action/bot", ignore=shutil.ignore_patterns("[!l_]*"))
    shutil.copy(ROOT / "action.yml", root / "action")
    (root / "bin/docker").write_text(CLIENT)
    (root / "bin/docker").chmod(0o755)
    (runner.temp / "event.json").write_text(EVENT)
    with DevHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        for repo, folder in zip(("demo/base", "demo/adapter"), tiny, strict=True):
            api.create_repo(repo)
            api.upload_folder(repo_id=repo, folder_path=folder)
        api.create_tag("demo/adapter", tag="v1")
        runner.env |= {
            "PATH": f"{root}/bin:/usr/local/bin:/usr/bin:/bin",
            "HOME": f"{root}/home",
            "DOCKER_HOST": engine.url,
            "ENGINE_LOG": f"{root}/engine.log",
            "RUNNER_MEMORY": "3g",
            "IMAGE": engine.image,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "GITHUB_ACTIONS": "true",
            "GITHUB_ACTION_PATH": f"{root}/action",
            "GITHUB_EVENT_NAME": "push",
            "GITHUB_EVENT_PATH": f"{runner.temp}/event.json",
            "GITHUB_OUTPUT": f"{runner.temp}/output",
            "GITHUB_STEP_SUMMARY": f"{runner.temp}/summary",
            "GITHUB_REF": "refs/tags/v1",
            "GITHUB_REF_NAME": "v1",
            "GITHUB_REF_TYPE": "tag",
            "GITHUB_REPOSITORY": "octo/adapters",
            "GITHUB_RUN_ID": "77",
            "GITHUB_WORKSPACE": str(runner.workspace),
            "RUNNER_TEMP": str(runner.temp),
            "RUNNER_TOOL_CACHE": f"{root}/tools",
        }
        yield Job(hub, api, runner, *tiny, read_token=hub.create_token(hub.user, role="read"))
    shutil.rmtree(root)
