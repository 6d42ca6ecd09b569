"""The sample of docs/support-matrix.md's architectures that every run of the tests tries; all of them: write_architectures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracle.one_architecture import try_one
from tests.oracle.write_architectures import BEGIN, QUICK, section, with_section


@pytest.mark.parametrize("model_type", QUICK)
def test_lora_on_all_linear_is_merged_and_proven(model_type: str, tmp_path: Path) -> None:
    found = try_one(model_type, tmp_path / "one")
    assert found.kind == "right", found


def test_the_section_counts_what_was_tried() -> None:
    one = {"note": "", "answers": None}
    known = {"a": {"kind": "right", **one}, "b": {"kind": "refused", **one}, "c": {"kind": "not built", **one}}
    page = with_section(f"# Page\n\n{BEGIN}\n\nold\n", section(known))
    assert "**1 of 2** that PEFT adapts are right" in page
    assert "1 are refused by name: `b`" in page
    assert "old" not in page
