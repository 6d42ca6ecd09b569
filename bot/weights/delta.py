"""round(W + s·B·A) with one rounding: the exact result, rounded to nearest, ties to even, on any machine.

Three steps, each only for the elements that the one before could not decide:

1. float32 (float64 where the output is float32): compute v ≈ W + D and a bound e on its error; where v−e and v+e round
   to the same value, that value is the answer (rounding is monotonic).
2. float64, for the few elements per ten thousand that are left.
3. rational arithmetic, for those that float64 cannot decide: true ties and near-ties.

The error bound of a sum of k products in any order is γ_k·Σ|b||a|, γ_k = k·u/(1−k·u) (Higham, Accuracy and Stability of
Numerical Algorithms, §3.1); Σ|b_ik||a_kj| ≤ ‖b_i‖·‖a_j‖ by Cauchy-Schwarz, so one number per
row bounds the whole row, and the largest of them a block of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
# Subnormal results lose an absolute, not a relative amount: this much per operation.
SMALLEST = {torch.float32: 2.0**-149, torch.float64: 2.0**-1074}
SLICE = 1 << 18  # numbers that step 2 gathers at a time: 2 MiB of float64 for each of its few arrays
SAFETY = 1.0625  # covers the rounding of the bound's own evaluation
INT_VIEW = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
# (precision in bits with the hidden one, smallest exponent e of a normal number 1.x·2^e)
FORMAT = {torch.bfloat16: (8, -126), torch.float16: (11, -14), torch.float32: (24, -126)}


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """s·left·right, the delta in the orientation in which W is stored.

    left: rows × r; right: r × cols; both in the dtype the adapter stores, exactly. `compute` is step 1's dtype.
    """

    left: Tensor
    right: Tensor
    scaling: float
    compute: torch.dtype
    scaled_left: Tensor = field(repr=False)  # rows × r, compute dtype
    right_cast: Tensor = field(repr=False)  # r × cols, compute dtype
    row_bound: list[float] = field(repr=False)  # per row s·‖left_i‖·max_j‖right_j‖, which is ≥ max_j Σ|terms|


@dataclass(kw_only=True)
class Tally:
    """How many elements each later step decided."""

    float64: int = 0
    rational: int = 0


def low_rank(a: Tensor, b: Tensor, scaling: float, *, transposed: bool, out: torch.dtype) -> LowRank:
    """Prepare s·B·A, B: out × r, A: r × in. `transposed`: for a W stored in × out. `out`: the storage dtype of W'."""
    left, right = (a.T, b.T) if transposed else (b, a)
    narrow = all(t.dtype in (torch.float32, torch.float16, torch.bfloat16) for t in (a, b))
    compute = torch.float32 if narrow and out != torch.float32 else torch.float64
    scaled = left.to(torch.float64) * scaling
    bound = scaled.norm(dim=1) * right.to(torch.float64).norm(dim=0).max() * SAFETY
    return LowRank(
        left=left,
        right=right,
        scaling=scaling,
        compute=compute,
        scaled_left=scaled.to(compute).contiguous(),
        right_cast=right.to(compute).contiguous(),
        row_bound=bound.tolist(),
    )


def frobenius(delta: LowRank) -> float:
    """‖s·B·A‖_F from two r × r Gram matrices, without forming the delta."""
    left, right = delta.left.to(torch.float64), delta.right.to(torch.float64)
    return delta.scaling * math.sqrt(max(0.0, float(((left.T @ left) * (right @ right.T)).sum())))


