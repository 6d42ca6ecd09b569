"""The verifier's loop: the same bits from every kind of processor and from numpy, and nothing called right that is not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bot.checks.elementwise import rederive, rounding
from bot.checks.elementwise.rederive import KINDS, NUMPY, Likeness, Numbers, compare, product
from bot.checks.elementwise.stored_rounding import clamp, round_once
from bot.checks.reading.stored_numbers import Array, as_float64
from bot.checks.reading.torch_dtypes import RAW

DTYPES = ("BF16", "F16", "F32")
SHAPES = [(1, 1, 1), (3, 7, 2), (4, 128, 16), (5, 129, 16), (9, 300, 0), (6, 263, 33)]  # rows, columns, rank
ways = pytest.mark.parametrize("way", [*KINDS, NUMPY])


def held(values: Array, dtype: str) -> Numbers:
    """float64 → what a file holds, by torch's way of rounding once."""
    numbers = rounding.round_once(torch.from_numpy(np.ascontiguousarray(values)), RAW[dtype])
    bits = numbers.view(torch.int16).numpy().view(np.uint16) if dtype == "BF16" else numbers.numpy()
    return Numbers(held=np.ascontiguousarray(bits), dtype=dtype)


def case(
    rows: int, columns: int, rank: int, source: str, stored: str, seed: int
) -> tuple[Numbers, Numbers, Array, Array]:
    """A weight, a right merge of it but for one number in ten, and the two factors."""
    random = np.random.default_rng(seed)
    weight = held(random.standard_normal((rows, columns)) * 0.02, source)
    left, right = random.standard_normal((rows, rank)) * 0.01, random.standard_normal((rank, columns)) * 0.1
    value = as_float64(weight.held, source) + left @ right
    value = np.where(random.random(value.shape) < 0.1, value * 1.01, value)
    return weight, held(value, stored), left, right


@pytest.mark.parametrize(("source", "stored"), list(itertools.product(DTYPES, DTYPES)))
@pytest.mark.parametrize(("rows", "columns", "rank"), SHAPES)
def test_every_kind_counts_and_sums_the_same_bits(rows: int, columns: int, rank: int, source: str, stored: str):
    given_case = case(rows, columns, rank, source, stored, seed=rows * columns)
    results = {way: compare(*given_case, kind=way) for way in (*KINDS, NUMPY)}
    assert len(set(results.values())) == 1, results
    products = [product(*given_case[2:], kind=way) for way in (*KINDS, NUMPY)]
    assert all(np.array_equal(products[0], other) for other in products)


@ways
@pytest.mark.parametrize(("source", "stored"), list(itertools.product(DTYPES, DTYPES)))
def test_what_is_counted_and_summed_is_what_it_says(way: str, source: str, stored: str):
    weight, actual, left, right = case(13, 261, 16, source, stored, seed=1)
    w, s = as_float64(weight.held, source), as_float64(actual.held, stored)
    value = w + product(left, right, NUMPY)
    likeness = compare(weight, actual, left, right, way)
    assert likeness.equal == np.count_nonzero(round_once(value, stored) == s)
    assert 0 < likeness.equal < s.size
    assert likeness.same == np.count_nonzero(s == w)
    change = value - w
    for measured, terms in zip(
        (likeness.kept, likeness.power, likeness.size), ((s - w) * change, change**2, w**2), strict=True
    ):
        assert measured == pytest.approx(math.fsum(terms.ravel()), rel=1e-13)


BITS = st.integers(0, 0xFFFF)
NEAR = st.floats(-4.0, 4.0, width=64)


