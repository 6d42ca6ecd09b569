"""The linear algebra that gives the same bits everywhere, held to LAPACK's."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from bot.adapters.combine.exact import jacobi, total, truncated


@pytest.mark.parametrize("width", [0, 1, 2, 3, 7, 64, 1001])
def test_a_total_is_the_sum(width: int) -> None:
    rows = np.random.default_rng(width).standard_normal((3, width))
    np.testing.assert_allclose(total(rows), rows.sum(axis=-1), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("rows", "columns", "inner", "rank"),
    [(20, 30, 5, 5), (20, 30, 8, 3), (6, 30, 9, 4), (30, 6, 9, 6), (5, 5, 12, 5), (1, 9, 3, 1), (9, 1, 3, 1)],
)
@pytest.mark.parametrize("twins", [False, True], ids=["independent", "dependent"])
def test_truncated_is_the_best_approximation(rows: int, columns: int, inner: int, rank: int, twins: bool) -> None:
    random = np.random.default_rng(rows * columns)
    left, right = random.standard_normal((inner, rows)), random.standard_normal((inner, columns))
    if twins:  # as when an adapter is combined with itself
        left[inner // 2 :] = left[: inner - inner // 2]
        right[inner // 2 :] = right[: inner - inner // 2]
    u, s, v = np.linalg.svd(left.T @ right, full_matrices=False)
    outer, turned = truncated(left.copy(), right.copy(), rank)
    np.testing.assert_allclose(outer.T @ turned, (u[:, :rank] * s[:rank]) @ v[:rank], rtol=0, atol=1e-13 * s[0])
    np.testing.assert_allclose(turned @ turned.T, np.eye(rank), atol=1e-13)
    assert (turned[np.arange(rank), np.abs(turned).argmax(axis=1)] > 0).all()


def test_nothing_stays_nothing() -> None:
    outer, inner = truncated(np.zeros((4, 9)), np.random.default_rng(0).standard_normal((4, 7)), 2)
    assert not outer.any()
    assert np.isfinite(inner).all()


def test_small_singular_values_are_as_exact_as_large_ones() -> None:
    random = np.random.default_rng(5)
    rows = np.linalg.qr(random.standard_normal((6, 6)))[0] * 10.0 ** -np.arange(0, 12, 2)[:, None]
    turned, _ = jacobi(rows.copy())
    np.testing.assert_allclose(np.sqrt(total(turned**2)), 10.0 ** -np.arange(0, 12, 2), rtol=1e-13)


PROGRAM = """
import hashlib, numpy as np
from bot.adapters.combine.exact import truncated
numbers = np.random.Philox(key=0).random_raw(24 * 500) / 2.0**64 - 0.5
left, right = numbers[: 24 * 300].reshape(24, 300), numbers[24 * 300 :].reshape(24, 200)
blas = left @ left.T
found = truncated(left, right, 12)
print(*(hashlib.sha256(one.tobytes()).hexdigest()[:16] for one in (*found, blas)))
"""
PROCESSORS = {
    "this one": {},
    "of 2004": {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL"},
    "of 2013": {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL"},
}


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_bits_are_the_same_whatever_the_processor(processor: str) -> None:
    """With its newer instructions switched off, a processor counts as an older one. (BLAS's bits do change.)"""
    environment = os.environ | PROCESSORS[processor]
    ran = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split()[:2] == ["2b5f0f94942f321f", "eb5db37cbacd675d"]
