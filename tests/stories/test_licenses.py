"""What is merged is under the base's license and the adapter's: both texts go along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stories.conftest import Command


def merged(adapter_merge: Command, tiny: tuple[Path, Path], folder: Path, name: str, text: str) -> Path:
    """A merge of tiny's base, whose LICENSE says MIT, and its adapter with a license of its own."""
    base, adapter = tiny
    copied = folder / "adapter"
    copied.mkdir()
    for path in adapter.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    (copied / name).write_text(text)
    ran = adapter_merge("merge", copied, "--base", base, "--output", folder / "out", "--verify", "files", "--quiet")
    assert ran.code == 0, ran.err
    return folder / "out"


def license_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*LICENSE*")}


def finding(folder: Path) -> str:
    checks = json.loads((folder / "verification.json").read_text())["checks"]
    return next(check["status"] for check in checks if check["id"] == "license")


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        ("LICENSE", "Apache", {"LICENSE": "MIT", "LICENSE.adapter": "Apache"}),
        ("LICENSE", "MIT", {"LICENSE": "MIT"}),
        ("LICENSE.md", "Apache", {"LICENSE": "MIT", "LICENSE.md": "Apache"}),
    ],
)
def test_the_bases_license_and_the_adapters_are_both_kept(adapter_merge, tiny, tmp_path, name, text, kept) -> None:
    folder = merged(adapter_merge, tiny, tmp_path, name, text)
    assert license_of(folder) == kept
    assert finding(folder) == "pass"


def test_a_license_that_took_the_place_of_the_other_is_a_remark(adapter_merge, tiny, tmp_path) -> None:
    folder = merged(adapter_merge, tiny, tmp_path, "LICENSE", "Apache")
    (folder / "LICENSE.adapter").replace(folder / "LICENSE")
    ran = adapter_merge(
        "verify", folder, "--base", tiny[0], "--adapter", tmp_path / "adapter", "--verify", "files", "--json"
    )
    found = next(check for check in json.loads(ran.out)["checks"] if check["id"] == "license")
    assert found["status"] == "warn"
    assert "LICENSE of the base is not in the folder." in found["worst"] + [found["why"]]
