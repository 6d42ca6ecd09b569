"""The rules of naming, one at a time: prefixes, ambiguity, orders that cannot be merged, and the file they come from."""

from __future__ import annotations

import time

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from bot.checkpoint.conversions import known
from bot.checkpoint.locations import Ambiguous, Names
from bot.records import Stored
from tests.factory import ALL_ARCHITECTURES, build
from tests.pinned import pinned
from tools import make_conversions

LAYERS = [f"layers.{i}.self_attn.{p}.weight" for i in (0, 1, 10) for p in ("q_proj", "v_proj")]


def stored(shapes: dict[str, tuple[int, ...]]) -> dict[str, Stored]:
    return {
        key: Stored(key=key, file="model.safetensors", dtype="BF16", shape=shape, start=0, stop=0)
        for key, shape in shapes.items()
    }


def names_of(keys: list[str], **config: object) -> Names:
    return Names(stored(dict.fromkeys(keys, (4, 2))), config)


def keys_of(names: Names, parameters: list[str]) -> dict[str, str]:
    return {name: placement.rectangles[0].key for name, placement in names.find(parameters).placements.items()}


def with_prefix(prefix: str) -> list[str]:
    return [prefix + layer for layer in LAYERS] + [prefix + "norm.weight"]


@pytest.mark.parametrize(
    ("asked", "there"),
    [("model.", "model."), ("transformer.", ""), ("", "bert."), ("model.language_model.", "language_model.")],
)
def test_a_prefix_on_one_side_is_bridged(asked: str, there: str) -> None:
    found = keys_of(names_of(with_prefix(there)), [asked + layer for layer in LAYERS])
    assert found == {asked + layer: there + layer for layer in LAYERS}


@given(prefix=st.from_regex(r"([a-z_]{1,8}\.){0,3}", fullmatch=True), side=st.booleans())
def test_any_dotted_prefix_is_bridged(prefix: str, side: bool) -> None:
    asked, there = (prefix, "") if side else ("", prefix)
    found = keys_of(names_of(with_prefix(there)), [asked + layer for layer in LAYERS])
    assert found == {asked + layer: there + layer for layer in LAYERS}


def test_of_two_towers_the_one_whose_sizes_fit_is_meant() -> None:
    narrow = dict.fromkeys(with_prefix("vision_model."), (4, 2))
    names = Names(stored({**narrow, **dict.fromkeys(with_prefix("text_model."), (6, 3))}), {})
    found = names.find(LAYERS, dict.fromkeys(LAYERS, (6, 3))).placements
    assert {place.rectangles[0].key for place in found.values()} == {f"text_model.{layer}" for layer in LAYERS}
    with pytest.raises(Ambiguous):
        names.find(LAYERS, dict.fromkeys(LAYERS, (8, 8)))


def test_two_towers_that_both_fit_are_ambiguous() -> None:
    names = names_of(with_prefix("text_model.") + with_prefix("vision_model."))
    with pytest.raises(Ambiguous):
        names.find(LAYERS)


def test_two_towers_are_ambiguous_for_an_adapter_with_a_head_of_its_own_too() -> None:
    """A new head is in no base: that it is missing must not let a guess through."""
    names = names_of(with_prefix("text_model.") + with_prefix("vision_model."))
    with pytest.raises(Ambiguous):
        names.find([*LAYERS, "score.weight"])


def test_the_tower_that_has_all_of_the_layers_is_the_one() -> None:
    vision = [key for key in with_prefix("vision_model.") if ".10." not in key]
    found = keys_of(names_of(with_prefix("text_model.") + vision), LAYERS)
    assert set(found.values()) == {"text_model." + layer for layer in LAYERS}


def test_the_same_name_beats_any_prefix() -> None:
    assert set(keys_of(names_of(with_prefix("") + with_prefix("draft.")), LAYERS).values()) == set(LAYERS)


def test_the_part_whose_class_an_adapter_names_beats_the_same_name() -> None:
    """PEFT's names are those of the model that it was put on; a name of the whole model that reads the same is another's."""
    keys = [*with_prefix("model."), *with_prefix("talker.model."), *with_prefix("thinker.model.")]
    tensors, asked = stored(dict.fromkeys(keys, (4, 2))), [f"model.{layer}" for layer in LAYERS]
    for trained, front in (
        ("Qwen2_5OmniTalkerForConditionalGeneration", "talker."),
        ("Qwen2_5OmniThinkerForConditionalGeneration", "thinker."),
        ("Qwen2_5OmniForConditionalGeneration", ""),
        (None, ""),
    ):
        names = Names(tensors, {"architectures": ["Qwen2_5OmniForConditionalGeneration"]}, trained)
        assert set(keys_of(names, asked).values()) == {front + name for name in asked}, trained


