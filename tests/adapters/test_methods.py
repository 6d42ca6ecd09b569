"""The table of methods is the pinned PEFT's, and an adapter's keys say which modules it changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bot.adapters.method_modules import is_target, modules_of
from bot.adapters.method_rules import engine_for, find_method
from bot.adapters.methods import COMMON, METHODS

IN_FRONT = "base_model.model.model.layers.0."


def test_every_method_of_the_pinned_peft_has_a_row() -> None:
    from peft import PeftType

    assert {one.value for one in PeftType} == METHODS.keys()


@pytest.mark.parametrize("peft_type", [name for name, method in METHODS.items() if method.engine])
def test_every_field_of_a_mergeable_config_is_known(peft_type: str) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[peft_type])}
    if peft_type in (
        "LORA",
        "ADALORA",
    ):  # the streaming engine's reader knows LoRA's others; AdaLoRA only inherits them
        fields = {name for name in fields if name not in _LORAS_OWN}
    assert fields <= METHODS[peft_type].settings | COMMON


_LORAS_OWN = frozenset({
    "alora_invocation_tokens", "arrow_config", "corda_config", "ensure_weight_tying", "eva_config", "layer_replication",
    "loftq_config", "lora_ga_config", "megatron_config", "qalora_group_size", "target_parameters",
    "trainable_token_indices", "use_qalora", "use_rslora", "alpha_pattern", "use_dora", "lora_bias", "use_bdlora",
    "velora_config", "monteclora_config", "kasa_config",
})  # fmt: skip


@pytest.mark.parametrize("peft_type", [name for name, method in METHODS.items() if not method.engine])
def test_what_has_no_merged_form_is_refused_by_name(peft_type: str) -> None:
    method, refusals = find_method({"peft_type": peft_type})
    assert method
    assert [one.code for one in refusals] == ["no-merged-form"]
    assert refusals[0].reason.endswith(".")


@pytest.mark.parametrize("said", [{}, {"peft_type": None}, {"peft_type": ["LORA"]}, {"peft_type": "BONE"}])
def test_an_unknown_method_is_refused(said: dict[str, Any]) -> None:
    method, refusals = find_method(said)
    assert method is None
    assert [one.code for one in refusals] == ["unknown-peft-type"]
    assert engine_for(said) is None


@pytest.mark.parametrize(
    ("said", "engine"),
    [
        ({"peft_type": "LORA"}, "streaming"),
        ({"peft_type": "LORA", "use_dora": True}, "streaming"),
        ({"peft_type": "LORA", "init_lora_weights": "mica"}, "streaming"),
        ({"peft_type": "LORA", "init_lora_weights": "eva"}, "streaming"),
        ({"peft_type": "LORA", "init_lora_weights": "pissa"}, "in-memory"),
        ({"peft_type": "LORA", "init_lora_weights": "olora"}, "in-memory"),
        ({"peft_type": "LORA", "kasa_config": {"beta": 1e-4}}, "in-memory"),
        ({"peft_type": "LORA", "use_bdlora": {"nblocks": 2}}, "phantom"),
        ({"peft_type": "IA3"}, "phantom"),
        ({"peft_type": "OSF"}, "in-memory"),
        ({"peft_type": "SUPERTUNING"}, "phantom"),
        ({"peft_type": "SUPERTUNING", "save_precomputed_indices": False}, "in-memory"),
    ],
)
def test_each_config_has_its_engine(said: dict[str, Any], engine: str) -> None:
    assert engine_for(said) == engine
    assert not find_method(said)[1]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"}, "changed-base"),
        ({"peft_type": "LORA", "init_lora_weights": "corda"}, "changed-base"),
        ({"peft_type": "LORA", "init_lora_weights": "lora_ga"}, "changed-base"),
        ({"peft_type": "LORA", "init_lora_weights": "loftq"}, "changed-base"),
        ({"peft_type": "LORA", "alora_invocation_tokens": [1]}, "alora"),
        ({"peft_type": "LORA", "arrow_config": {}, "use_qalora": True}, "qalora"),
        ({"peft_type": "LORA", "arrow_config": {"top_k": 2}}, "arrow"),
        ({"peft_type": "LORA", "megatron_config": {"a": 1}}, "megatron"),
        ({"peft_type": "LORA", "init_lora_weights": "pissa", "layer_replication": [[0, 2]]}, "mixed-methods"),
        ({"peft_type": "PVERA", "sample_at_inference": True}, "samples"),
        ({"peft_type": "FROD", "save_projection": False}, "not-rebuildable"),
        ({"peft_type": "PSOFT", "psoft_svd": "lowrank"}, "not-rebuildable"),
        ({"peft_type": "GLORA", "bias": "all"}, "bias"),
        ({"peft_type": "IA3", "surprise": 1}, "unknown-setting"),
    ],
)
def test_settings_that_cannot_be_merged_are_refused(said: dict[str, Any], code: str) -> None:
    assert code in [one.code for one in find_method(said)[1]]


def test_keys_name_their_modules_and_what_they_share() -> None:
    keys = [
        f"{IN_FRONT}self_attn.q_proj.vera_lambda_b", f"{IN_FRONT}self_attn.q_proj.vera_lambda_d",
        f"{IN_FRONT}mlp.down_proj.vera_lambda_b", f"{IN_FRONT}mlp.down_proj.vera_lambda_d",
        "base_model.vera_A", "base_model.vera_B", f"{IN_FRONT}self_attn.q_proj.base_layer.bias",
        "base_model.model.lm_head.weight",
    ]  # fmt: skip
    found = modules_of({"peft_type": "VERA"}, keys)
    assert found.modules == {
        "model.layers.0.self_attn.q_proj": ("weight",),
        "model.layers.0.mlp.down_proj": ("weight",),
    }
    assert found.shared == ("base_model.vera_A", "base_model.vera_B")
    assert set(found.whole) == set(keys[-2:])
    assert not found.refusals


def test_a_key_that_is_nobodys_is_refused() -> None:
    found = modules_of({"peft_type": "VERA"}, ["base_model.model.a.q_proj.hada_w1_a"])
    assert [one.code for one in found.refusals] == ["unknown-key"]
    assert found.refusals[0].keys == ("base_model.model.a.q_proj.hada_w1_a",)


def test_a_feed_forward_layers_bias_is_left_alone_by_ia3() -> None:
    keys = [f"{IN_FRONT}mlp.down_proj.ia3_l", f"{IN_FRONT}self_attn.k_proj.ia3_l"]
    found = modules_of({"peft_type": "IA3", "feedforward_modules": ["down_proj"]}, keys)
    assert found.modules["model.layers.0.mlp.down_proj"] == ("weight",)
    assert found.modules["model.layers.0.self_attn.k_proj"] == ("weight", "bias")


def test_beft_needs_a_bias() -> None:
    found = modules_of({"peft_type": "BEFT"}, [f"{IN_FRONT}self_attn.k_proj.beft_bias"])
    assert found.modules == {"model.layers.0.self_attn.k_proj": ("bias",)}
    assert found.required == (("model.layers.0.self_attn.k_proj", "bias"),)


def test_norms_are_changed_in_whatever_they_have() -> None:
    keys = [f"{IN_FRONT}norm.ln_tuning_layers.weight", f"{IN_FRONT}norm.ln_tuning_layers.bias"]
    assert modules_of({"peft_type": "LN_TUNING"}, keys).modules == {"model.layers.0.norm": ("weight", "bias")}


def test_where_no_key_names_a_module_the_config_does() -> None:
    said = {"peft_type": "UNILORA", "target_modules": ["q_proj"]}
    found = modules_of(said, ["base_model.unilora_theta_d"], ["model.layers.0.q_proj", "model.layers.0.v_proj"])
    assert found.modules == {"model.layers.0.q_proj": ("weight",)}


@pytest.mark.parametrize(
    "said",
    [
        {"target_modules": ["q_proj", "k_proj"]},
        {"target_modules": r".*\.q_proj"},
        {"target_modules": ["q_proj"], "exclude_modules": ["layers.1.q_proj"]},
        {"target_modules": ["q_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["h"]},
    ],
)
def test_targets_are_matched_as_peft_matches_them(said: dict[str, Any]) -> None:
    from peft import VBLoRAConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = VBLoRAConfig(**said)
    for module in (f"model.layers.{number}.{name}" for number in range(3) for name in ("q_proj", "k_proj", "xq_proj")):
        assert is_target(said, module) is bool(check_target_module_exists(config, module)), module