class Rounder:
    """Adds a delta to blocks of rows, with buffers that are used again for every block. One per thread."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self.tally = Tally()

    def add(self, weight: Tensor, delta: LowRank, first_row: int, out: Tensor) -> None:
        """out ← round(weight + delta[first_row : first_row + rows]); both rows × cols, contiguous.

        Raises OverflowError when a result is not finite in out's dtype, ValueError when `weight` has a NaN or Inf.
        """
        rows = slice(first_row, first_row + weight.shape[0])
        value = self._buffer("value", weight.shape, delta.compute)
        wide = self._buffer("wide", weight.shape, delta.compute)
        torch.mm(delta.scaled_left[rows], delta.right_cast, out=value)
        # Converted first: torch adds mixed dtypes at half the speed.
        value += wide.copy_(weight)
        error = self._error(value, delta, rows, weight)
        low = self._buffer("low", weight.shape, out.dtype)
        low.copy_(torch.sub(value, error, out=wide))
        out.copy_(torch.add(value, error, out=wide))
        undecided = _differing(low, out)
        for places in torch.split(undecided, max(1, SLICE // delta.left.shape[1])):
            self._decide(places, weight, delta, first_row, out)
        if out.dtype == torch.float16 and not bool(torch.isfinite(out).all()):
            raise OverflowError("a merged weight is too large for float16")

    def _error(self, value: Tensor, delta: LowRank, rows: slice, weight: Tensor) -> float:
        """A bound on |value ± error as computed − the exact result|, over the whole block."""
        largest = max(abs(float(end)) for end in torch.aminmax(value))  # NaN and Inf come through
        if not math.isfinite(largest):
            if not bool(torch.isfinite(weight).all()):
                raise ValueError("the weight holds a NaN or Inf")
            raise OverflowError("a merged weight is too large for its dtype")
        unit, rank, terms = UNIT[delta.compute], delta.left.shape[1], max(delta.row_bound[rows])
        # rank products and sums, the scaling and the cast of the left side; then two additions of at most `largest`:
        # of the weight, and of the bound itself.
        relative = terms * ((rank + 4) * unit) + largest * (2 * unit)
        return (relative * SAFETY + (rank + 8) * SMALLEST[delta.compute]) if relative else 0.0

    def _decide(self, places: Tensor, weight: Tensor, delta: LowRank, first_row: int, out: Tensor) -> None:
        """Steps 2 and 3 for the elements at `places` (flat indices into the block)."""
        row, column = places // weight.shape[1], places % weight.shape[1]
        w = weight[row, column].to(torch.float64)
        left = delta.left[row + first_row].to(torch.float64)
        right = delta.right.T[column].to(torch.float64)
        terms = left * right
        value = w + terms.sum(1) * delta.scaling
        magnitude = w.abs() + terms.abs().sum(1) * abs(delta.scaling)
        # With float64 adapters the products themselves are rounded too: one unit more, inside the constant.
        error = magnitude * ((left.shape[1] + 6) * UNIT[torch.float64] * SAFETY)
        low, high = round_once(value - error, out.dtype), round_once(value + error, out.dtype)
        integers = INT_VIEW[out.dtype]
        open_cases = torch.nonzero(low.view(integers) != high.view(integers))[:, 0].tolist()
        for case in open_cases:
            exact = Fraction(float(w[case])) + Fraction(delta.scaling) * sum(
                (Fraction(x) * Fraction(y) for x, y in zip(left[case].tolist(), right[case].tolist(), strict=True)),
                Fraction(0),
            )
            high[case] = round_rational(exact, out.dtype)
        out[row, column] = high
        self.tally.float64 += places.shape[0]
        self.tally.rational += len(open_cases)

    def _buffer(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        wanted = shape.numel()
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < wanted:
            buffer = self._buffers[name, dtype] = torch.empty(wanted, dtype=dtype)
        return buffer[:wanted].view(shape)


def _differing(low: Tensor, high: Tensor) -> Tensor:
    """Flat indices of the elements that are not the same bits in both; same shape and dtype, contiguous.

    Compared eight bytes at a time first: finding the few in a hundred thousand is what costs.
    """
    integers = INT_VIEW[low.dtype]
    low, high = low.view(-1).view(integers), high.view(-1).view(integers)
    width = 8 // low.element_size()
    if low.storage_offset() % width or high.storage_offset() % width:
        return torch.nonzero(low != high)[:, 0]
    whole = low.numel() // width * width
    groups = torch.nonzero(low[:whole].view(torch.int64) != high[:whole].view(torch.int64))[:, 0]
    places = (groups[:, None] * width + torch.arange(width)).view(-1)
    places = torch.cat([places, torch.arange(whole, low.numel())])
    return places[low[places] != high[places]]


def round_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 → dtype with a single rounding. (torch's own cast goes by way of float32 and rounds twice.)

    The way round it is round-to-odd into float32 (Boldo and Melquiond, 2008): the sticky last bit keeps the second
    rounding honest, since float32 has more than two bits over bfloat16 and float16.
    """
    near = values.to(torch.float32)
    if dtype == torch.float32:
        return near
    back = near.to(torch.float64)
    bits = near.view(torch.int32)
    # Toward zero: where rounding moved away from zero, step one back; then set the last bit if anything was lost.
    truncated = torch.where(back.abs() > values.abs(), bits - 1, bits)
    odd = torch.where(back != values, truncated | 1, bits)
    return torch.where(torch.isfinite(near), odd.view(torch.float32), near).to(dtype)


def round_rational(value: Fraction, dtype: torch.dtype) -> float:
    """A rational number rounded to nearest, ties to even, in `dtype`. Raises OverflowError beyond its largest."""
    if value == 0:
        return 0.0
    precision, lowest = FORMAT[dtype]
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, lowest) - precision + 1)
    result = float(round(magnitude / quantum) * quantum)  # Python rounds a Fraction's ties to even
    if result > torch.finfo(dtype).max:
        raise OverflowError(f"a merged weight is too large for {str(dtype).removeprefix('torch.')}")
    return math.copysign(result, value.numerator)
