"""Rounding once, held to exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from bot.checks.elementwise import rounding
from bot.checks.elementwise.rounding import SMALLEST, add_stochastically, round_once, round_stochastically

PRECISION = {torch.bfloat16: (8, -133, 2.0**128), torch.float16: (11, -24, 2.0**16)}  # bits, smallest exponent, bound
DTYPES = pytest.mark.parametrize("dtype", PRECISION, ids=str)


def exactly(value: float, dtype: torch.dtype) -> float:
    """The nearest value of `dtype`, ties to even, by integers only."""
    bits, smallest, bound = PRECISION[dtype]
    exact = abs(Fraction(value))
    if not exact:
        return 0.0
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length()
    exponent -= exact < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - bits + 1, smallest)
    rounded = round(exact / unit) * unit  # Python rounds half to even
    found = float(rounded) if rounded < bound else float("inf")
    return found if value >= 0 else -found


@DTYPES
@given(value=st.floats(width=64, allow_nan=False, allow_infinity=False))
def test_any_float64_is_rounded_once(dtype: torch.dtype, value: float):
    assert round_once(torch.tensor([value], dtype=torch.float64), dtype).item() == exactly(value, dtype)


@DTYPES
@given(near=st.floats(width=16, allow_nan=False, allow_infinity=False), steps=st.integers(-3, 3), up=st.booleans())
def test_a_hair_beside_a_midpoint_is_not_rounded_to_even(dtype: torch.dtype, near: float, steps: int, up: bool):
    value = torch.tensor([near], dtype=dtype)
    other = torch.nextafter(value, torch.tensor([torch.inf if up else -torch.inf], dtype=dtype))
    assume(bool(other.isfinite()))  # beyond the largest number there is no midpoint
    middle = (value.double() + other.double()) / 2
    beside = middle + steps * middle.abs() * 2.0**-50
    assert round_once(beside, dtype).item() == exactly(beside.item(), dtype)


def test_torch_itself_rounds_twice_which_is_why_this_exists():
    value = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert value.to(torch.bfloat16).item() == 1.0
    assert round_once(value, torch.bfloat16).item() == 1 + 2.0**-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    for value in (1.0 + 0.3 * torch.finfo(dtype).eps, -3.0 - 0.2 * torch.finfo(dtype).eps, 0.0, 1e-3, -7.0, 1e-7):
        exact = torch.full((20_000,), value, dtype=torch.float64)
        found = round_stochastically(exact, dtype, generator)
        assert torch.equal(found.to(dtype).double(), found)
        assert len(found.unique()) <= 2
        gap = torch.finfo(dtype).eps * max(abs(value), torch.finfo(dtype).tiny)
        assert abs(found.double().mean().item() - value) < 0.03 * gap


def test_stochastic_rounding_has_twice_the_variance_of_rounding_to_nearest():
    exact = torch.rand(200_000, dtype=torch.float64) + 1
    drawn = round_stochastically(exact, torch.bfloat16, torch.Generator().manual_seed(0)).double() - exact
    nearest = round_once(exact, torch.bfloat16).double() - exact
    assert (nearest.square().mean() / drawn.square().mean()).item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_stochastic_rounding_knows_the_subnormal_among_others(dtype: torch.dtype):
    tiny = torch.finfo(dtype).tiny
    exact = torch.cat((torch.rand(2000, dtype=torch.float64) + 1, (torch.rand(2000, dtype=torch.float64) - 0.5) * tiny))
    drawn = round_stochastically(exact, dtype, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.to(dtype).double(), drawn)


@pytest.mark.skipif(rounding.compiled is None, reason="built without a C compiler")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_stochastic_rounding_gives_the_same_bits_compiled_and_not(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    def drawn(exact: torch.Tensor, seed: int = 3) -> torch.Tensor:
        return round_stochastically(exact, dtype, torch.Generator().manual_seed(seed))

    small = torch.randn(999, dtype=torch.float64) * SMALLEST[dtype] * 5
    infinite = torch.tensor([math.inf, -math.inf, 0.0, -0.0], dtype=torch.float64)
    exact = torch.cat((torch.randn(3000, dtype=torch.float64), small, infinite))
    weight, delta = (torch.randn(70, 90) * 0.02).bfloat16(), torch.randn(70, 90, dtype=torch.float64) * 1e-3
    weight[3], delta[3] = 0, delta[3] * SMALLEST[dtype] * 1e4
    compiled, added, of_wide = drawn(exact), torch.empty(70, 90), torch.empty(70, 90)
    add_stochastically(weight, delta, dtype, torch.Generator().manual_seed(3), added)
    add_stochastically(weight.float(), delta, dtype, torch.Generator().manual_seed(3), of_wide)
    monkeypatch.setattr(rounding, "compiled", None)
    assert torch.equal(compiled.view(torch.int64), drawn(exact).view(torch.int64))
    assert torch.equal(added, drawn(weight.double() + delta).float())
    assert torch.equal(of_wide, added)
    assert not torch.equal(added, drawn(weight.double() + delta, seed=4).float())
