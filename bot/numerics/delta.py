"""What is added to a weight: a sum of low-rank products, with the bounds that its rounding needs (see `rounder`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bot.numerics.rounding import Array

LEAST_SHARE = 2.0**-100
SAFETY = 1.0625  # covers the rounding of the bound's own evaluation


@dataclass(frozen=True, kw_only=True)
class Delta:
    """Σ scale_k · left[:, k] · right[k, :], in the orientation in which W is stored, and what DoRA needs beside it.

    left: rows × k; right: columns × k (its transpose, so that what one element needs lies together); float32 or float64,
    the adapter's numbers exactly. `magnitude`: one number a row or a column, float64; `squares`: Σ V² of each column,
    where the norm runs along columns.
    """

    left: Array
    right: Array
    scale: Array  # k, float64
    compute: np.dtype[np.floating]
    scaled_left: Array = field(repr=False)
    right_cast: Array = field(repr=False)  # k × columns, compute dtype
    row_bound: Array = field(repr=False)  # per row ‖scale·left_i‖·max_j‖right_j‖, which is ≥ max_j Σ|terms|
    column_share: Array = field(repr=False)  # per column ‖right_j‖ / max_j‖right_j‖, float32: row_bound·this ≥ Σ|terms|
    least: float  # what numbers too small for the compute dtype add to the error of any element, whatever its size
    magnitude: Array | None = None
    along: Literal["rows", "columns"] = "rows"
    squares: Array | None = None


def make_delta(
    lefts: list[Array],
    rights: list[Array],
    scalings: list[float],
    *,
    out: str,
    magnitude: Array | None = None,
    along: Literal["rows", "columns"] = "rows",
) -> Delta:
    """Prepare Σ s·left·right. `out`: the storage dtype of W'. The factors are float32 or float64."""
    left = np.ascontiguousarray(lefts[0] if len(lefts) == 1 else np.concatenate(lefts, axis=1))
    right = np.ascontiguousarray((rights[0] if len(rights) == 1 else np.concatenate(rights, axis=0)).T)
    scale = np.concatenate([np.full(part.shape[1], s) for part, s in zip(lefts, scalings, strict=True)])
    narrow_enough = left.dtype == right.dtype == np.float32 and out != "F32" and magnitude is None
    compute: np.dtype[np.floating] = np.dtype(np.float32 if narrow_enough else np.float64)
    scaled = left * scale  # float64
    lengths = np.sqrt(np.einsum("jk,jk->j", right, right, dtype=np.float64))
    longest = float(lengths.max(initial=0.0))
    bound = np.sqrt(np.einsum("ik,ik->i", scaled, scaled)) * (longest * SAFETY)
    return Delta(
        left=left,
        right=right,
        scale=scale,
        compute=compute,
        scaled_left=np.ascontiguousarray(scaled, dtype=compute),
        right_cast=np.ascontiguousarray(right.T, dtype=compute),
        row_bound=bound,
        # Never zero: a bound that is infinite stays so. Its rounding is within SAFETY.
        column_share=np.maximum(lengths / (longest or 1.0), LEAST_SHARE).astype(np.float32),
        least=_underflow(left, right, scaled, compute),
        magnitude=magnitude,
        along=along,
    )


def _underflow(left: Array, right: Array, scaled: Array, compute: np.dtype[np.floating]) -> float:
    """A bound on what underflow adds to the error of any sum: for each product and sum the smallest normal number, as a GPU, or
    a library that sets the processor so, may flush what is smaller to zero; and where scaling the left side comes below it, as
    much for each of its numbers, times the number that it is then multiplied with."""
    rank: int = left.shape[1]
    tiny = float(np.finfo(compute).tiny)
    if not bool(((np.abs(scaled) < tiny) & (left != 0)).any()):
        return (rank + 8) * tiny
    return (rank * (1 + float(np.abs(right).max(initial=0.0))) + 8) * tiny
