"""What a foreign merge may do and what it may not: correct arithmetics lean to no side; a wrong scaling and a truncation do."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from bot.checks.elementwise.drift import Drifts, lean, measure
from bot.checks.elementwise.rounding import round_once, round_stochastically

BF16, F16, F64 = torch.bfloat16, torch.float16, torch.float64
Tensor = torch.Tensor
SCALING = 1.5

# (weight as stored, A and B in float32, their exact float64 delta, a generator) → the merged weight
Merge = Callable[[Tensor, Tensor, Tensor, Tensor, torch.Generator], Tensor]


def truncated(exact: Tensor) -> Tensor:
    """float64 → bfloat16, toward zero."""
    near = round_once(exact, BF16)
    return torch.where(near.double().abs() > exact.abs(), (near.view(torch.int16) - 1).view(BF16), near)


CORRECT: dict[str, Merge] = {
    "one rounding": lambda w, a, b, delta, _: round_once(w.double() + delta, BF16),
    "float32, then one rounding": lambda w, a, b, delta, _: (w.float() + SCALING * (b @ a)).to(BF16),
    "the delta rounded first": lambda w, a, b, delta, _: w.to(BF16) + delta.float().to(BF16),
    "the product rounded, then scaled": lambda w, a, b, delta, _: w.to(BF16) + SCALING * (b @ a).to(BF16),
    "all in bfloat16": lambda w, a, b, delta, _: w.to(BF16) + SCALING * (b.to(BF16) @ a.to(BF16)),
    "B scaled first, in bfloat16": lambda w, a, b, delta, _: w.to(BF16) + (SCALING * b).to(BF16) @ a.to(BF16),
    "via float16": lambda w, a, b, delta, _: (w.to(F16) + SCALING * (b.to(F16) @ a.to(F16))).to(BF16),
    "the sum via float16": lambda w, a, b, delta, _: (w.double() + delta).float().to(F16).to(BF16),
    "at random up or down": lambda w, a, b, delta, random: round_stochastically(w.double() + delta, BF16, random).to(BF16),
}  # fmt: skip
WRONG: dict[str, tuple[Merge, str]] = {
    "1.01 times the delta": (lambda w, a, b, delta, _: round_once(w.double() + 1.01 * delta, BF16), "its delta is 1.0"),
    "0.99 times the delta": (lambda w, a, b, delta, _: round_once(w.double() + 0.99 * delta, BF16), "its delta is 0.9"),
    "1.01 times, all in bfloat16": (
        lambda w, a, b, delta, _: w.to(BF16) + 1.01 * SCALING * (b.to(BF16) @ a.to(BF16)), "its delta is 1.0",
    ),
    "1.5 times the delta": (lambda w, a, b, delta, _: round_once(w.double() + 1.5 * delta, BF16), "off by 5% or more"),
    "none of the delta": (lambda w, a, b, delta, _: w.to(BF16), "off by 5% or more"),
    "the sum truncated": (lambda w, a, b, delta, _: truncated(w.double() + delta), "it is rounded toward zero"),
}  # fmt: skip
SIZES = (3e-3, 3e-2, 0.5)  # of the delta, as a share of the weight
SIDE = 256


def counted(drifts: Drifts, weight: Tensor, exact: Tensor, stored: Tensor, first: int, *, wider: bool) -> None:
    """As `measure` is given them: in numpy."""
    assert stored.dtype == BF16
    numbers = [tensor.double().numpy() for tensor in (weight, exact, stored)]
    measure(drifts, numbers[0], numbers[1], numbers[2], "BF16", first, wider=wider)


def drifts_of(merge: Merge, size: float, seed: int, *, rank: int = 8, stored: torch.dtype = BF16) -> Drifts:
    """A weight of SIDE × SIDE numbers as models have them, merged."""
    random = torch.Generator().manual_seed(seed)
    weight = (torch.randn(SIDE, SIDE, generator=random) * 0.02).to(stored)
    a, b = torch.randn(rank, SIDE, generator=random), torch.randn(SIDE, rank, generator=random)
    b *= size * 0.02 / math.sqrt(rank) / SCALING
    delta = SCALING * (b.double() @ a.double())
    drifts: Drifts = {}
    for low in (0, SIDE // 2):
        rows = slice(low, low + SIDE // 2)
        own, change = weight[rows].double(), delta[rows]
        found = merge(weight, a, b, delta, torch.Generator().manual_seed(seed))[rows]
        counted(drifts, own, own + change, found, low, wider=stored != BF16)
    return drifts


def said(*tensors: Drifts, scaling: float = SCALING) -> str:
    return lean(tensors, 2 * 500, [scaling], "BF16")


@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_arithmetic_leans_to_no_side_at_any_size(name: str):
    together = []
    for seed, size in enumerate(SIZES):
        drifts = drifts_of(CORRECT[name], size, seed, rank=(1, 8, 64)[seed])
        assert not said(drifts), f"a delta of {size} times the weight: {said(drifts)}"
        together.append(drifts)
    assert not said(*together)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_one_does(name: str):
    merge, words = WRONG[name]
    found = said(*(drifts_of(merge, 0.1, seed) for seed in range(4)))
    assert words in found, found


@pytest.mark.parametrize("size", SIZES)
def test_its_slope_is_what_was_planted(size: float):
    along = drifts_of(WRONG["1.01 times the delta"][0], size, 5)["as stored", "delta"]
    assert along.total / along.unit == pytest.approx(0.01, rel=0.25)


@pytest.mark.parametrize(
    "merge",
    [
        lambda w, a, b, delta, _: w.to(BF16) + delta.to(BF16),
        lambda w, a, b, delta, _: (w.to(F16) + delta.to(F16)).to(BF16),
        lambda w, a, b, delta, _: round_once(w.double() + delta, BF16),
    ],
    ids=["cast first", "cast to float16 first", "rounded once"],
)
def test_a_float32_base_may_be_cast_first(merge: Merge):
    assert not said(drifts_of(merge, 3e-3, 1, stored=torch.float32))


def test_a_scaling_that_was_rounded_to_the_storage_dtype_is_no_fault():
    scaling = 2.0077  # which becomes 2
    merge = lambda w, a, b, delta, _: round_once(w.double() + 2 / scaling * delta, BF16)  # noqa: E731
    tensors = [drifts_of(merge, 0.1, seed) for seed in range(4)]
    assert "its delta is 0.99" in said(*tensors)
    assert not said(*tensors, scaling=scaling)


def test_of_weights_that_all_end_in_the_same_bit_nothing_is_said():
    """Ties to even lean where every weight is even."""
    even = lambda w: (w.view(torch.int16) & -2).view(BF16)  # noqa: E731
    random = torch.Generator().manual_seed(3)
    weight = even((torch.randn(SIDE, SIDE, generator=random) * 0.02).to(BF16))
    delta = torch.randn(SIDE, SIDE, generator=random, dtype=F64) * 6e-5
    drifts: Drifts = {}
    found = (weight.double() + delta).float().to(F16).to(BF16)
    counted(drifts, weight.double(), weight.double() + delta, found, 0, wider=False)
    assert not drifts["as stored", "delta"].can_tell
    assert not said(drifts)