def test_what_that_part_lacks_is_looked_for_nowhere_else() -> None:
    keys = [*with_prefix("talker.model."), *with_prefix("thinker.model."), "thinker.model.norm.bias"]
    config = {"architectures": ["Qwen2_5OmniForConditionalGeneration"]}
    names = Names(stored(dict.fromkeys(keys, (4, 2))), config, "Qwen2_5OmniTalkerForConditionalGeneration")
    assert names.find(["model.norm.weight", "model.norm.bias"]).missing == ("model.norm.bias",)


def test_a_head_beside_the_prefixed_body_keeps_its_name() -> None:
    names = names_of([*with_prefix(""), "lm_head.weight"])
    asked = ["transformer." + layer for layer in LAYERS] + ["lm_head.weight"]
    assert keys_of(names, asked)["lm_head.weight"] == "lm_head.weight"


def test_a_parameter_the_base_lacks_is_missing_and_the_rest_is_found() -> None:
    absent = "model.layers.99.self_attn.q_proj.weight"
    found = names_of(with_prefix("model.")).find([*("model." + layer for layer in LAYERS), absent])
    assert found.missing == (absent,)
    assert len(found.placements) == len(LAYERS)


def test_nothing_is_found_by_the_tail_of_its_name_alone() -> None:
    assert names_of(["layers.0.self_attn.q_proj.weight"]).find(["layers.0.mlp.q_proj.weight"]).missing
    assert names_of(["layers.0.q.weight"]).find(["sublayers.0.q.weight"]).missing
    assert names_of(["layers.1.q.weight", "layers.11.q.weight"]).find(["layers.111.q.weight"]).missing


def test_conv1d_is_told_by_the_model_not_by_the_shape() -> None:
    for config, transposed in (
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, True),
        ({"model_type": "gpt2", "architectures": ["SomebodysGPT2"]}, True),
        ({"model_type": "gpt_bigcode", "architectures": ["GPTBigCodeForCausalLM"]}, False),
        ({}, False),
    ):
        for prefix in ("", "transformer."):
            names = Names(stored({f"{prefix}h.0.attn.c_proj.weight": (64, 64)}), config)
            found = names.find(["transformer.h.0.attn.c_proj.weight"])
            rectangle = found.placements["transformer.h.0.attn.c_proj.weight"].rectangles[0]
            assert rectangle.transposed is transposed, config


def test_the_decoder_of_a_composite_model_is_of_its_own_kind() -> None:
    """An encoder-decoder over GPT-2: the decoder's class comes from config.json's decoder, and so do its Conv1Ds."""
    key = "decoder.transformer.h.0.attn.c_attn.weight"
    config = {
        "architectures": ["VisionEncoderDecoderModel"],
        "model_type": "vision-encoder-decoder",
        "encoder": {"model_type": "vit"},
    }
    for decoder, transposed in (("gpt2", True), ("bert", False)):
        names = Names(stored({key: (64, 192)}), config | {"decoder": {"model_type": decoder}})
        assert names.find([key]).placements[key].rectangles[0].transposed is transposed


def test_interleaved_rows_are_every_second_row() -> None:
    """Inkling's gate and up lie row by row in one tensor."""
    config = {"architectures": ["InklingForConditionalGeneration"], "model_type": "inkling_mm_model"}
    names = Names(stored({"model.llm.layers.0.mlp.w13_dn.weight": (8, 4)}), config)
    gate, up = (f"model.language_model.layers.0.mlp.{one}_proj.weight" for one in ("gate", "up"))
    placements = names.find([gate, up]).placements
    assert [
        range(*placements[one].rectangles[0].at_rows, placements[one].rectangles[0].step) for one in (gate, up)
    ] == [
        range(0, 7, 2),
        range(1, 8, 2),
    ]
    assert placements[gate].key is None
    own = "model.llm.layers.0.mlp.w13_dn.weight"
    assert names.find([own]).placements[own].key == own


def test_what_is_split_at_unknown_rows_is_unmergeable_with_a_reason() -> None:
    """Molmo2 splits one tensor into queries, keys and values; how many queries there are, the output projection says."""
    config = {"architectures": ["Molmo2ForConditionalGeneration"], "model_type": "molmo2"}
    fused = "model.transformer.blocks.0.self_attn.att_proj.weight"
    own = "model.transformer.blocks.0.self_attn.attn_out.weight"
    alone = Names(stored({fused: (128, 64)}), config)
    (asked,) = (one for one in alone._sources if one.endswith("k_proj.weight"))
    found = alone.find([asked])
    assert not found.placements
    assert not found.missing
    assert "parts of unknown sizes" in found.unmergeable[asked]
    whole = Names(stored({fused: (128, 64), own: (64, 64)}), config).find([asked])
    assert [rectangle.at_rows for rectangle in whole.placements[asked].rectangles] == [(64, 96)]


