"""A release stamps its image into action.yml, and into nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.workflows.files import GITHUB, OURS, ROOT

IMAGE = f"ghcr.io/{OURS}@sha256:{'ab' * 32}"


def stamp(path: Path, image: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, GITHUB / "stamp_image.py", path, image]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(tmp_path / "action.yml").absolute()


def test_stamping_changes_the_images_default_and_no_other_line(copy: Path) -> None:
    before = (ROOT / "action.yml").read_text()
    copy.write_text(before)
    assert stamp(copy, IMAGE).returncode == 0
    after = copy.read_text()
    assert yaml.safe_load(after)["inputs"]["image"]["default"] == IMAGE
    pairs = zip(before.splitlines(), after.splitlines(), strict=True)
    assert len([pair for pair in pairs if pair[0] != pair[1]]) == 1


def test_stamping_twice_leaves_the_second_image(copy: Path) -> None:
    copy.write_text((ROOT / "action.yml").read_text())
    stamp(copy, IMAGE.replace("ab", "cd"))
    assert stamp(copy, IMAGE).returncode == 0
    assert yaml.safe_load(copy.read_text())["inputs"]["image"]["default"] == IMAGE


@pytest.mark.parametrize("image", [f"ghcr.io/{OURS}:1.0.0", "ghcr.io/x@sha256:12", f'{IMAGE}"\nx: y', ""])
def test_only_an_image_pinned_by_digest_is_stamped(copy: Path, image: str) -> None:
    copy.write_text((ROOT / "action.yml").read_text())
    done = stamp(copy, image)
    assert done.returncode
    assert "not an image pinned by digest" in done.stderr
    assert copy.read_text() == (ROOT / "action.yml").read_text()


@pytest.mark.parametrize(
    "text", ["name: x\n", "inputs:\n  image:\n    description: no default\n  other:\n    default: x\n"]
)
def test_a_file_without_the_place_is_left_alone(copy: Path, text: str) -> None:
    copy.write_text(text)
    assert stamp(copy, IMAGE).returncode
    assert copy.read_text() == text
