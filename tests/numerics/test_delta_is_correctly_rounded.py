"""Every element of round(W + s·BA) against exact rational arithmetic, ties and near-ties included."""

from __future__ import annotations

import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from bot.checks.elementwise.rounding import round_once
from bot.numerics.delta import Delta, make_delta
from bot.numerics.rounder import CLONES, Arithmetic, Rounder, StepCounts
from bot.numerics.rounding import narrow, round_rational, widen

NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
WAYS = [pytest.param(None, id="numpy"), *(pytest.param(clone, id=clone) for clone in CLONES)]
LIMITS = {torch.bfloat16: 3.3e38, torch.float16: 60000.0, torch.float32: 3.3e38}


@pytest.fixture(params=WAYS)
def clone(request: pytest.FixtureRequest) -> str | None:
    return request.param


def raw(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as the engine sees it: bfloat16 as the bits of it."""
    return tensor.contiguous().view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def factor(tensor: torch.Tensor) -> np.ndarray:
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()


def low_rank(a: torch.Tensor, b: torch.Tensor, scaling: float, *, out: torch.dtype, transposed: bool = False) -> Delta:
    left, right = (factor(a).T, factor(b).T) if transposed else (factor(b), factor(a))
    return make_delta([left], [right], [scaling], out=NAMES[out])


def add(weight: torch.Tensor, delta: Delta, first: int, out: torch.Tensor, rounder: Rounder) -> None:
    rounder.add(raw(weight), NAMES[weight.dtype], delta, first, raw(out), NAMES[out.dtype])


def merged(
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    out: torch.dtype,
    rows: int = 7,
    *,
    clone: str | None,
) -> tuple[torch.Tensor, StepCounts]:
    delta = low_rank(a, b, scaling, out=out)
    rounder, result = Rounder(clone=clone), torch.empty(weight.shape, dtype=out)
    for first in range(0, weight.shape[0], rows):
        add(weight[first : first + rows], delta, first, result[first : first + rows], rounder)
    return result, rounder.tally


def exact(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, i: int, j: int) -> Fraction:
    total = sum((Fraction(float(b[i, k])) * Fraction(float(a[k, j])) for k in range(a.shape[0])), Fraction(0))
    return Fraction(float(weight[i, j])) + Fraction(scaling) * total


def nearest(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The nearest number of `dtype`, found by looking at its neighbours: no code shared with the engine."""
    guess = torch.tensor(float(value), dtype=torch.float64).to(dtype)
    whole = guess.view(torch.int32 if dtype == torch.float32 else torch.int16)
    around = {float(guess)}
    for step in (-2, -1, 1, 2):
        around.add(float((whole + step).view(dtype)))
    around |= {0.0, *(float(torch.tensor(s, dtype=torch.int32).to(whole.dtype).view(dtype)) for s in (1, 2))}
    around |= {-x for x in around}
    best = sorted((abs(Fraction(x) - value), x) for x in around if x == x and abs(x) != float("inf"))
    ties = [x for gap, x in best if gap == best[0][0]]
    even = [x for x in ties if int(torch.tensor(x, dtype=dtype).view(whole.dtype)) % 2 == 0]
    return Fraction(even[0] if len(set(ties)) > 1 else ties[0])


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("adapter", [*DTYPES, torch.float64])
def test_random_matrices_are_rounded_correctly(stored, out, adapter, clone: str | None) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(40, 33) * 0.02).to(stored)
    a, b = torch.randn(5, 33).to(adapter), (torch.randn(40, 5) * 0.01).to(adapter)
    result, _ = merged(weight, a, b, 0.7, out, clone=clone)
    for i in range(40):
        for j in range(33):
            assert Fraction(float(result[i, j])) == nearest(exact(weight, a, b, 0.7, i, j), out)