def test_a_fused_projection_is_split_into_rows_and_put_together_again() -> None:
    """HRM: the base has one gqkv_proj, transformers 5 has four projections; adapters of either age find their rows."""
    config = {"architectures": ["HrmTextForCausalLM"], "model_type": "hrm_text"}
    fused = "model.H_module.layers.0.attn.gqkv_proj.weight"
    names = Names(stored({fused: (128, 32)}), config)
    one = names._family.conversions.route(fused).targets
    found = names.find(list(one))
    assert [found.placements[name].rectangles[0].at_rows for name in one] == [(0, 32), (32, 64), (64, 96), (96, 128)]
    split = Names(stored(dict.fromkeys(one, (32, 32))), config)
    rectangles = split.find([fused]).placements[fused].rectangles
    assert [(rectangle.key, rectangle.out) for rectangle in rectangles] == [
        (name, (32 * at, 32 * at + 32)) for at, name in enumerate(one)
    ]


def test_a_missing_expert_is_not_passed_over() -> None:
    config = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
    moe = "model.layers.0.block_sparse_moe.experts"
    shapes = {f"{moe}.{e}.{w}.weight": (8, 4) if w != "w2" else (4, 8) for e in (0, 1, 3) for w in ("w1", "w2", "w3")}
    found = Names(stored(shapes), config).find(["model.layers.0.mlp.experts.gate_up_proj"])
    assert "without gaps" in found.unmergeable["model.layers.0.mlp.experts.gate_up_proj"]


def test_half_a_pair_is_not_passed_over() -> None:
    config = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
    shapes = {f"model.layers.0.block_sparse_moe.experts.{e}.w1.weight": (8, 4) for e in (0, 1)}
    found = Names(stored(shapes), config).find(["model.layers.0.mlp.experts.gate_up_proj"])
    assert "only some" in found.unmergeable["model.layers.0.mlp.experts.gate_up_proj"]


def test_a_model_with_its_own_code_gets_no_renames_that_are_not_its_own() -> None:
    names = names_of(["model.layers.0.block_sparse_moe.w1.weight"], architectures=["Mine"], auto_map={"AutoModel": "x"})
    assert names.find(["model.layers.0.mlp.w1.weight"]).missing


@pytest.mark.parametrize(
    ("config", "tied", "scaled"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, False, False),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True}, True, False),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, True, False),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "tie_word_embeddings": False}, False, False),
        ({"architectures": ["GPT2Model"], "model_type": "gpt2", "tie_word_embeddings": True}, False, False),
        (
            {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "tie_word_embeddings": False},
            True,
            True,
        ),
        ({"architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5"}, True, False),
        (
            {
                "architectures": ["Qwen2VLForConditionalGeneration"],
                "model_type": "qwen2_vl",
                "text_config": {"tie_word_embeddings": True},
            },
            True,
            False,
        ),
    ],
)
def test_a_tied_head_is_known(config: dict[str, object], tied: bool, scaled: bool) -> None:
    names = Names({}, config)
    assert (names.tied, names.scaled_by_tying) == (tied, scaled)


def test_a_large_index_takes_no_time() -> None:
    """DeepSeek-V3: 45 000 keys in one file list; the fused names and the per-expert ones."""
    shapes = {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight": (7168, 2048)
        if part == "down_proj"
        else (2048, 7168)
        for layer in range(3, 61)
        for expert in range(256)
        for part in ("gate_proj", "up_proj", "down_proj")
    }
    tensors = stored(shapes)
    fused = [
        f"model.layers.{layer}.mlp.experts.{part}" for layer in range(3, 61) for part in ("gate_up_proj", "down_proj")
    ]
    began = time.process_time()
    found = Names(tensors, {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"}).find(fused)
    took = time.process_time() - began
    assert sum(len(placement.rectangles) for placement in found.placements.values()) == len(shapes)
    assert took < 3  # 0.6 s alone; this machine is shared


# --- the file -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_file_is_that_of_the_pinned_transformers() -> None:
    """All of it but the classes. After an upgrade: `python -m tools.make_conversions`, and read the diff."""
    assert known()["transformers"] == pinned("transformers")
    if transformers.__version__ != pinned("transformers"):
        pytest.skip(f"transformers {transformers.__version__} is installed, which may convert more")
    lists, by_name = make_conversions.mappings()
    assert known()["lists"] == lists
    assert known()["names"] == by_name
    assert known()["tying"] == make_conversions.tying()
    assert known()["scaled"] == make_conversions.scaled_by_tying()


@pytest.mark.slow
def test_the_classes_in_the_file_are_those_of_the_pinned_transformers() -> None:
    """The classes that the tests use, their sub-models, and every fifteenth of the rest (all of them take minutes)."""
    every = make_conversions.model_classes()
    named = {type(build(name)).__name__ for name in ALL_ARCHITECTURES}
    named |= {part for name in named for _, part in known()["classes"].get(name, {}).get("parts", {}).values()}
    named |= set(sorted(known()["classes"])[::15])
    rows = make_conversions.class_rows(sorted(named & every.keys()))
    for name, row in rows.items():
        assert known()["classes"].get(name, row) == row, name
    assert len(rows) > 100
