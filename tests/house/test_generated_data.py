"""Data that a program wrote says which one: by that, and with the next libraries, it is written again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = sorted([*(ROOT / "bot").rglob("*.json"), ROOT / "docs" / "support-matrix.md", ROOT / "docs" / "a-run.svg"])


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_generated_data_names_its_generator(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    makers = re.findall(r"(?:python -m |\"generator\": \"|[Dd]rawn by )([\w./]+?)(?:\.py)?[`\"\s]", text)
    assert makers, f"{path.name} does not say what made it"
    for maker in makers:
        assert (ROOT / (maker.replace(".", "/") + ".py")).is_file(), maker
