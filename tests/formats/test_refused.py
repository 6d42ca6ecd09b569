"""A base that nobody reads is refused by its name, with that of the 16-bit model it was made from."""

from __future__ import annotations

import pytest

from bot import formats
from bot.formats.unsupported import NAMES, parent_of, refusal_of
from bot.records import Json


@pytest.mark.parametrize("method", sorted(NAMES))
def test_every_form_has_a_name(method: str) -> None:
    config: Json = {"quantization_config": {"quant_method": method}}
    refusal = refusal_of(config, {"base_model": "org/model"})
    assert refusal.code == "quantised-base"
    assert refusal.exit_code == 3
    assert NAMES[method] in refusal.reason
    assert "--base org/model" in refusal.remedy


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq", "quark", "bitnet", "something-new"])
def test_what_has_no_reader_is_refused_whole(method: str) -> None:
    config: Json = {"quantization_config": {"quant_method": method}}
    (refusal,) = formats.unpack({}, config, {}, {}).refusals
    assert NAMES.get(method, method) in refusal.reason
    assert "--base" in refusal.remedy


def test_modelopts_other_kinds_are_named() -> None:
    config: Json = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
    (refusal,) = formats.unpack({}, config, {}, {}).refusals
    assert "ModelOpt NVFP4" in refusal.reason


@pytest.mark.parametrize(
    ("repo", "parent"),
    [
        ("unsloth/Llama-3.2-1B-bnb-4bit", "unsloth/Llama-3.2-1B"),
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit", "unsloth/Qwen3-4B"),
        ("unsloth/mistral-7b-v0.3-bnb-4bit", "unsloth/mistral-7b-v0.3"),
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-32B-AWQ", "Qwen/Qwen3-32B"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen3-8B-GGUF", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507-FP8", "Qwen/Qwen3-30B-A3B-Instruct-2507"),
        ("org/Model-7B-FP8-dynamic", "org/Model-7B"),
        ("org/Model-7B-quantized.w4a16", "org/Model-7B"),
        ("org/Model-7B-W8A8", "org/Model-7B"),
        ("org/Model-7B-4bit", "org/Model-7B"),
        ("org/Model-7B-AWQ-4bit", "org/Model-7B"),
        ("org/Model-7B-GPTQ-4bit-128g", "org/Model-7B"),
        ("org/Model-7B-nvfp4", "org/Model-7B"),
        ("org/Model-7B-4.0bpw-exl2", "org/Model-7B"),
        ("org/Model-7B-hqq_4bit", "org/Model-7B"),
        ("org/Model-7B", None),
        ("org/-FP8", None),
        ("RedHatAI/Meta-Llama-3-8B-Instruct-FP8", None),  # it has no such 16-bit model: the card must say
        ("TheBloke/Llama-2-7B-GPTQ", None),
        (None, None),
    ],
)
def test_names_say_what_a_model_was_made_from(repo: str | None, parent: str | None) -> None:
    assert parent_of({}, {}, repo) == parent


@pytest.mark.parametrize(
    ("card", "parent"),
    [
        ({"base_model": "meta-llama/Llama-3.2-1B"}, "meta-llama/Llama-3.2-1B"),
        ({"base_model": ["meta-llama/Llama-3.2-1B"]}, "meta-llama/Llama-3.2-1B"),
        ({"base_model": "a/b", "base_model_relation": "quantized"}, "a/b"),
        ({"base_model": "a/b", "base_model_relation": "finetune"}, "org/x"),  # other weights: not what it was made from
        ({"base_model": ["a/b", "c/d"]}, "org/x"),
        ({"base_model": "../../etc/passwd"}, "org/x"),
        ({"base_model": "https://example.com/a/b"}, "org/x"),
        ({"base_model": "org/x-FP8"}, "org/x"),  # itself
        ({"base_model": 3}, "org/x"),
        ({}, "org/x"),
    ],
)
def test_the_card_comes_before_the_name(card: Json, parent: str) -> None:
    assert parent_of({}, card, "org/x-FP8") == parent


def test_a_config_is_believed_where_it_names_a_namesake() -> None:
    """It may also name what a finetune began from, which has other weights."""
    assert (
        parent_of({"_name_or_path": "meta-llama/Llama-3-8B"}, {}, "TheBloke/Llama-3-8B-GPTQ") == "meta-llama/Llama-3-8B"
    )
    assert parent_of({"_name_or_path": "meta-llama/Llama-3-8B"}, {}, "me/my-tune-GPTQ") == "me/my-tune"
    assert parent_of({"_name_or_path": "unsloth/llama-3-8b-bnb-4bit"}, {}, None) == "unsloth/llama-3-8b"
    assert parent_of({"_name_or_path": "/workspace/models/x"}, {}, None) is None
