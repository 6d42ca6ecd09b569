"""A plan is read by a person: each warning once, a quantised form in a few words; as JSON nothing is cut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from compressed_tensors.quantization import preset_name_to_scheme
from transformers import BitsAndBytesConfig, FineGrainedFP8Config

from bot import config_summary
from tests.faults import quantised
from tests.stories.conftest import Command


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A plain base that bitsandbytes can quantise, and an adapter that was trained in four bits."""
    root = tmp_path_factory.mktemp("wide")
    built = quantised.build("nf4", root)
    adapter = Path(shutil.copytree(built.adapter, root / "qlora"))
    (adapter / "README.md").write_text("---\ntags: [qlora]\n---\n")
    return built.original, adapter


def test_every_warning_is_printed_once(adapter_merge: Command, wide: tuple[Path, Path]) -> None:
    base, adapter = wide
    warnings = json.loads(adapter_merge("plan", adapter, "--base", base, "--json").out)["warnings"]
    assert warnings
    for more in ((), ("--quiet",)):
        ran = adapter_merge("plan", adapter, "--base", base, *more)
        said = ran.out + ran.err
        assert [said.count(warning) for warning in warnings] == [1] * len(warnings), said


def test_a_quantised_form_is_said_in_a_few_words_and_whole_as_json(
    adapter_merge: Command, wide: tuple[Path, Path]
) -> None:
    base, adapter = wide
    ran = adapter_merge("plan", adapter, "--base", base, "--quantize", "nf4", "--json")
    said = "quantization_config: None → bitsandbytes nf4, double quantisation, 1 module left out"
    assert f"  config       {said}\n" in ran.err
    assert max(map(len, ran.err.splitlines())) < 500
    (change,) = [c for c in json.loads(ran.out)["config_changes"] if c["path"] == "quantization_config"]
    assert change["after"]["bnb_4bit_quant_type"] == "nf4"
    assert len(change["after"]) > 5


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (json.loads(BitsAndBytesConfig(load_in_4bit=True).to_json_string()), "bitsandbytes fp4"),
        (BitsAndBytesConfig(load_in_8bit=True).to_dict(), "bitsandbytes int8"),
        ({"load_in_8bit": True}, "bitsandbytes int8"),
        (FineGrainedFP8Config().to_dict(), "fp8 blocks of 128 × 128, dynamic activations"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq 4 bits, groups of 128"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["a", "b"]}, "mxfp4, 2 modules left out"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
             "config_groups": {"group_0": preset_name_to_scheme("W4A16", ["Linear"]).model_dump(mode="json")}},
            "compressed-tensors pack-quantized, 4-bit int by group, 1 module left out",
        ),
        ({}, "quantised"),
        ({"quant_method": ["x\n" * 900], "config_groups": [1], "ignore": 7, "bits": True}, None),
    ],
)  # fmt: skip
def test_the_fields_that_matter_are_named(config: dict[str, object], said: str | None) -> None:
    found = config_summary.value("text_config.quantization_config", json.loads(json.dumps(config)))
    assert said in (None, found)
    assert len(found) <= 200
    assert "\n" not in found


def test_another_long_value_is_cut() -> None:
    assert config_summary.value("id2label", {str(n): f"LABEL_{n}" for n in range(99)}).endswith("…")
    assert config_summary.value("vocab_size", 320) == "320"
