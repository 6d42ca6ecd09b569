"""`hf merge`, by the real `hf`: the extension's wheel, built and installed where `hf extensions` would put it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from huggingface_hub.cli.extensions import ExtensionManifest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "extensions" / "hf-merge"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's home with the extension in it, as `hf extensions install` leaves it."""
    root = tmp_path_factory.mktemp("hf-merge")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    source = root / "source"
    source.mkdir()
    for path in SOURCE.iterdir():
        if path.is_file():
            (source / path.name).write_bytes(path.read_bytes())
    built = subprocess.run([*build, str(root / "wheels"), str(source)], capture_output=True, text=True, check=False)
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("no index to take the build's setuptools from")
    assert built.returncode == 0, built.stderr
    (wheel,) = (root / "wheels").glob("hf_merge-*.whl")
    folder = root / "home" / ".local" / "share" / "hf" / "extensions" / "hf-merge"
    venv.EnvBuilder(symlinks=True).create(folder / "venv")
    install = [sys.executable, "-m", "pip", f"--python={folder / 'venv' / 'bin' / 'python'}", "install", "--quiet"]
    subprocess.run([*install, "--no-index", "--disable-pip-version-check", str(wheel)], check=True)
    ExtensionManifest(
        owner="adapter-merge",
        repo="hf-merge",
        repo_id="adapter-merge/hf-merge",
        short_name="merge",
        executable_path=str(folder / "venv" / "bin" / "hf-merge"),
        type="python",
        installed_at=datetime.now(UTC),
    ).save(folder)
    return root / "home"


def hf(home: Path, *arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(home), "PATH": path, "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def stand_in(folder: Path, program: str) -> str:
    """A PATH on which adapter-merge is this shell script."""
    folder.mkdir()
    (folder / "adapter-merge").write_text(f"#!/bin/sh\n{program}\n")
    (folder / "adapter-merge").chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_hf_hands_arguments_and_exit_code_on(home: Path, tmp_path: Path) -> None:
    path = stand_in(tmp_path / "bin", "printf '%s|' \"$@\"; exit 3")
    ran = hf(home, "merge", "run", "me/my adapter@v1", "--weights", "0.7,-0.3", "--", "$(x)", path=path)
    assert ran.returncode == 3
    assert ran.stdout == "run|me/my adapter@v1|--weights|0.7,-0.3|--|$(x)|"


def test_hf_runs_the_real_command(home: Path) -> None:
    ran = hf(home, "merge", "plan", "--help", path=f"{BIN}:/usr/bin:/bin")
    assert ran.returncode == 0, ran.stderr
    assert "adapter-merge plan" in ran.stdout


def test_without_adapter_merge_it_says_how_to_install_it(home: Path) -> None:
    ran = hf(home, "merge", "run", "me/my-adapter", path="/usr/bin:/bin")
    assert ran.returncode == 127
    assert "is not installed" in ran.stderr
    assert "uv tool install" in ran.stderr


def test_the_wheel_holds_one_module_and_requires_nothing(home: Path) -> None:
    (wheel,) = (home.parent / "wheels").glob("hf_merge-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        (metadata,) = (opened.read(name).decode() for name in names if name.endswith("METADATA"))
    assert [name for name in names if not name.startswith("hf_merge-")] == ["hf_merge.py"]
    assert "Requires-Dist" not in metadata


def test_its_version_and_its_python_are_those_of_adapter_merge() -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ours["requires-python"]
    assert list(project["scripts"]) == ["hf-merge"]