@pytest.mark.parametrize("out", DTYPES)
def test_true_ties_go_to_even(out, clone: str | None) -> None:
    """W = 1, 1 + ulp, …; the delta is exactly half an ulp."""
    half = torch.finfo(out).eps / 2
    weight = (1 + torch.arange(8, dtype=torch.float64) * torch.finfo(out).eps).to(out).view(1, 8)
    a, b = torch.ones(1, 8), torch.full((1, 1), half)
    result, tally = merged(weight, a, b, 1.0, out, clone=clone)
    expected = [float(nearest(Fraction(float(w)) + Fraction(half), out)) for w in weight[0]]
    assert result[0].tolist() == expected
    assert tally.rational == 8


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("side", [1, -1])
def test_a_hair_beside_a_tie_does_not_go_to_even(out, side, clone: str | None) -> None:
    """Half an ulp ± 2^-80: beyond float64, which sees a tie."""
    half = torch.finfo(out).eps / 2
    weight = (1 + torch.arange(8, dtype=torch.float64) * torch.finfo(out).eps).to(out).view(1, 8)
    a = torch.stack([torch.ones(8), torch.full((8,), 2.0**-40)])
    b = torch.tensor([[half, side * 2.0**-40]])
    result, tally = merged(weight, a, b, 1.0, out, clone=clone)
    for j in range(8):
        step = 2 * half if side > 0 else 0.0
        assert float(result[0, j]) == float(weight[0, j]) + step
    assert tally.rational == 8


@pytest.mark.parametrize(("hair", "expected"), [(-(2.0**-40), 3), (0.0, 4), (2.0**-40, 4)])
def test_subnormal_ties_too(hair: float, expected: int, clone: str | None) -> None:
    """Three of bfloat16's smallest numbers and a half, and a hair less or more, which float32 cannot hold."""
    smallest = 2.0**-133
    weight = torch.full((1, 70), 3 * smallest, dtype=torch.float64).bfloat16()
    a, b = torch.tensor([[0.5], [hair]]).expand(2, 70), torch.tensor([[smallest, smallest]])
    result, _ = merged(weight, a, b, 1.0, torch.bfloat16, clone=clone)
    assert set(result.view(torch.int16)[0].tolist()) == {expected}


@pytest.mark.parametrize("out", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [3, 8, 33])
def test_a_sum_that_float32_gets_wrong_is_never_taken_for_certain(rank: int, out, clone: str | None) -> None:
    """What is left of W + D is a 256th of them and lies beside a tie: nearer than the float32 product is to the truth."""
    torch.manual_seed(rank)
    columns, scaling, step = 1000, 0.7, torch.finfo(out).eps
    weight = (256 * (1 + torch.randint(128, (1, columns)) / 128)).to(out)
    tie = 1 + (torch.randint(round(1 / step), (columns,)) + 0.5) * step
    b, a = torch.rand(1, rank) + 0.5, (torch.rand(rank, columns) - 0.5) * 256
    others = (b[:, :-1].double() @ a[:-1].double())[0] * scaling
    a[-1] = ((tie.double() - weight[0].double() - others) / (scaling * float(b[0, -1]))).float()
    result, _ = merged(weight, a, b, scaling, out, clone=clone)
    for j in range(columns):
        beside = exact(weight, a, b, scaling, 0, j) - Fraction(float(tie[j]))
        assert float(result[0, j]) == float(tie[j]) + (step / 2 if beside > 0 else -step / 2), (j, beside)


@pytest.mark.parametrize("clone", CLONES)
def test_zeros_that_nothing_is_added_to_are_settled_at_once(clone: str) -> None:
    weight = torch.zeros(3, 70).bfloat16()
    b = torch.tensor([[0.0], [0.0], [1.0]])
    result, tally = merged(weight, torch.ones(1, 70), b, 1.0, torch.bfloat16, clone=clone)
    assert result.sum(1).tolist() == [0.0, 0.0, 70.0]
    assert tally.float64 == 0


def test_the_answer_does_not_depend_on_the_size_of_the_blocks_or_on_threads(clone: str | None) -> None:
    torch.manual_seed(1)
    weight = (torch.randn(257, 130) * 0.02).bfloat16()
    a, b = torch.randn(16, 130), torch.randn(257, 16) * 0.01
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found += [merged(weight, a, b, 2.0, torch.bfloat16, rows, clone=clone)[0] for rows in (1, 3, 64, 257)]
    assert all(torch.equal(found[0].view(torch.int16), other.view(torch.int16)) for other in found)


def test_a_transposed_weight_gets_the_transposed_delta() -> None:
    torch.manual_seed(2)
    weight, a, b = torch.randn(6, 9), torch.randn(2, 6), torch.randn(9, 2)
    delta = low_rank(a, b, 1.5, transposed=True, out=torch.float32)
    result = torch.empty(6, 9)
    add(weight, delta, 0, result, Rounder())
    assert torch.equal(result, (weight.double() + 1.5 * (b.double() @ a.double()).T).float())


