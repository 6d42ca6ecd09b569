"""Scaling is PEFT's own; whatever else an adapter holds is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.records import Stored
from bot.weights.adapter import pair_up, read_settings, scaling_of

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
    assert settings_
    assert not refusals
    rank = ranks.get(get_pattern_key(list(ranks), module), 8)
    alpha = alphas.get(get_pattern_key(list(alphas), module), 16)
    assert scaling_of(settings_, module) == (rank, alpha, alpha / (rank**0.5 if rslora else rank))


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("use_dora", True, "dora"),
        ("lora_bias", True, "lora-bias"),
        ("bias", "all", "bias"),
        ("modules_to_save", ["classifier"], "modules-to-save"),
        ("layer_replication", [[0, 4]], "layer-replication"),
        ("alora_invocation_tokens", [1], "alora"),
        ("init_lora_weights", "pissa_niter_4", "changed-base"),
        ("init_lora_weights", "olora", "changed-base"),
        ("megatron_config", {"a": 1}, "megatron"),
        ("target_parameters", ["experts.gate_up_proj"], "target-parameters"),
        ("a_field_of_tomorrow", True, "unknown-setting"),
    ],
)
def test_a_setting_that_is_not_merged_is_refused_by_name(field: str, value: object, code: str) -> None:
    _, refusals = read_settings(LORA | {field: value})
    assert [refusal.code for refusal in refusals] == [code]
    assert all(refusal.reason.endswith(".") and refusal.remedy.endswith(".") for refusal in refusals)


@pytest.mark.parametrize("config", [{}, {"peft_type": None}, {"peft_type": "PREFIX_TUNING"}, {"peft_type": "NO_SUCH"}])
def test_an_unknown_peft_type_is_refused(config: dict) -> None:
    found, refusals = read_settings(config)
    assert found is None
    assert [refusal.code for refusal in refusals] == ["unknown-peft-type"]


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
@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_pairs_are_found_under_every_spelling(prefix: str, middle: str) -> None:
    keys = [f"{prefix}model.layers.0.q_proj.lora_{side}{middle}.weight" for side in "AB"]
    pairs, refusals = pair_up(map(tensor, keys))
    assert [(pair.module, pair.keys) for pair in pairs] == [("model.layers.0.q_proj", tuple(keys))]
    assert refusals == []


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("base_model.model.q.lora_magnitude_vector.weight", "dora"),
        ("base_model.model.embed_tokens.lora_embedding_A", "embedding-lora"),
        ("base_model.model.q.lora_B.bias", "lora-bias"),
        ("base_model.model.q.bias", "bias"),
        ("base_model.model.lm_head.weight", "modules-to-save"),
        ("base_model.model.embed_tokens.token_adapter.trainable_tokens_delta", "trainable-tokens"),
        ("base_model.model.experts.base_layer.lora_A.weight", "target-parameters"),
        ("base_model.model.q.lora_A.weight", "half-a-pair"),
        ("something.else", "unknown-key"),
    ],
)
def test_every_other_tensor_is_claimed_by_a_refusal(key: str, code: str) -> None:
    pairs, refusals = pair_up([tensor(key)])
    assert pairs == []
    assert [(refusal.code, refusal.keys) for refusal in refusals] == [(code, (key,))]
