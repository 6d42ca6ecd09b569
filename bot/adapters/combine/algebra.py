"""What A and B of one module become, in float64. The reference is PEFT's `add_weighted_adapter`.

Written with w for an adapter's weight and s for its scaling, for the adapters that have the module:

* cat: A = [w·s·A₁; w·s·A₂ …], B = [B₁ B₂ …]: the weighted sum itself, exact up to the rounding of w·s·A.
* svd: the best approximation of Σ w·s·B·A by the wanted rank, as A = Vᵀ and B = U·S.
* linear: A = Σ ±√|w·s|·A and B = Σ √|w·s|·B, the sign of w·s going to A. (B·A then has cross terms: an approximation.)
* magnitude_prune: the same after all but the largest values of each A and B are set to zero.
* dare_linear (arXiv 2311.03099): the same after random values are set to zero and the others divided by the density.
* ties (arXiv 2306.01708): prune by magnitude, elect for each value the sign of its sum over the adapters (or of most of
  them), and take the mean of the weighted values that have that sign. dare_ties: the same with dare's pruning.

Where this does not follow PEFT: PEFT refuses `linear` and the kinds made of it for adapters of different ranks (here the
smaller ones are filled up with zeros, which leaves each of them what it was, and pruning counts without them); it rounds
its weights to float32; it keeps the first adapter's use_rslora beside alpha = r, which scales the result by √r, and its
layers_to_transform, which loses the other's layers; its svd folds Conv1d and Conv3d weights wrongly; and which of several
equally large values its pruning keeps is left to torch.topk (here: the first ones).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bot.adapters.combine.exact import Array, truncated
from bot.adapters.combine.notation import PRUNING, RANDOM, VOTING
from bot.adapters.combine.outline import Slot
from bot.records import Combination

Side = Literal["A", "B"]
RANK_AXIS: dict[Side, int] = {"A": 0, "B": 1}


@dataclass(frozen=True, kw_only=True)
class Half:
    """A and B of one adapter in float64. `index`: which adapter; `factor`: w·s."""

    index: int
    a: Array
    b: Array
    factor: float


def combine_module(slot: Slot, halves: Sequence[Half], how: Combination) -> tuple[Array, Array]:
    """A (slot.a) and B (slot.b)."""
    if how.kind == "cat":
        a = np.concatenate([half.factor * half.a for half in halves], axis=0)
        return a, np.concatenate([half.b for half in halves], axis=1)
    if how.kind == "svd":
        return _svd(slot, halves)
    return _task_arithmetic(slot, halves, how, "A"), _task_arithmetic(slot, halves, how, "B")


def _svd(slot: Slot, halves: Sequence[Half]) -> tuple[Array, Array]:
    """Never the product itself, which is as large as the base's weight: its factors are small."""
    left = np.concatenate([half.b.reshape(half.b.shape[:2]).T for half in halves])
    right = np.concatenate([half.factor * half.a.reshape(len(half.a), -1) for half in halves])
    outer, inner = truncated(left, right, slot.rank)
    return inner.reshape(slot.a), outer.T.reshape(slot.b)


def _task_arithmetic(slot: Slot, halves: Sequence[Half], how: Combination, side: Side) -> Array:
    shape = slot.a if side == "A" else slot.b
    values, weights = [], []
    for half in halves:
        value = half.a if side == "A" else half.b
        if how.kind in PRUNING:
            value = _pruned(value, how, f"{half.index}/{slot.module}/{side}")
        values.append(_filled(value, shape, RANK_AXIS[side]))
        weights.append(math.sqrt(abs(half.factor)) * (-1.0 if side == "A" and half.factor < 0 else 1.0))
    if how.kind in VOTING:
        return _elected(values, weights, how)
    result = np.zeros(shape)
    for value, weight in zip(values, weights, strict=True):
        result += weight * value
    return result


def _filled(value: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Filled up with zeros to the largest rank."""
    missing = shape[axis] - value.shape[axis]
    return np.pad(value, [(0, missing if at == axis else 0) for at in range(value.ndim)]) if missing else value


def _elected(values: Sequence[Array], weights: Sequence[float], how: Combination) -> Array:
    """The mean of the weighted values that have the elected sign. As in PEFT, the weights have no vote."""
    votes, result, kept = (np.zeros(values[0].shape) for _ in range(3))
    for value in values:
        votes += np.sign(value) if how.majority_sign == "frequency" else value
    elected = np.where(votes >= 0, 1.0, -1.0)
    for value, weight in zip(values, weights, strict=True):
        agrees = np.sign(value) == elected
        result += np.where(agrees, weight * value, 0.0)
        kept += agrees
    return result / np.maximum(kept, 1.0)


def _pruned(value: Array, how: Combination, name: str) -> Array:
    assert how.density is not None
    if how.density >= 1:
        return value
    if how.kind in RANDOM:
        assert how.seed is not None
        keep = drawn(how.seed, name, value.size, how.density).reshape(value.shape)
        return np.where(keep, value / how.density, 0.0)
    return np.where(largest(value, how.density), value, 0.0)


def drawn(seed: int, name: str, size: int, density: float) -> NDArray[np.bool_]:
    """Which of `size` values stay, by chance: the stream of Philox 4×64 that `seed` and `name` give, below the density.

    The key is the first 16 bytes of sha256("seed/name"), little-endian; the draw, the raw 64-bit words below density·2⁶⁴.
    Every tensor has its own stream, so that neither the order of the modules nor the other tensors matter.
    """
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16]
    words = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(size)
    return np.asarray(words < np.uint64(int(density * 2.0**64)))


def largest(value: Array, density: float) -> NDArray[np.bool_]:
    """Where the ⌊density · size⌋ largest magnitudes are; of equal ones, the first."""
    sizes = np.abs(value).reshape(-1)
    count = int(density * sizes.size)
    if count == 0:
        return np.zeros(value.shape, dtype=bool)
    least = np.partition(sizes, sizes.size - count)[sizes.size - count]
    keep: NDArray[np.bool_] = sizes > least
    equal = np.flatnonzero(sizes == least)
    keep[equal[: count - int(keep.sum())]] = True
    return keep.reshape(value.shape)
