"""bot/checkpoint/conversions.json: a class that could not be built has no row of its own, and says why."""

from __future__ import annotations

import pytest

from bot.checkpoint.conversions import known
from tools.make_conversions import STATED, stated_reason

CLASSES = known()["classes"]


def test_a_class_without_a_row_of_its_own_has_a_stated_reason() -> None:
    unbuilt = {name: row["unbuilt"] for name, row in CLASSES.items() if "unbuilt" in row}
    assert unbuilt
    for name, why in unbuilt.items():
        assert why == STATED.get(name) or why in (
            "needs timm",
            "needs natten",
            "needs detectron2",
            "needs torchaudio",
        ), name


def test_the_generator_fails_for_a_class_that_nobody_stated_a_reason_for() -> None:
    assert (
        stated_reason("AnyModel", "ImportError: AnyModel requires the timm library but it was not found")
        == "needs timm"
    )
    with pytest.raises(SystemExit, match="NewModel has no row"):
        stated_reason("NewModel", "TypeError: 'NoneType' object is not subscriptable")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Dots1Model", "experts"),
        ("HunYuanMoEV1Model", "experts"),
        ("Lfm2MoeModel", "experts"),
        ("Dots1ForCausalLM", "head"),
        ("EsmForMaskedLM", "head"),
        ("AyaVisionForConditionalGeneration", "parts"),
        ("Emu3ForConditionalGeneration", "parts"),
        ("Qwen3OmniMoeForConditionalGeneration", "parts"),
        ("DeepseekOcr2ForConditionalGeneration", "parts"),
        ("ProphetNetForConditionalGeneration", "shared"),
        ("ZambaModel", "shared"),
    ],
)
def test_classes_whose_default_config_makes_no_model_have_their_rows(name: str, key: str) -> None:
    assert CLASSES[name][key]
