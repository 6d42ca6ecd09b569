"""The verifier combines the adapters again by itself: it passes what is right, and names what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bot.adapters.combine import combine, notation, predict
from bot.checks.case import Case
from bot.checks.expected.combined import combined as check
from bot.checks.subject import Subject
from bot.events import silent
from bot.records import Finding
from bot.report_document import InputPins, MergeFacts
from tests.adapters.combine.inputs import each_kind, edit, pinned, predicted, save


def checked(adapters: list[Path], folder: Path, how: dict[str, Any]) -> Finding:
    subject = Subject(
        folder=folder, base=folder, adapter=folder, inputs=InputPins.of({}), recorded=None, merge=MergeFacts.of({}),
        dtype="auto", ours=True,
        level="weights", not_run=(), trust_remote_code=False, adapters=tuple(adapters), combination=how,
    )  # fmt: skip
    return check(Case(subject, silent))


def made(adapters: list[Path], target: Path, **how: Any) -> tuple[Path, dict[str, Any]]:
    found = predicted(adapters, **how)
    assert not found.refusals
    return combine(found, adapters, target), notation.to_json(found.how)


@each_kind
@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, -0.5)])
def test_a_right_combination_passes(
    unlike: list[Path],
    tmp_path: Path,
    how: dict[str, Any],
    weights: tuple[float, ...],
) -> None:
    folder, said = made(unlike, tmp_path / "sum", weights=weights, **how)
    finding = checked(unlike, folder, said)
    assert finding.status == "pass", finding
    assert float(finding.measured) <= 1e-12


def test_equal_magnitudes_and_equal_singular_values_are_no_fault(tmp_path: Path) -> None:
    """An adapter with itself and its negative; values of two magnitudes only."""
    adapter = save(tmp_path / "a", seed=1)
    path = adapter / "adapter_model.safetensors"
    save_file({key: value.sign() * 0.5 for key, value in load_file(path).items()}, path, {"format": "pt"})
    for kind in ("svd", "ties", "dare_ties", "magnitude_prune", "linear"):
        for weights in ((1.0, 1.0), (1.0, -1.0), (0.0, 0.0)):
            folder, said = made([adapter, adapter], tmp_path / "sum", kind=kind, weights=weights, density=0.4)
            finding = checked([adapter, adapter], folder, said)
            assert finding.status == "pass", (kind, weights, finding)


def one_number(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.first.lora_A.weight"][0, 0] *= 1 + 1e-9


def one_side_doubled(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.first.lora_B.weight"] *= 2


def one_module_lost(tensors: dict[str, Tensor]) -> None:
    for key in [key for key in tensors if ".image." in key]:
        del tensors[key]


def two_components_swapped(tensors: dict[str, Tensor]) -> None:
    for key in ("lora_A.weight", "lora_B.weight"):
        value = tensors[f"base_model.model.first.{key}"]
        axis = 0 if "_A" in key else 1
        tensors[f"base_model.model.first.{key}"] = value.flip(axis).contiguous() * (1 if axis else -1)


def another_weight_along(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.table.base_layer.weight"] = torch.zeros(11, 6)


@each_kind
@pytest.mark.parametrize(
    "damage", [one_number, one_side_doubled, one_module_lost, two_components_swapped, another_weight_along]
)
def test_a_wrong_combination_is_named(
    unlike: list[Path],
    tmp_path: Path,
    how: dict[str, Any],
    damage: Callable[[dict[str, Tensor]], None],
) -> None:
    folder, said = made(unlike, tmp_path / "sum", **how)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path, {"format": "pt"})
    finding = checked(unlike, folder, said)
    assert finding.status == "fail"
    assert any(module in finding.why for module in ("first", "image", "table"))


@pytest.mark.parametrize(
    ("how", "other"),
    [
        ({"kind": "cat"}, {"kind": "linear"}),
        ({"kind": "cat"}, {"weights": ["1.0", "1.0000001"]}),
        ({"kind": "dare_linear", "seed": 1}, {"seed": 2}),
        ({"kind": "ties", "density": 0.5}, {"density": "0.6"}),
        ({"kind": "ties"}, {"majority_sign": "frequency"}),
        ({"kind": "svd", "rank": 2}, {"rank": 3}),
    ],
    ids=lambda value: "-".join(map(str, value.values())),
)
def test_another_combination_than_the_report_names_is_a_fault(
    tmp_path: Path, how: dict[str, Any], other: dict[str, Any]
) -> None:
    trio = [save(tmp_path / str(seed), seed=seed, r=3) for seed in range(3)]
    weights = (1.0, 1.0, 0.5)
    folder, said = made(trio, tmp_path / "sum", weights=weights, **how)
    assert checked(trio, folder, said).status == "pass"
    if "weights" in other:
        other = {"weights": [*other["weights"], "0.5"]}
    assert checked(trio, folder, {**said, **other}).status == "fail"


def test_the_best_approximation_is_told_from_a_good_one(tmp_path: Path) -> None:
    """Leaving out the largest component instead of the smallest is an approximation too, and a wrong one."""
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    folder, said = made(pair, tmp_path / "whole", kind="svd", rank=6)
    short, _ = made(pair, tmp_path / "short", kind="svd", rank=2)
    tensors, whole = (load_file(one / "adapter_model.safetensors") for one in (short, folder))
    for key, value in tensors.items():
        axis = 0 if "_A" in key else 1
        value.copy_(whole[key].narrow(axis, 1, value.shape[axis]))
    save_file(tensors, short / "adapter_model.safetensors", {"format": "pt"})
    assert checked(pair, short, {**said, "rank": 2}).status == "fail"


def test_a_scaling_that_is_not_one_is_a_fault(unlike: list[Path], tmp_path: Path) -> None:
    folder, said = made(unlike, tmp_path / "sum")
    config = json.loads((folder / "adapter_config.json").read_bytes())
    edit(folder, lora_alpha=2 * config["lora_alpha"])
    assert "is scaled by 2" in checked(unlike, folder, said).why


def test_the_seed_makes_the_combination_reproducible(tmp_path: Path) -> None:
    pair = [save(tmp_path / "a", seed=1), save(tmp_path / "b", seed=2)]
    settled = notation.with_defaults(notation.from_json({"kind": "dare_ties", "weights": ["1.0", "1.0"], "density": "0.5",
                                                  "seed": 11, "majority_sign": "total"}), 2)  # fmt: skip
    assert settled is not None
    one, two = (
        (combine(predict([pinned(folder) for folder in pair], settled), pair, tmp_path / name)
         / "adapter_model.safetensors").read_bytes()
        for name in ("one", "two")
    )  # fmt: skip
    assert one == two
