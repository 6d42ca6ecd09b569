"""From the adapter's names to the checkpoint's: found for all, or refused; never guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.weights.names import Ambiguous, is_conv1d, is_tied_head, map_modules

LAYERS = [f"layers.{i}.self_attn.{p}" for i in (0, 1, 10) for p in ("q_proj", "v_proj")]


def weights(prefix: str) -> list[str]:
    return [prefix + layer + ".weight" for layer in LAYERS] + [prefix + "norm.weight"]


@pytest.mark.parametrize(
    ("module_prefix", "key_prefix"),
    [("model.", "model."), ("transformer.", ""), ("", "bert."), ("model.language_model.", "language_model.")],
)
def test_a_prefix_on_one_side_is_bridged(module_prefix: str, key_prefix: str) -> None:
    modules = [module_prefix + layer for layer in LAYERS]
    mapped = map_modules(modules, weights(key_prefix), "llama")
    assert mapped.keys == {module_prefix + layer: key_prefix + layer + ".weight" for layer in LAYERS}
    assert not mapped.missing


def test_two_towers_that_both_fit_are_ambiguous() -> None:
    with pytest.raises(Ambiguous):
        map_modules(LAYERS, weights("text_model.") + weights("vision_model."), "clip")


def test_the_same_name_beats_any_prefix() -> None:
    mapped = map_modules(LAYERS, weights("") + weights("draft."), None)
    assert set(mapped.keys.values()) == {layer + ".weight" for layer in LAYERS}


def test_a_module_the_base_lacks_is_missing_and_the_rest_is_found() -> None:
    mapped = map_modules(
        [*("model." + layer for layer in LAYERS), "model.layers.99.self_attn.q_proj"], weights("model."), ""
    )
    assert mapped.missing == ("model.layers.99.self_attn.q_proj",)
    assert len(mapped.keys) == len(LAYERS)


def test_a_module_is_not_found_by_the_tail_of_its_name_alone() -> None:
    mapped = map_modules(["layers.0.mlp.q_proj"], ["layers.0.self_attn.q_proj.weight"], None)
    assert mapped.missing == ("layers.0.mlp.q_proj",)


def test_a_prefix_ends_at_a_dot() -> None:
    assert map_modules(["sublayers.0.q"], ["layers.0.q.weight"], None).missing


@given(prefix=st.from_regex(r"([a-z_]{1,8}\.){0,3}", fullmatch=True), side=st.booleans())
def test_any_dotted_prefix_is_bridged(prefix: str, side: bool) -> None:
    modules, keys = ([prefix + m for m in LAYERS], weights("")) if side else (LAYERS, weights(prefix))
    mapped = map_modules(modules, keys, None)
    assert not mapped.missing
    assert all(
        key.removesuffix(".weight").endswith(module[len(prefix) if side else 0 :])
        for module, key in mapped.keys.items()
    )


@pytest.mark.parametrize(
    ("module", "config", "tied"),
    [
        ("lm_head", {}, True),
        ("lm_head", {"tie_word_embeddings": False}, False),
        ("lm_head", {"text_config": {"tie_word_embeddings": False}}, False),
        ("cls.predictions.decoder", {"tie_word_embeddings": True}, True),
        ("model.layers.0.self_attn.q_proj", {"tie_word_embeddings": True}, False),
    ],
)
def test_a_tied_head_is_known(module: str, config: dict, tied: bool) -> None:
    assert is_tied_head(module, config) is tied


def test_conv1d_is_told_by_the_model_not_by_the_shape() -> None:
    assert is_conv1d("transformer.h.0.attn.c_proj", "gpt2")
    assert not is_conv1d("transformer.h.0.attn.c_proj", "gpt_bigcode")
    assert not is_conv1d("lm_head", "gpt2")
