"""Linear algebra in float64 that gives the same bits everywhere.

BLAS and LAPACK choose their order of summation by the processor, so that their results differ in the last digits from
machine to machine. Here every step is an elementwise operation, which IEEE 754 defines to the last bit.
Vectors are the *rows* of the arrays, so that each lies in one piece.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CACHED = 1 << 15  # numbers worked on at a time: what stays in a processor's own cache
SWEEPS = 40  # a dozen are enough; the bound is for inputs that never converge
EPSILON = float(np.finfo(np.float64).eps)


def total(x: Array) -> Array:
    """The sums along the last axis, by halving: the result depends on no library's order of summation."""
    while (width := x.shape[-1]) > 1:
        half = width // 2
        folded = x[..., :half] + x[..., half : 2 * half]
        if width % 2:
            folded[..., 0] += x[..., -1]
        x = folded
    return x[..., 0] if x.shape[-1] else np.zeros(x.shape[:-1])


def reflect(rows: Array, mirror: Array) -> None:
    """Householder's reflection along `mirror`, of every row, in place."""
    scale = total(mirror * mirror)
    if scale == 0:
        return
    step = max(1, CACHED // len(mirror))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        part -= (2.0 * total(part * mirror) / scale)[:, None] * mirror


def triangle(rows: Array) -> tuple[Array, list[Array]]:
    """(R, mirrors) of k vectors of m ≥ k numbers (k × m, overwritten): rowsᵀ = Q·R, Q being the product of the reflections.

    Householder 1958; R is k × k and upper triangular, and exact for vectors that depend on each other, too.
    """
    count = len(rows)
    mirrors: list[Array] = []
    for at in range(count):
        mirror = rows[at, at:].copy()
        mirror[0] += np.copysign(np.sqrt(total(mirror * mirror)), mirror[0])
        reflect(rows[at:, at:], mirror)
        mirrors.append(mirror)
    return np.triu(rows[:, :count].T), mirrors


def unfold(rows: Array, mirrors: list[Array], width: int) -> Array:
    """Rows in the coordinates of Q (n × k), back in those of the vectors that it was made from (n × width)."""
    unfolded = np.zeros((len(rows), width))
    unfolded[:, : rows.shape[1]] = rows
    for at in range(len(mirrors) - 1, -1, -1):
        reflect(unfolded[:, at:], mirrors[at])
    return unfolded


def jacobi(rows: Array) -> tuple[Array, Array]:
    """One-sided Jacobi (Hestenes 1958) of q rows of p numbers: (rotation · rows, rotation), whose rows are orthogonal.

    `rotation` is q × q and orthogonal; the norms of the rows are the singular values, largest first.
    """
    count = len(rows)
    work = np.concatenate([rows, np.eye(count)], axis=1)  # the same rotations apply to both
    width = rows.shape[1]
    floor = (EPSILON**2) * total(total(rows * rows)[None, :])[0]
    rounds = _rounds(count)
    for _ in range(SWEEPS):
        if not sum(_rotate(work, width, first, second, floor) for first, second in rounds):
            break
    norms = total(work[:, :width] ** 2)
    work = work[np.argsort(-norms, kind="stable")]
    return work[:, :width], work[:, width:]


def _rotate(work: Array, width: int, first: NDArray[np.intp], second: NDArray[np.intp], floor: float) -> int:
    """Make each first row orthogonal to its second; how many were not."""
    x, y = work[first], work[second]
    xx, yy, xy = total(x[:, :width] ** 2), total(y[:, :width] ** 2), total(x[:, :width] * y[:, :width])
    # What is left of vectors that depend on each other is noise, and has no direction to rotate.
    bent = (np.abs(xy) > EPSILON * np.sqrt(xx) * np.sqrt(yy)) & (np.minimum(xx, yy) > floor)
    if not bent.any():
        return 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        zeta = (yy - xx) / (2.0 * xy)
        tangent = np.copysign(1.0, zeta) / (np.abs(zeta) + np.sqrt(1.0 + zeta * zeta))
    tangent = np.where(bent, tangent, 0.0)[:, None]
    cosine = 1.0 / np.sqrt(1.0 + tangent * tangent)
    sine = cosine * tangent
    work[first], work[second] = cosine * x - sine * y, sine * x + cosine * y
    return int(bent.sum())


def _rounds(count: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Every pair once, in rounds of pairs that have nothing in common (as a tournament is drawn up)."""
    circle = list(range(count)) + ([-1] if count % 2 else [])
    half, rounds = len(circle) // 2, []
    for _ in range(len(circle) - 1):
        pairs = [(a, b) for a, b in zip(circle[:half], reversed(circle[half:]), strict=True) if -1 not in (a, b)]
        if pairs:
            table = np.array([(min(pair), max(pair)) for pair in pairs], dtype=np.intp)
            rounds.append((table[:, 0], table[:, 1]))
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return rounds


def truncated(left: Array, right: Array, rank: int) -> tuple[Array, Array]:
    """The best approximation of leftᵀ·right by `rank` (Eckart & Young 1936), as (U·S)ᵀ and Vᵀ: rank × m and rank × n.

    left is k × m and right k × n, both overwritten. Each row of Vᵀ has its largest number positive.
    """
    rows, columns = left.shape[1], right.shape[1]
    core_left, left_mirrors = triangle(left) if len(left) < rows else (left.T, [])
    core_right, right_mirrors = triangle(right) if len(right) < columns else (right.T, [])
    core = np.zeros((len(core_right), len(core_left)))  # (core_left · core_rightᵀ)ᵀ
    for at in range(core_left.shape[1]):
        core += core_right[:, at, None] * core_left[:, at]
    scaled, rotation = jacobi(core)
    outer = unfold(scaled[:rank], left_mirrors, rows)
    inner = unfold(rotation[:rank], right_mirrors, columns)
    largest = inner[np.arange(len(inner)), np.abs(inner).argmax(axis=1)]
    signs = np.where(largest < 0, -1.0, 1.0)[:, None]
    return signs * outer, signs * inner
