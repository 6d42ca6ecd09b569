"""A release stamps its two images into action.yml, and into nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.workflows.files import GITHUB, OURS, ROOT, jobs

IMAGE, WITH_CUDA = (f"ghcr.io/{OURS}@sha256:{two * 32}" for two in ("ab", "ef"))


def stamp(path: Path, image: str, with_cuda: str = WITH_CUDA) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, GITHUB / "stamp_image.py", path, image, with_cuda]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(tmp_path / "action.yml").absolute()


def with_cuda(text: str) -> str:
    return str(yaml.safe_load(text)["runs"]["steps"][0]["env"]["CUDA_IMAGE"])


def test_stamping_changes_the_two_images_and_no_other_line(copy: Path) -> None:
    before = (ROOT / "action.yml").read_text()
    copy.write_text(before)
    assert stamp(copy, IMAGE).returncode == 0
    after = copy.read_text()
    assert yaml.safe_load(after)["inputs"]["image"]["default"] == IMAGE
    assert with_cuda(after) == WITH_CUDA
    pairs = zip(before.splitlines(), after.splitlines(), strict=True)
    assert len([pair for pair in pairs if pair[0] != pair[1]]) == 2


def test_stamping_twice_leaves_the_second_image(copy: Path) -> None:
    copy.write_text((ROOT / "action.yml").read_text())
    stamp(copy, IMAGE.replace("ab", "cd"))
    assert stamp(copy, IMAGE).returncode == 0
    assert yaml.safe_load(copy.read_text())["inputs"]["image"]["default"] == IMAGE


@pytest.mark.parametrize("image", [f"ghcr.io/{OURS}:1.0.0", "ghcr.io/x@sha256:12", f'{IMAGE}"\nx: y', ""])
def test_only_an_image_pinned_by_digest_is_stamped(copy: Path, image: str) -> None:
    copy.write_text((ROOT / "action.yml").read_text())
    for done in (stamp(copy, image), stamp(copy, IMAGE, image)):
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


def test_the_release_builds_both_images_and_stamps_each_in_its_own_place() -> None:
    release = dict(jobs(GITHUB / "workflows/release.yml"))
    built = {leg["torch"]: leg for leg in release["image"]["strategy"]["matrix"]["include"]}
    assert {name: leg["suffix"] for name, leg in built.items()} == {"cpu": "", "cuda": "-cuda"}
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"ARG TORCH_INDEX={built['cpu']['index']}\n" in dockerfile
    assert f"--build-arg TORCH_INDEX={built['cuda']['index']} ." in dockerfile
    assert f"--build-arg TORCH_INDEX={built['cuda']['index']} ." in (ROOT / "docs/gpu-runner.md").read_text()
    assert set(release["image"]["outputs"]) == set(built)
    stamping = next(step for step in release["publish"]["steps"] if step.get("name") == "Stamp")
    assert [stamping["env"][name] for name in ("IMAGE", "CUDA_IMAGE")] == [
        "${{ needs.image.outputs.cpu }}",
        "${{ needs.image.outputs.cuda }}",
    ]
    assert 'stamp_image.py action.yml "$IMAGE" "$CUDA_IMAGE"' in stamping["run"]


def test_before_a_release_both_images_are_none() -> None:
    text = (ROOT / "action.yml").read_text()
    assert yaml.safe_load(text)["inputs"]["image"]["default"] == with_cuda(text) == f"ghcr.io/{OURS}@sha256:{'0' * 64}"