def test_a_nan_in_the_weight_is_told_from_an_overflow() -> None:
    rounder = Rounder()
    a, b, out = torch.ones(1, 3), torch.ones(2, 1), torch.empty(2, 3, dtype=torch.float16)
    delta = low_rank(a, b, 1.0, out=torch.float16)
    with pytest.raises(ValueError, match="NaN or Inf"):
        add(torch.tensor([[1.0, float("nan"), 1], [0, 0, 0]]), delta, 0, out, rounder)
    with pytest.raises(OverflowError):
        add(torch.full((2, 3), 65519.5), delta, 0, out, rounder)
    add(torch.full((2, 3), 65518.0), delta, 0, out, rounder)
    assert out.tolist() == [[65504.0] * 3] * 2


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [65530.0, 1e5, 2.0**17, 2e5, 2.0**18, 1e6, 1e30])
def test_a_single_number_beyond_float16_overflows_however_large_it_is(size: float, sign: int) -> None:
    a, b, out = torch.full((2, 8), 1e-3), torch.full((4, 2), 1e-3), torch.empty(4, 8, dtype=torch.float16)
    weight = torch.zeros(4, 8)
    weight[1, 5] = sign * size
    with pytest.raises(OverflowError):
        add(weight, low_rank(a, b, 1.0, out=torch.float16), 0, out, Rounder())


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_a_clamped_result_is_the_largest_number_and_the_rest_is_as_ever(
    sign: int, out_dtype, clone: str | None
) -> None:
    torch.manual_seed(5)
    largest = float(torch.finfo(out_dtype).max)
    a, b = torch.randn(2, 70), torch.randn(5, 2)
    weight = torch.randn(5, 70).to(torch.bfloat16 if out_dtype == torch.bfloat16 else torch.float32)
    expected, out = torch.empty(5, 70, dtype=out_dtype), torch.empty(5, 70, dtype=out_dtype)
    delta = low_rank(a, b, 1.0, out=out_dtype)
    add(weight, delta, 0, expected, Rounder(clone=clone))
    # float32's own largest number cannot be passed in float32: its half is added to it.
    huge = {torch.float16: [65519.0, 65525.0, 2.0**17, 1e30], torch.bfloat16: [largest], torch.float32: [largest]}[
        out_dtype
    ]
    far = {torch.float16: 0.0, torch.bfloat16: 2.0**119, torch.float32: 1e38}[out_dtype]
    columns = list(range(3, 3 + 16 * len(huge), 16))
    for at, value in zip(columns, huge, strict=True):
        weight[2, at] = sign * value
    a, b = torch.cat([a, torch.zeros(1, 70)]), torch.cat([b, torch.zeros(5, 1)], dim=1)
    a[2, columns], b[2, 2] = 1.0, sign * far
    add(weight, low_rank(a, b, 1.0, out=out_dtype), 0, out, Rounder(Arithmetic(clamps=True), clone=clone))
    expected[2, columns] = sign * largest
    assert torch.equal(out, expected)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
def test_a_sum_beyond_float32_is_clamped_too(sign: int, out_dtype, clone: str | None) -> None:
    """1e19 · 1e19 on a weight of 3e38, beside elements that cancel or are as small as ever."""
    weight = torch.tensor([[sign * 3e38, -sign * 0.9e38, 1.0, 0.0]] * 2)
    weight = weight.bfloat16() if out_dtype == torch.bfloat16 else weight
    a, b = torch.tensor([[1e19, 1e19, 1e-19, 0.0]]), torch.tensor([[sign * 1e19], [0.0]])
    delta, out = low_rank(a, b, 1.0, out=out_dtype), torch.empty(2, 4, dtype=out_dtype)
    with pytest.raises(OverflowError):
        add(weight, delta, 0, out, Rounder(clone=clone))
    add(weight, delta, 0, out, Rounder(Arithmetic(clamps=True), clone=clone))
    exact = weight.double() + b.double() @ a.double()
    largest = torch.finfo(out_dtype).max
    assert out.double().tolist() == round_once(exact.clamp(-largest, largest), out_dtype).double().tolist()


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_a_bfloat16_weight_with_a_nan_or_inf_is_named(odd: float, clone: str | None) -> None:
    weight, out = torch.ones(3, 200).bfloat16(), torch.empty(3, 200, dtype=torch.bfloat16)
    weight[1, 150] = odd
    delta = low_rank(torch.ones(1, 200), torch.ones(3, 1), 1.0, out=torch.bfloat16)
    with pytest.raises(ValueError, match="NaN or Inf"):
        add(weight, delta, 0, out, Rounder(clone=clone))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_bfloat16_result_overflows_from_half_a_unit_beyond_the_largest_number(sign: int, clone: str | None) -> None:
    largest = torch.finfo(torch.bfloat16).max
    weight, out = torch.full((1, 2), sign * largest).bfloat16(), torch.empty(1, 2, dtype=torch.bfloat16)
    rounder, half = Rounder(clone=clone), sign * 2.0**119
    below = low_rank(torch.tensor([[1.0, 1 - 2.0**-20]]), torch.tensor([[half * (1 - 2.0**-20)]]), 1.0, out=out.dtype)
    add(weight, below, 0, out, rounder)
    assert out.tolist() == [[sign * largest] * 2]
    for more in (half, 2 * half):
        with pytest.raises(OverflowError):
            add(weight, low_rank(torch.ones(1, 2), torch.tensor([[more]]), 1.0, out=out.dtype), 0, out, rounder)


