"""Scaling is PEFT's own; every tensor of an adapter is read for what it does, or refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.adapters import method_rules
from bot.adapters.lora import read_changes
from bot.adapters.lora_config import LoraSettings, read_settings, scaling_of
from bot.records import Stored

LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}


def tensor(key: str) -> Stored:
    return Stored(key=key, file="adapter_model.safetensors", dtype="F32", shape=(4, 4), start=0, stop=64)


segments = st.sampled_from(["model", "layers", "0", "1", "10", "self_attn", "q_proj", "v_proj", "mlp"])
modules = st.lists(segments, min_size=1, max_size=5).map(".".join)
patterns = st.one_of(
    modules, st.sampled_from([r"q_proj|v_proj", r"layers\.\d+\.mlp", r"^model\.layers", ".*", r"1\..*"])
)


@settings(max_examples=300, deadline=None)
@given(
    module=modules,
    ranks=st.dictionaries(patterns, st.integers(1, 64), max_size=3),
    alphas=st.dictionaries(patterns, st.integers(1, 64), max_size=3),
    rslora=st.booleans(),
)
def test_patterns_match_as_they_do_in_peft(module: str, ranks: dict, alphas: dict, rslora: bool) -> None:
    from peft.utils.other import get_pattern_key

    settings_, refusals = read_settings(LORA | {"rank_pattern": ranks, "alpha_pattern": alphas, "use_rslora": rslora})
    assert not refusals
    rank = ranks.get(get_pattern_key(list(ranks), module), 8)
    alpha = alphas.get(get_pattern_key(list(alphas), module), 16)
    assert scaling_of(settings_, module) == (rank, alpha, alpha / (rank**0.5 if rslora else rank))


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("alora_invocation_tokens", [1], "alora"),
        ("arrow_config", {"top_k": 3}, "arrow"),
        ("init_lora_weights", "pissa_niter_4", "changed-base"),
        ("init_lora_weights", "loftq", "changed-base"),
        ("megatron_config", {"a": 1}, "megatron"),
        ("use_qalora", True, "qalora"),
        ("a_field_of_tomorrow", True, "unknown-setting"),
    ],
)
def test_a_setting_that_is_not_merged_is_refused_by_name(field: str, value: object, code: str) -> None:
    config = LORA | {field: value}
    refusals = [*method_rules.find_method(config)[1], *read_settings(config)[1]]
    assert [refusal.code for refusal in refusals] == [code]
    assert all(refusal.reason.endswith(".") and refusal.remedy.endswith(".") for refusal in refusals)


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({}, "unknown-peft-type"),
        ({"peft_type": None}, "unknown-peft-type"),
        ({"peft_type": "NO_SUCH"}, "unknown-peft-type"),
        ({"peft_type": "PREFIX_TUNING"}, "no-merged-form"),
    ],
)
def test_a_method_that_nobody_merges_is_refused(config: dict, code: str) -> None:
    assert [refusal.code for refusal in method_rules.find_method(config)[1]] == [code]


@pytest.mark.parametrize(
    "wrong", [{"r": 0}, {"r": "8"}, {"lora_alpha": float("nan")}, {"rank_pattern": {"(": 3}}, {"alpha_pattern": [1]}]
)
def test_a_config_that_makes_no_sense_is_refused(wrong: dict) -> None:
    assert [refusal.code for refusal in read_settings(LORA | wrong)[1]] == ["bad-config"]


def test_a_config_saved_by_this_peft_is_accepted() -> None:
    import json

    from peft import LoraConfig

    saved = json.loads(json.dumps(LoraConfig(target_modules=["q"]).to_dict(), default=list))
    assert read_settings(saved)[1] == []


@pytest.mark.parametrize("middle", ["", ".default"])
@pytest.mark.parametrize(
    "prefix",
    ["base_model.model.", "", "module.base_model.model.", "base_model.model._orig_mod.", "_fsdp_wrapped_module."],
)
def test_pairs_are_found_under_every_spelling(prefix: str, middle: str) -> None:
    keys = [f"{prefix}model.layers.0.q_proj.lora_{side}{middle}.weight" for side in "AB"]
    changes = read_changes(map(tensor, keys), LoraSettings())
    assert [(pair.module, pair.a.key, pair.b.key) for pair in changes.pairs] == [("model.layers.0.q_proj", *keys)]
    assert changes.refusals == ()


@pytest.mark.parametrize("end", ["", ".weight", ".default", ".default.weight"])
def test_magnitudes_are_found_in_every_form_that_peft_has_written(end: str) -> None:
    keys = ["q.lora_A.weight", "q.lora_B.weight", f"q.lora_magnitude_vector{end}"]
    (pair,) = read_changes(map(tensor, keys), LoraSettings(dora=True)).pairs
    assert pair.magnitude
    assert pair.magnitude.key == keys[2]


@pytest.mark.parametrize(
    ("key", "settings", "expected"),
    [
        ("lm_head.weight", LoraSettings(saved=("lm_head",)), ("lm_head.weight", True)),
        ("lm_head.modules_to_save.weight", LoraSettings(saved=("lm_head",)), ("lm_head.weight", True)),
        ("score.modules_to_save.default.weight", LoraSettings(saved=("score",)), ("score.weight", True)),
        ("cls.dense.weight", LoraSettings(saved=("cls",)), ("cls.dense.weight", True)),
        ("model.embed_tokens.weight", LoraSettings(), ("model.embed_tokens.weight", False)),
        ("model.embed_tokens.base_layer.weight", LoraSettings(), ("model.embed_tokens.weight", False)),
        ("q.bias", LoraSettings(bias="all"), ("q.bias", True)),
        ("q.base_layer.bias", LoraSettings(bias="lora_only"), ("q.bias", True)),
    ],
)
def test_whole_tensors_are_trained_ones_or_copies_of_the_base(key: str, settings, expected) -> None:
    (whole,) = read_changes([tensor(f"base_model.model.{key}")], settings).wholes
    assert (whole.parameter, whole.trained) == expected


def test_stacked_experts_say_how_deep_they_were_wrapped() -> None:
    keys = [f"experts{deep}.lora_{side}.weight" for deep in ("", ".base_layer") for side in "AB"]
    assert {(pair.module, pair.depth) for pair in read_changes(map(tensor, keys), LoraSettings()).pairs} == {
        ("experts", 0),
        ("experts", 1),
    }


def test_token_rows_need_as_many_indices() -> None:
    key = "embed_tokens.token_adapter.trainable_tokens_delta"
    (tokens,) = read_changes([tensor(key)], LoraSettings(tokens={"embed_tokens": (7, 1, 5, 3)})).tokens
    assert tokens.rows == (7, 1, 5, 3)
    (refusal,) = read_changes([tensor(key)], LoraSettings(tokens=(1, 2))).refusals
    assert (refusal.code, refusal.keys) == ("trainable-tokens", (key,))


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        (["q.lora_A.weight"], "half-a-pair"),
        (["q.lora_magnitude_vector"], "half-a-pair"),
        (["q.lora_A.weight", "q.lora_B.weight", "q.lora_B.x.weight"], "repeated-key"),
        (["something.else"], "unknown-key"),
        (["alone"], "unknown-key"),
    ],
)
def test_every_other_tensor_is_claimed_by_a_refusal(keys: list[str], code: str) -> None:
    (refusal,) = read_changes(map(tensor, keys), LoraSettings()).refusals
    assert (refusal.code, refusal.keys) == (code, (keys[-1],))


def test_two_adapters_in_one_file_are_refused() -> None:
    keys = [f"{module}.lora_{side}.{module}.weight" for module in ("a", "b") for side in "AB"]
    assert [refusal.code for refusal in read_changes(map(tensor, keys), LoraSettings()).refusals] == [
        "several-adapters"
    ]