@given(source=st.sampled_from(("BF16", "F16")), bits=BITS, steps=st.integers(-1, 1), of_half=NEAR)
def test_a_number_that_is_called_right_is_the_nearest(source: str, bits: int, steps: int, of_half: float):
    """Subnormals, zeros of both signs, infinities and NaN among them: any weight, and a delta of some half spacings."""
    weight = Numbers(
        held=np.array([[bits]], np.uint16).view(np.uint16 if source == "BF16" else np.float16), dtype=source
    )
    w = as_float64(weight.held, source)
    delta = np.array([[of_half * np.spacing(np.abs(w).astype(np.float32)).astype(np.float64)[0, 0] * 2.0**15]])
    delta[~np.isfinite(delta)] = of_half
    with np.errstate(all="ignore"):
        value = w + delta * np.ones((1, 1))
    right = round_once(value, source)
    stored = held(np.nan_to_num(right, nan=np.nan, posinf=np.inf, neginf=-np.inf), source)
    stored = Numbers(
        held=(stored.held.view(np.uint16) + np.uint16(steps & 0xFFFF)).view(weight.held.dtype), dtype=source
    )
    likenesses = [compare(weight, stored, delta, np.ones((1, 1)), way) for way in (*KINDS, NUMPY)]
    assert all(same(likenesses[0], other) for other in likenesses)
    settled = likenesses[0].equal == 1 and math.isfinite(likenesses[0].kept) and math.isfinite(likenesses[0].size)
    if settled:
        assert as_float64(stored.held, source) == right


def same(first: Likeness, second: Likeness) -> bool:
    """NaN is NaN, whatever its bits."""
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return all(one == other or (math.isnan(one) and math.isnan(other)) for one, other in pairs)


@given(values=st.lists(st.floats(width=64), min_size=1, max_size=6))
@pytest.mark.parametrize("dtype", [*DTYPES, "F64"])
def test_a_number_is_rounded_alike_whatever_stands_beside_it(dtype: str, values: list[float]):
    together = round_once(np.array(values), dtype)
    alone = np.concatenate([round_once(np.array([value]), dtype) for value in values])
    np.testing.assert_array_equal(together.view(np.uint64), alone.view(np.uint64))


@given(value=st.floats(width=64))
@pytest.mark.parametrize("dtype", [*DTYPES, "F64"])
def test_numpy_rounds_as_torch_does_once(dtype: str, value: float):
    exact = np.array([value])
    wanted = rounding.round_once(torch.from_numpy(exact), RAW[dtype]).double().numpy()
    assert np.array_equal(round_once(exact, dtype), wanted, equal_nan=True)
    if dtype != "F64":
        limited = rounding.clamp(torch.from_numpy(exact), RAW[dtype]).numpy()
        assert np.array_equal(clamp(exact, dtype), limited, equal_nan=True)


def test_every_float16_and_bfloat16_is_read_as_what_it_is():
    every = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).reshape(256, 256)
    nothing = np.empty((256, 0)), np.empty((0, 256))
    for dtype, numbers in (("BF16", every), ("F16", every.view(np.float16))):
        wide = torch.from_numpy(every.view(np.int16)).view(RAW[dtype]).double().numpy()
        assert np.array_equal(as_float64(numbers, dtype), wide, equal_nan=True)
        finite = np.isfinite(wide)
        own = Numbers(held=np.where(finite, every, 0).astype(np.uint16).view(numbers.dtype), dtype=dtype)
        for way in (*KINDS, NUMPY):
            likeness = compare(own, own, *nothing, kind=way)
            assert likeness.same == likeness.equal == every.size
            assert likeness.size == pytest.approx(math.fsum(np.where(finite, wide, 0.0).ravel() ** 2), rel=1e-13)


@pytest.mark.skipif(not KINDS, reason="installed without a C compiler")
def test_buffers_that_do_not_fit_are_refused():
    weight, stored, left, right = case(4, 8, 2, "BF16", "BF16", seed=3)
    call = rederive.compiled.compare
    arguments = [weight.held, "BF16", stored.held, "BF16", left, right, 4, 2, 8]
    assert call(*arguments)[0] == compare(weight, stored, left, right).equal
    unaligned = np.frombuffer(bytearray(65), np.uint8)[1:].data
    for at, wrong in ((0, weight.held[:3]), (1, "F64"), (2, stored.held[:, :7].copy()), (3, "I8"), (4, left[:3]), (5, right[:1]),
                      (6, 5), (7, 3), (8, -8), (0, unaligned)):  # fmt: skip
        with pytest.raises(ValueError, match=r"fit|F64|I8"):
            call(*(wrong if at == number else value for number, value in enumerate(arguments)))
    with pytest.raises(ValueError, match="does not run mmx"):
        call(*arguments, "mmx")
    with pytest.raises(ValueError, match="fit"):
        rederive.compiled.product(left, right, np.empty((4, 7)), 4, 2, 8)