def test_rows_of_zeros_stay_positive_zeros(clone: str | None) -> None:
    weight, out = torch.tensor([[0.0, -0.0], [1.0, -0.0]]).bfloat16(), torch.empty(2, 2, dtype=torch.bfloat16)
    delta = low_rank(torch.ones(1, 2), torch.zeros(2, 1), 1.0, out=torch.bfloat16)
    add(weight, delta, 0, out, Rounder(clone=clone))
    assert out.view(torch.int16).tolist() == [[0, 0], [0x3F80, 0]]


finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=300, deadline=None)
@given(value=finite)
def test_float64_is_rounded_once(dtype, value: float) -> None:
    if abs(value) <= LIMITS[dtype]:
        rounded = widen(narrow(np.array([value]), NAMES[dtype]), NAMES[dtype])
        assert Fraction(float(rounded[0])) == nearest(Fraction(value), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=300, deadline=None)
@given(value=st.fractions(min_value=-1000, max_value=1000), shift=st.integers(-160, 0))
def test_rationals_are_rounded_once_down_to_the_subnormals(dtype, value: Fraction, shift: int) -> None:
    value = value * Fraction(2) ** shift
    assert Fraction(round_rational(value, NAMES[dtype])) == nearest(value, dtype)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("clone", WAYS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_short_mantissas_full_of_ties_are_rounded_correctly(stored, clone: str | None, data) -> None:
    """Small whole numbers over powers of two meet rounding boundaries all the time."""
    small = st.integers(-9, 9)
    rank, rows, columns = data.draw(st.integers(1, 4)), 2, 3
    draw = lambda n: torch.tensor(data.draw(st.lists(small, min_size=n, max_size=n)), dtype=torch.float32)  # noqa: E731
    weight = (draw(rows * columns).view(rows, columns) * 2.0 ** data.draw(st.integers(-3, 6))).to(stored)
    a = draw(rank * columns).view(rank, columns) * 2.0 ** data.draw(st.integers(-9, 0))
    b = draw(rows * rank).view(rows, rank)
    scaling = data.draw(st.sampled_from([1.0, 2.0, 0.5, -0.25, 1 / 3, 0.1]))
    result, _ = merged(weight, a, b, scaling, stored, clone=clone)
    for i in range(rows):
        for j in range(columns):
            assert Fraction(float(result[i, j])) == nearest(exact(weight, a, b, scaling, i, j), stored)


@pytest.mark.skipif(not CLONES, reason="built without a C compiler")
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(
        st.integers(1, 13), st.sampled_from([1, 63, 64, 65, 200, 600]), st.sampled_from([1, 3, 8, 15, 16, 17, 32, 45])
    ),
    sizes=st.tuples(st.integers(-140, 60), st.integers(-140, 60), st.integers(-60, 60)),
    zeros=st.booleans(),
)
@example(seed=0, shape=(2, 200, 1), sizes=(0, -135, 12), zeros=True)  # s·B is subnormal
def test_numpy_and_every_clone_give_the_same_bits(
    seed: int, shape: tuple[int, int, int], sizes: tuple[int, int, int], zeros: bool
) -> None:
    """From subnormal numbers to large ones, with columns apart from the rest, and with the zeros that pruning leaves."""
    (rows, columns, rank), draw = shape, torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, columns, generator=draw, dtype=torch.float64) * 2.0 ** sizes[0]).bfloat16()
    a = torch.randn(rank, columns, generator=draw).bfloat16()
    a[:, 1::7] *= 2.0 ** sizes[2]
    b = (torch.randn(rows, rank, generator=draw, dtype=torch.float64) * 2.0 ** sizes[1]).float()
    if zeros:
        weight[:, ::3], a[:, ::2], b[::2] = 0.0, 0.0, 0.0
    by_numpy, _ = merged(weight, a, b, 0.5, torch.bfloat16, clone=None)
    for clone in CLONES:
        by_c, tally = merged(weight, a, b, 0.5, torch.bfloat16, rows=9, clone=clone)
        assert torch.equal(by_numpy.view(torch.int16), by_c.view(torch.int16)), clone
        assert tally.rational <= tally.float64 <= rows * columns


