"""What is predicted of the combined adapter is what is written; and what cannot be combined is refused by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bot.adapters.combine import combine, notation
from bot.adapters.combine.prediction import combined_in
from bot.checkpoint.header import read_header
from bot.errors import Refused, Usage
from bot.records import Combination
from tests.adapters.combine.inputs import combined, deltas, each_kind, edit, edit_weights, numbers, predicted, save


def codes(adapters: list[Path], **how: Any) -> set[str]:
    return {refusal.code for refusal in predicted(adapters, **how).refusals}


# --- the prediction -----------------------------------------------------------------------------------------------


@each_kind
def test_the_header_and_the_config_are_as_predicted(unlike: list[Path], tmp_path: Path, how: dict[str, Any]) -> None:
    found = predicted(unlike, weights=(0.5, -2.0), **how)
    folder = combine(found, unlike, tmp_path / "sum")
    assert read_header(folder / "adapter_model.safetensors", role="adapter") == found.source.headers[0]
    assert (folder / "adapter_config.json").read_bytes() == found.source.texts["adapter_config.json"]
    assert {entry.name for entry in found.source.files} == {path.name for path in folder.iterdir()}


@each_kind
def test_the_same_adapters_give_the_same_bytes(unlike: list[Path], tmp_path: Path, how: dict[str, Any]) -> None:
    hashes = {
        hashlib.sha256(
            (combined(unlike, tmp_path / name, **how) / "adapter_model.safetensors").read_bytes()
        ).hexdigest()
        for name in ("one", "two")
    }
    assert len(hashes) == 1


def test_cat_is_the_weighted_sum_of_adapters_of_any_rank(unlike: list[Path], tmp_path: Path) -> None:
    found = deltas(numbers(combined(unlike, tmp_path / "sum", weights=(0.7, -0.3))))
    a, b = (deltas({key: value.double() for key, value in numbers(folder).items()}) for folder in unlike)
    root = 6 / 2**0.5
    scalings = {"table": (root, 0), "image": (root, 0), "first": (root, 9 / 4), "second": (0, 6), "sound": (0, 1.5)}
    for name, (one, other) in scalings.items():
        key = f"base_model.model.{name}"
        wanted = (0.7 * one * a[key] if one else 0) + (-0.3 * other * b[key] if other else 0)
        torch.testing.assert_close(found[key], wanted, rtol=1e-13, atol=1e-12)


@each_kind
def test_rslora_is_combined_as_the_plain_adapter_of_the_same_scaling(tmp_path: Path, how: dict[str, Any]) -> None:
    """Whose root is folded into the scaling once: PEFT keeps use_rslora beside it, and comes out √r times too strong."""
    patterns = {"rank_pattern": {"first": 9}, "alpha_pattern": {"second": 2, "first": 12}}
    other = save(tmp_path / "other", seed=2, r=4, lora_alpha=2)
    rooted = save(tmp_path / "rooted", seed=1, r=4, lora_alpha=4, use_rslora=True, **patterns)
    plain = save(tmp_path / "plain", seed=1, r=4, lora_alpha=4, **patterns)
    edit(plain, lora_alpha=8, alpha_pattern={"second": 4, "first": 36})  # α/√r of the other: 4/2, 2/2, 12/3
    found, wanted = (
        numbers(combined([one, other], tmp_path / f"{one.name}-sum", weights=(1.0, 0.5), **how))
        for one in (rooted, plain)
    )
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-13)
    both = predicted([rooted, save(tmp_path / "too", seed=3, r=4, use_rslora=True)], **how)
    assert not both.refusals
    assert both.outline.config["use_rslora"] is False


def test_one_rslora_adapter_of_weight_one_stays_what_it_is(tmp_path: Path) -> None:
    one, none = (
        save(tmp_path / name, seed=seed, r=4, lora_alpha=4, use_rslora=True) for seed, name in ((1, "a"), (2, "b"))
    )
    found = deltas(numbers(combined([one, none], tmp_path / "sum", kind="linear", weights=(1.0, 0.0))))
    for key, delta in deltas({key: value.double() for key, value in numbers(one).items()}).items():
        torch.testing.assert_close(found[key], 4 / 4**0.5 * delta, rtol=1e-12, atol=1e-12)


def test_empty_tensors_are_said_to_be_not_gathered(tmp_path: Path) -> None:
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    edit_weights(pair[0], lambda tensors: tensors.update(dict.fromkeys(tensors, torch.zeros(0))))
    assert codes(pair) == {"not-gathered"}


def test_a_smaller_rank_is_filled_up_with_zeros(tmp_path: Path) -> None:
    pair = [save(tmp_path / "a", seed=1, r=2, lora_alpha=2), save(tmp_path / "b", seed=2, r=4, lora_alpha=4)]
    found = numbers(combined(pair, tmp_path / "sum", kind="linear", weights=(4.0, 9.0)))
    a, b = (numbers(folder) for folder in pair)
    for key, value in found.items():
        axis = 0 if "_A" in key else 1
        short = a[key]
        wanted = 3.0 * b[key]
        wanted.narrow(axis, 0, 2).add_(2.0 * short)
        torch.testing.assert_close(value, wanted, rtol=1e-14, atol=1e-14)


def test_a_smaller_rank_has_no_vote_where_it_has_no_values(tmp_path: Path) -> None:
    pair = [save(tmp_path / "a", seed=1, r=2, lora_alpha=2), save(tmp_path / "b", seed=2, r=4, lora_alpha=4)]
    found = numbers(combined(pair, tmp_path / "sum", kind="ties", weights=(4.0, 9.0), density=1.0))
    b = numbers(pair[1])
    key = "base_model.model.first.lora_A.weight"
    torch.testing.assert_close(found[key][2:], 3.0 * b[key][2:], rtol=1e-14, atol=1e-14)


def test_pruning_counts_in_the_adapters_own_tensor_and_keeps_the_first_of_equals(tmp_path: Path) -> None:
    adapter = save(tmp_path / "a", seed=1, r=2, lora_alpha=2)
    edit_weights(adapter, lambda tensors: [value.fill_(0.5) for value in tensors.values()])
    found = numbers(combined([adapter], tmp_path / "sum", kind="magnitude_prune", density=0.3))
    kept = found["base_model.model.first.lora_A.weight"].flatten().nonzero().flatten().tolist()
    assert kept == list(range(int(0.3 * 12)))


def test_svd_of_the_sum_of_ranks_loses_nothing(unlike: list[Path], tmp_path: Path) -> None:
    whole = deltas(numbers(combined(unlike, tmp_path / "cat", weights=(0.7, -0.3))))
    found = deltas(numbers(combined(unlike, tmp_path / "svd", kind="svd", weights=(0.7, -0.3), rank=100)))
    for key, wanted in whole.items():
        torch.testing.assert_close(found[key], wanted, rtol=0, atol=1e-12)


def test_the_rank_of_svd_is_the_largest_unless_it_is_given(unlike: list[Path]) -> None:
    ranks = {slot.module: slot.rank for slot in predicted(unlike, kind="svd").outline.slots}
    assert ranks == {"first": 4, "image": 2, "second": 1, "sound": 4, "table": 2}
    assert {slot.rank for slot in predicted(unlike, kind="svd", rank=1).outline.slots} == {1}


def test_the_scaling_of_the_combined_adapter_is_one_everywhere(unlike: list[Path]) -> None:
    from bot.adapters.combine.adapter_input import read_adapter_input

    found = predicted(unlike)
    again, refusals = read_adapter_input(found.source, 0)
    assert not refusals
    assert {pair.scaling for pair in again.pairs.values()} == {1.0}
    assert {module: pair.rank for module, pair in again.pairs.items()} == {
        "first": 6, "image": 2, "second": 1, "sound": 4, "table": 2,
    }  # fmt: skip


def test_another_pin_weight_or_order_is_another_adapter(unlike: list[Path]) -> None:
    shas = [
        predicted(unlike).source.sha,
        predicted(unlike[::-1]).source.sha,
        predicted(unlike, weights=(1.0, 0.5)).source.sha,
        predicted(unlike, kind="dare_linear", seed=1).source.sha,
        predicted(unlike, kind="dare_linear", seed=2).source.sha,
    ]
    assert len(set(shas)) == len(shas)
    assert shas[0] == predicted(unlike, weights=(1.0, 1.0)).source.sha


def test_names_that_training_left_in_the_keys_do_not_part_the_adapters(tmp_path: Path) -> None:
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            inner = key.removeprefix("base_model.model.").replace(".weight", ".default.weight")
            inner = inner if "embedding" not in key else f"{inner}.default"
            tensors[f"module._orig_mod.{inner}"] = tensors.pop(key)

    plain = numbers(combined(pair, tmp_path / "plain"))
    edit_weights(pair[1], rename)
    for key, value in numbers(combined(pair, tmp_path / "renamed")).items():
        assert torch.equal(value, plain[key])


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_uses_is_not(
    unlike: list[Path], tmp_path: Path
) -> None:
    left = tmp_path / "combined-left"
    left.mkdir()
    found = predicted(unlike)
    with combined_in(tmp_path, found, unlike) as first:
        assert not left.exists()
        with combined_in(tmp_path, found, unlike) as second:
            assert first.is_dir()
            assert second.is_dir()
        assert not second.exists()
        assert first.is_dir()
    assert list(tmp_path.iterdir()) == []


# --- files beside the weights -------------------------------------------------------------------------------------


def test_the_tokenizer_is_one_adapters_and_the_licenses_are_everybodys(tmp_path: Path) -> None:
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    (pair[0] / "LICENSE").write_text("one")
    (pair[1] / "NOTICE").write_text("two")
    (pair[1] / "tokenizer_config.json").write_text("{}")
    (pair[1] / "chat_template.jinja").write_text("hello")
    folder = combined(pair, tmp_path / "sum")
    assert (folder / "chat_template.jinja").read_text() == "hello"
    assert (folder / "NOTICE").read_text() == "two"
    assert (folder / "LICENSE").read_text() == "one"


def test_a_second_chat_template_is_worth_a_note(tmp_path: Path) -> None:
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    for folder, text in zip(pair, ("hello", "welcome"), strict=True):
        (folder / "chat_template.jinja").write_text(text)
    assert any("chat_template.jinja" in note for note in predicted(pair).notes)
    assert (combined(pair, tmp_path / "sum") / "chat_template.jinja").read_text() == "hello"


# --- embeddings that came along -----------------------------------------------------------------------------------


def bring(folder: Path, value: torch.Tensor) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"base_model.model.table.base_layer.weight": value}))


def test_an_embedding_that_came_along_is_carried_once(tmp_path: Path) -> None:
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    table = torch.randn(11, 6)
    for folder in pair:
        bring(folder, table)
    assert torch.equal(numbers(combined(pair, tmp_path / "sum"))["base_model.model.table.base_layer.weight"], table)


def test_two_embeddings_that_differ_are_refused(tmp_path: Path) -> None:
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    bring(pair[0], torch.zeros(11, 6))
    bring(pair[1], torch.ones(11, 6))
    with pytest.raises(Refused, match="different weights of their own for table"):
        combined(pair, tmp_path / "sum")
    assert not (tmp_path / "sum").exists()
    bring(pair[1], torch.zeros(12, 6))
    assert "unlike-copies" in codes(pair)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"peft_type": "LOHA"}, "not-lora"),
        ({"use_dora": True}, "dora"),
        ({"lora_bias": True}, "lora-bias"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["score"]}, "modules-to-save"),
        ({"trainable_token_indices": [1, 2]}, "trainable-tokens"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target-parameters"),
        ({"layer_replication": [[0, 1]]}, "layer-replication"),
        ({"init_lora_weights": "pissa"}, "changed-base"),
        ({"brand_new": 7}, "unknown-setting"),
        ({"r": "many"}, "bad-config"),
        ({"rank_pattern": {"(": 2}}, "bad-config"),
        ({"r": 5}, "rank"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_has_no_sum_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    edit(pair[1], **changes)
    refusals = predicted(pair).refusals
    assert code in {refusal.code for refusal in refusals}
    assert all("Adapter 2" in refusal.reason and refusal.remedy for refusal in refusals)


@pytest.mark.parametrize(
    ("key", "shape", "code"),
    [
        ("base_model.model.first.lora_magnitude_vector", (8,), "dora"),
        ("base_model.model.first.lora_B.bias", (8,), "lora-bias"),
        ("base_model.model.first.base_layer.bias", (8,), "bias"),
        ("base_model.model.score.modules_to_save.weight", (8, 2), "modules-to-save"),
        ("base_model.model.table.token_adapter.trainable_tokens_delta", (2, 6), "trainable-tokens"),
        ("base_model.model.experts.base_layer.lora_A.weight", (3, 6), "target-parameters"),
        ("base_model.model.first.something", (3, 6), "unknown-key"),
        ("base_model.model.third.lora_A.weight", (3, 6), "half-a-pair"),
        ("base_model.model.first.lora_A.other.weight", (3, 6), "repeated-key"),
    ],
)
def test_every_tensor_is_combined_or_refused_by_name(
    tmp_path: Path, key: str, shape: tuple[int, ...], code: str
) -> None:
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    edit_weights(pair[0], lambda tensors: tensors.update({key: torch.zeros(shape)}))
    assert code in codes(pair)


def test_adapters_of_different_bases_are_refused(tmp_path: Path) -> None:
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    key = "base_model.model.first.lora_A.weight"
    edit_weights(pair[1], lambda tensors: tensors.update({key: torch.zeros(3, 7)}))
    assert codes(pair) == {"unlike-shapes"}


def test_another_base_by_name_is_only_worth_a_note(tmp_path: Path) -> None:
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    edit(pair[0], base_model_name_or_path="me/one")
    edit(pair[1], base_model_name_or_path="me/two")
    found = predicted(pair)
    assert not found.refusals
    assert any("me/one, me/two" in note for note in found.notes)


def test_an_embedding_tied_in_one_adapter_only_is_refused(tmp_path: Path) -> None:
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    edit(pair[0], ensure_weight_tying=True)
    assert codes(pair) == {"mixed-tying"}


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    edit_weights(pair[1], lambda tensors: tensors["base_model.model.first.lora_A.weight"].fill_(float("nan")))
    with pytest.raises(Refused, match="not finite"):
        combined(pair, tmp_path / "sum")


def test_an_adapter_that_changed_since_the_plan_is_noticed(tmp_path: Path) -> None:
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    found = predicted(pair)
    save(pair[1], seed=2, r=2)
    with pytest.raises(Refused, match="planned for"):
        combine(found, pair, tmp_path / "sum")


# --- how it is asked for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"weights": (1.0,)},
        {"weights": (1.0, float("nan"))},
        {"kind": "ties", "density": 0.0},
        {"kind": "ties", "density": 1.5},
        {"kind": "svd", "rank": 0},
        {"kind": "dare_ties", "seed": -1},
        {"kind": "average"},
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_a_usage_error(asked: dict[str, Any]) -> None:
    with pytest.raises(Usage) as raised:
        notation.with_defaults(Combination(**asked), 2)
    assert raised.value.exit_code == 2


def test_several_adapters_are_summed_unless_asked_otherwise() -> None:
    assert notation.with_defaults(None, 1) is None
    assert notation.with_defaults(None, 3) == Combination(kind="cat", weights=(1.0, 1.0, 1.0))


@each_kind
def test_a_combination_is_read_back_as_it_was_written(how: dict[str, Any]) -> None:
    settled = notation.with_defaults(Combination(weights=(1 / 3, -0.1), **how), 2)
    assert settled is not None
    assert notation.from_json(json.loads(json.dumps(notation.to_json(settled)))) == settled


@pytest.mark.parametrize(
    "found", [{}, [], None, {"kind": "cat", "weights": ["x"]}, {"kind": "cat", "weights": ["1"], "seed": 3}]
)
def test_anything_else_is_no_combination(found: Any) -> None:
    with pytest.raises(ValueError, match="combination"):
        notation.from_json(found)
