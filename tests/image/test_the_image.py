"""What is in the image, what is not, and that it runs as anybody."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.image.conftest import CALLER, Engine, Job

pytestmark = pytest.mark.slow
WITHOUT_WRITING = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none")
SECRET = re.compile(
    rb"\b(hf_[A-Za-z0-9]{34}|gh[opsru]_[A-Za-z0-9]{36}|github_pat_\w{50,})\b|-----BEGIN [A-Z ]*PRIVATE KEY-----\n"
)
OURS = "opt/adapter-merge/"


def python(engine: Engine, program: str, user: int = CALLER) -> str:
    arguments = ("run", "--rm", *WITHOUT_WRITING, "--tmpfs", "/tmp", "--user", f"{user}:{user}")
    return engine.podman(*arguments, "--entrypoint", "python", engine.image, "-c", program)


@pytest.mark.parametrize("user", [0, CALLER, 987654])
def test_it_runs_as_any_user_and_writes_nothing(engine: Engine, user: int) -> None:
    program = (
        "import getpass, tempfile, torch; from transformers import AutoTokenizer; from peft import LoraConfig; "
        "tempfile.NamedTemporaryFile(); print(getpass.getuser(), torch.ones(2, 2).matmul(torch.ones(2)).tolist())"
    )
    assert python(engine, program, user) == "adapter-merge [2.0, 2.0]\n"


def test_the_command_merges_two_folders_as_on_a_laptop(engine: Engine, job: Job) -> None:
    for name, source in (("base", job.base), ("adapter", job.adapter)):
        job.own(source, name)
    workspace = str(job.runner.workspace)
    said = engine.podman(
        "run", "--rm", *WITHOUT_WRITING, "--tmpfs", "/tmp", "--user", f"{CALLER}:{CALLER}",
        "--volume", f"{workspace}:{workspace}", "--workdir", workspace,
        engine.image, "merge", "./adapter", "--base", "./base", "--output", "merged",
    )  # fmt: skip
    assert "verified" in said
    assert (job.runner.workspace / "merged/verification.json").stat().st_uid == CALLER


def test_it_stops_when_it_is_told_to(engine: Engine) -> None:
    name = "adapter-merge-stops"
    running = subprocess.Popen(
        ["podman", "run", "--rm", "--name", name, "--tmpfs", "/tmp", engine.image, "hub", "/tmp/hub"],
        env=engine.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdout is not None
    assert "A local Hub" in running.stdout.readline()
    engine.podman("stop", "--time", "20", name)
    assert running.wait() == 0, "Ctrl-C and SIGTERM are how a Hub ends"


def test_its_settings_and_labels(engine: Engine) -> None:
    config = json.loads(engine.podman("image", "inspect", engine.image))[0]["Config"]
    settings = dict(pair.split("=", 1) for pair in config["Env"])
    assert settings["ADAPTER_MERGE_IMAGE"] == "1"
    assert settings["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert settings["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert config["Entrypoint"] == ["adapter-merge"]
    labels = {name.rpartition(".")[2] for name in config["Labels"] if name.startswith("org.opencontainers.image.")}
    assert labels >= {"title", "description", "licenses", "version", "revision", "source"}


@pytest.fixture(scope="session")
def saved(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image as an archive: its layers, its settings and its history."""
    path = tmp_path_factory.mktemp("saved") / "image.tar"
    engine.podman("save", "--output", str(path), engine.image)
    return path


def layers(saved: Path) -> dict[str, bytes]:
    """Files of ours by name, and every JSON of the archive itself."""
    found = {}
    with tarfile.open(saved) as archive:
        for member in archive.getmembers():
            opened = archive.extractfile(member)
            if member.name.endswith(".json") and opened:
                found[member.name] = opened.read()
            elif member.name.endswith(".tar") and opened:
                with tarfile.open(fileobj=opened) as layer:
                    for file in layer:
                        inner = layer.extractfile(file) if file.isfile() and file.name.startswith(OURS) else None
                        if inner:
                            found[file.name] = inner.read()
    return found


def test_no_token_and_nothing_of_the_checkout_but_the_package_is_in_a_layer(saved: Path) -> None:
    found = layers(saved)
    assert len(found) > 5000
    secrets = {name: hit[0] for name, content in found.items() if (hit := SECRET.search(content))}
    # transformers ships the token of its own tests' account on another Hub.
    assert {name for name in secrets if not name.endswith("/transformers/testing_utils.py")} == set(), secrets
    assert not [name for name in found if re.search(r"/(\.git|\.env|\.netrc|pip\.conf)(/|$)", name)]
    ours = [name for name in found if "/site-packages/bot/" in name]
    assert len(ours) > 80
    assert not [name for name in found if "/site-packages/tests/" in name]


def test_what_no_merge_reads_is_left_out(saved: Path) -> None:
    packages = {name.partition("site-packages/")[2] for name in layers(saved)}
    assert not [name for name in packages if name.startswith(("pip/", "kernels/", "torch/include/", "torch/test/"))]
    assert not [name for name in packages if name.startswith(("numpy/_core/tests/", "sympy/core/tests/"))]
    assert [name for name in packages if name == "torch/bin/torch_shm_manager"]
    libraries = {name for name in packages if name.startswith("bitsandbytes/libbitsandbytes_")}
    assert libraries == {"bitsandbytes/libbitsandbytes_cpu.so"}, "a CPU build of torch has no use for the others"


@pytest.mark.parametrize("loop", ["numerics/_exact", "checks/elementwise/_rederive", "checks/elementwise/_at_random"])
def test_the_inner_loops_are_compiled(saved: Path, loop: str) -> None:
    assert [name for name in layers(saved) if re.search(rf"/bot/{loop}\.\S+\.so$", name)]


def test_it_stays_small(engine: Engine, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = int(engine.podman("image", "inspect", "--format", "{{.Size}}", engine.image))
    base = int(
        engine.podman("image", "inspect", "--format", "{{.Size}}", "docker.io/library/python:3.11-slim-bookworm")
    )
    with capsys.disabled():
        print(f"\n  {(size - base) / 1e6:.0f} MB over a base of {base / 1e6:.0f} MB")
    assert size - base < 900e6