@pytest.mark.parametrize("clone", WAYS)
def test_a_scaled_factor_below_the_normal_numbers_is_rounded_correctly_all_the_same(clone: str | None) -> None:
    """s·B is rounded to a spacing that does not shrink any more, and A may be large: the error is A's size times that."""
    torch.manual_seed(3)
    for power in range(-137, -120):
        b = (torch.randn(4, 3, dtype=torch.float64) * 2.0**power).float()
        a, weight = (torch.randn(3, 40) * 2.0**12).bfloat16().float(), torch.zeros(4, 40).bfloat16()
        result, _ = merged(weight, a, b, 0.5, torch.bfloat16, clone=clone)
        for i in range(4):
            for j in range(40):
                assert Fraction(float(result[i, j])) == nearest(exact(weight, a, b, 0.5, i, j), torch.bfloat16)


@pytest.mark.parametrize("clone", CLONES)
@pytest.mark.parametrize(("rank", "most"), [(4, 0.0035), (16, 0.0125), (33, 0.022)])
def test_a_delta_as_large_as_the_weights_leaves_few_elements_to_float64(clone: str, rank: int, most: float) -> None:
    """Each of those costs as much as fifty others: one error bound for a whole row left 0.0055, 0.0156 and 0.033."""
    torch.manual_seed(11)
    weight = (torch.randn(64, 512) * 0.02).bfloat16()
    a, b = torch.randn(rank, 512) * 0.02, torch.randn(64, rank)
    _, tally = merged(weight, a, b, 1.0, torch.bfloat16, rows=64, clone=clone)
    assert tally.float64 < most * weight.numel()


@pytest.mark.parametrize("clone", CLONES)
def test_numbers_that_overflow_the_bound_itself_are_decided_later(clone: str) -> None:
    """A row of 1e30 times columns of 1e-30 beside one of 1e30: the largest term is far beyond float32."""
    weight = torch.ones(2, 130).bfloat16()
    a, b = torch.full((1, 130), 1e-30), torch.tensor([[1e30], [0.0]])
    a[0, 7], weight[0, 7] = 0.0, 3.0
    result, _ = merged(weight, a, b, 1.0, torch.bfloat16, rows=2, clone=clone)
    assert result[:, :9].tolist() == [[2.0] * 7 + [3.0, 2.0], [1.0] * 9]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_it_is_compiled_where_there_is_a_compiler() -> None:
    assert CLONES


@pytest.mark.skipif(not CLONES, reason="built without a C compiler")
def test_c_refuses_buffers_that_do_not_fit_together() -> None:
    from bot.numerics import _exact

    half, single, double = np.zeros((2, 4), np.uint16), np.zeros((2, 4), np.float32), np.ones(1)
    rest, row, share, bound = np.zeros(8, np.uint32), np.zeros(2, np.float32), np.zeros(4, np.float32), np.zeros(2)
    left, right = np.zeros((2, 1), np.float32), np.zeros((4, 1), np.float32)
    fitting = [half, single, left, right, half, rest, row, share, left, right, double, bound]
    assert _exact.settle(*fitting, 0.0, 0.0) == (0.0, 0, 0)
    for place in (0, 1, 2, 3, 5, 7, 8, 9, 11):
        given = list(fitting)
        given[place] = given[place][:-1]
        with pytest.raises(ValueError, match="do not fit"):
            _exact.settle(*given, 0.0, 0.0)
    with pytest.raises(ValueError, match="cannot run the clone of another processor"):
        _exact.settle(*fitting, 0.0, 0.0, "of another processor")
