"""Every way to combine adapters, held to PEFT's own add_weighted_adapter in float64, on every kind of layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.utils import merge_utils

from bot.adapters.combine.algebra import drawn
from tests.adapters.combine.inputs import by_peft, combined, deltas, inputs, loaded, numbers, save, small

WEIGHTS = [(0.7, 0.3), (1.0, -0.6), (-0.5, -1.5)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of one rank, with scalings of 2 and 4/3."""
    home = tmp_path_factory.mktemp("pair")
    return [save(home / "a", seed=1), save(home / "b", seed=2, lora_alpha=4)]


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], atol: float = 1e-14) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-13, atol=atol, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("cat", {}),
        ("linear", {}),
        ("magnitude_prune", {"density": 0.4}),
        ("ties", {"density": 0.6}),
        ("ties", {"density": 0.6, "majority_sign_method": "frequency"}),
        ("ties", {"density": 1.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_a_and_b_are_those_of_peft(
    pair: list[Path], tmp_path: Path, kind: str, how: dict[str, Any], weights: tuple[float, ...]
) -> None:
    ours = {name.replace("_method", ""): value for name, value in how.items()}
    found = numbers(combined(pair, tmp_path / "sum", kind=kind, weights=weights, **ours))
    assert_same(found, by_peft(pair, kind, weights, **how))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_svd_gives_the_best_approximation_of_the_sum(
    pair: list[Path], tmp_path: Path, rank: int, weights: tuple[float, ...]
) -> None:
    found = deltas(numbers(combined(pair, tmp_path / "sum", kind="svd", weights=weights, rank=rank)))
    wanted = {}
    for module, whole in deltas(by_peft(pair, "cat", weights)).items():
        u, s, v = torch.linalg.svd(whole, full_matrices=False)
        wanted[module] = (u[:, :rank] * s[:rank]) @ v[:rank]
    assert_same(found, wanted, atol=1e-12)


def test_svd_is_pefts_where_that_folds_weights_rightly(tmp_path: Path) -> None:
    layers = ["table", "image", "first", "second"]  # of a Conv1d PEFT takes the last axis for the matrix
    pair = [save(tmp_path / "a", seed=1, target_modules=layers), save(tmp_path / "b", seed=2, target_modules=layers)]
    found = combined(pair, tmp_path / "sum", kind="svd", weights=(0.7, -0.3), rank=2)
    assert_same(deltas(numbers(found)), deltas(by_peft(pair, "svd", (0.7, -0.3), svd_rank=2)), atol=1e-12)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", ["dare_linear", "dare_ties"])
def test_dare_is_pefts_where_the_same_values_are_drawn(
    pair: list[Path], tmp_path: Path, kind: str, weights: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {}
    for place, folder in enumerate(pair):
        for key, value in numbers(folder).items():
            module, _, rest = key.removeprefix("base_model.model.").partition(".lora_")
            named[value.numpy().tobytes()] = f"{place}/{module}/{rest.removeprefix('embedding_')[0]}"

    def ours(tensor: torch.Tensor, density: float, rescale: bool) -> torch.Tensor:
        keep = drawn(7, named[tensor.detach().numpy().tobytes()], tensor.numel(), density)
        assert rescale
        return tensor * torch.from_numpy(keep).reshape(tensor.shape) / density

    monkeypatch.setattr(merge_utils, "random_pruning", ours)
    found = numbers(combined(pair, tmp_path / "sum", kind=kind, weights=weights, density=0.5, seed=7))
    assert_same(found, by_peft(pair, kind, weights, density=0.5))


def test_what_is_drawn_is_fair_and_depends_on_seed_and_name() -> None:
    kept = drawn(0, "0/first/A", 400_000, 0.3)
    assert abs(kept.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 400_000)
    # Neighbours know nothing of each other: the share of equal pairs is p² + (1 − p)².
    assert abs((kept[1:] == kept[:-1]).mean() - 0.58) < 0.005
    for other in (drawn(1, "0/first/A", 400_000, 0.3), drawn(0, "1/first/A", 400_000, 0.3)):
        assert abs((kept == other).mean() - 0.58) < 0.005
    assert (drawn(0, "0/first/A", 400_000, 0.3) == kept).all()


def test_dare_keeps_the_expected_value(tmp_path: Path) -> None:
    adapter = save(tmp_path / "a", seed=1)
    mean = torch.stack(
        [
            numbers(combined([adapter], tmp_path / str(seed), kind="dare_linear", density=0.5, seed=seed))[
                "base_model.model.first.lora_B.weight"
            ]
            for seed in range(200)
        ]
    ).mean(0)
    whole = numbers(adapter)["base_model.model.first.lora_B.weight"] * np.sqrt(2.0)
    assert float((mean - whole).norm() / whole.norm()) < 3 / np.sqrt(200)


def test_peft_loads_what_was_combined_and_answers_as_the_sum(tmp_path: Path) -> None:
    pair = [
        save(tmp_path / "a", seed=1, r=2, use_rslora=True, target_modules=["table", "first", "image"]),
        save(tmp_path / "b", seed=2, r=4, rank_pattern={"second": 1}, alpha_pattern={"first": 9},
             target_modules=["first", "second", "sound"], layers_to_transform=None),
    ]  # fmt: skip
    sum_ = combined(pair, tmp_path / "sum", weights=(0.7, -0.3))
    model, weights = small(), dict(zip(("0", "1"), (0.7, -0.3), strict=True))
    both = loaded(pair)
    for name, layer in both.base_model.model.named_children():
        for adapter in {**getattr(layer, "lora_A", {}), **getattr(layer, "lora_embedding_A", {})}:
            delta = layer.get_delta_weight(adapter) * weights[adapter]
            getattr(model, name).weight.data += delta.reshape(getattr(model, name).weight.shape)
    alone = loaded([sum_])
    assert set(alone.peft_config["0"].target_modules) == {"table", "first", "image", "second", "sound"}
    with torch.no_grad():
        torch.testing.assert_close(alone(*inputs()), model.eval()(*inputs()), rtol=1e-12, atol=1e-12)
