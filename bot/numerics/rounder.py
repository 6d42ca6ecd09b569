"""round(W + s·B·A) with one rounding: the exact result, rounded to nearest, ties to even, on any machine.

Three steps, each only for the elements that the one before could not decide:

1. float32 (float64 where the output or the adapter is that wide): compute v ≈ W + D and a bound e on its error; where
   v−e and v+e round to the same value, that value is the answer (rounding is monotonic).
2. float64, for the few elements per ten thousand that are left.
3. rational arithmetic, for those that float64 cannot decide: true ties and near-ties.

The error bound of a sum of k products in any order is γ_k·Σ|b||a|, γ_k = k·u/(1−k·u) (Higham, Accuracy and Stability of
Numerical Algorithms, §3.1); Σ|b_ik||a_kj| ≤ ‖b_i‖·‖a_j‖ by Cauchy-Schwarz, so one number per row bounds the whole row,
and the largest of them a block of rows. DoRA (Liu et al. 2024, arXiv 2402.09353, as PEFT computes it) is m·V/‖V‖ with
V = W + s·B·A: computed in float64, settled by the same three steps.

numpy does all of this; for bfloat16, `_exact.c` does steps 1 and 2 in one pass, where the package was built with a C
compiler. Which of them ran cannot be seen in the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from bot.numerics.delta import SAFETY, Delta
from bot.numerics.rounding import LARGEST, UNIT, Array, clamp, narrow, round_rational, widen

try:
    from bot.numerics import _exact
except ImportError:  # installed where there is no C compiler
    _exact = None  # type: ignore[assignment]

CLONES: tuple[str, ...] = _exact.CLONES if _exact else ()  # the compiled loop's, for this processor, best first
SLICE = 1 << 17  # numbers that step 2 gathers at a time: 1 MiB of float64 for each of its few arrays
UNIT64 = 2.0**-53
TIE = {"BF16": np.uint32(0x8000), "F16": np.uint32(0x1000)}  # half a unit of the last kept bit, in float32's bits
DROPPED = {"BF16": np.uint32(16), "F16": np.uint32(13)}  # bits of float32's fraction that the format has not
SMALL_HALF = np.uint32(113 << 23)  # 2⁻¹⁴, float16's smallest normal number, as float32's bits
HALF_INFINITY = np.uint32(0x7C00)  # as float16's bits


Multiply = Callable[..., object]


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How a merge computes. `multiply`: (left, right, out=) → out = left @ right, for instance on another device.
    `clamps`: a result that is too large for its dtype becomes that dtype's largest number; else it is an error."""

    multiply: Multiply = np.matmul
    clamps: bool = False


HERE = Arithmetic()  # on this processor, without clamping


@dataclass(kw_only=True)
class StepCounts:
    """How many elements each later step decided."""

    float64: int = 0
    rational: int = 0


class Rounder:
    """Adds deltas to blocks of rows, with buffers that are used again for every block. One per thread."""

    def __init__(self, arithmetic: Arithmetic = HERE, *, clone: str | None = next(iter(CLONES), None)) -> None:
        """`clone`: one of CLONES; None: numpy alone."""
        self._multiply, self._clamps, self._clone = arithmetic.multiply, arithmetic.clamps, clone
        self._buffers: dict[tuple[str, np.dtype[np.generic]], Array] = {}
        self.tally = StepCounts()

    def add(self, weight: Array, dtype: str, delta: Delta, first: int, out: Array, out_dtype: str) -> None:
        """out ← round(weight + delta[first : first + rows]), or its DoRA form; both rows × columns, as stored.

        Raises OverflowError when a result is too large for `out_dtype` (and not clamped), ValueError when `weight` has a NaN
        or Inf (or a row that DoRA would divide by zero for).
        """
        try:
            if self._clone and dtype == out_dtype == "BF16" and delta.compute == np.float32:
                self._add_compiled(weight, delta, first, out)
            else:
                self._add(weight, dtype, delta, first, out, out_dtype)
        except OverflowError:
            if not self._clamps or delta.compute == np.float64:
                raise
            # A sum is too large for float32 itself: each element by the later steps, and clamped.
            for part in _parts(np.arange(weight.size), delta):
                self._decide(part, weight, dtype, delta, first, None, out, out_dtype)
            clamp(out, out_dtype)

    def _add(self, weight: Array, dtype: str, delta: Delta, first: int, out: Array, out_dtype: str) -> None:
        """Any dtypes, DoRA too; in numpy."""
        value = self._sum(weight, dtype, delta, first)
        largest = _finite(_largest(value), weight, dtype)
        rows = slice(first, first + weight.shape[0])
        error = self._error(delta, rows, largest)
        if delta.magnitude is not None:
            factor, relative = self._scale(value, delta, rows, largest)
            value *= factor
            error *= float(np.abs(factor).max(initial=0.0)) * SAFETY
            largest = _finite(_largest(value), weight, dtype)
            error += relative * largest
        with np.errstate(over="ignore"):
            undecided = self._round_certain(value, error, largest, out, out_dtype)
        for part in _parts(undecided, delta):
            self._decide(part, weight, dtype, delta, first, (value, error), out, out_dtype)
        self._limit(out, out_dtype, largest + 2 * error)

    def _add_compiled(self, weight: Array, delta: Delta, first: int, out: Array) -> None:
        """bfloat16, no magnitude: the product and steps 1 and 2 in C, whose error bound is each element's own."""
        rows, rank = slice(first, first + weight.shape[0]), delta.left.shape[1]
        product = None
        if self._multiply is not np.matmul:  # on another device
            product = self._buffer("value", weight.shape, delta.compute)
            self._multiply(delta.scaled_left[rows], delta.right_cast, out=product)
        weight, bound = np.ascontiguousarray(weight), delta.row_bound[rows]
        rest = self._buffer("rest", (weight.size,), np.dtype(np.uint32))
        unit, least = UNIT[delta.compute], delta.least
        # The loop adds up chains of CHAIN terms, and then those sums; another device in any order.
        terms = rank if product is not None else min(rank, _exact.CHAIN) + -(-rank // _exact.CHAIN)
        row_error = (bound * ((terms + 4) * unit * SAFETY)).astype(np.float32)
        largest, recomputed, still_open = _exact.settle(
            weight,
            product,
            delta.scaled_left[rows],
            delta.right_cast,
            out,
            rest,
            row_error,
            delta.column_share,
            delta.left[rows],
            delta.right,
            delta.scale,
            bound,
            least,
            2 * unit * SAFETY,
            self._clone,
        )
        _finite(largest, weight, "BF16")
        self.tally.float64 += recomputed - still_open
        for part in _parts(rest[:still_open], delta):
            self._decide(part, weight, "BF16", delta, first, None, out, "BF16")
        self._limit(out, "BF16", largest * (1 + 4 * unit) + 4 * (float(row_error.max(initial=0.0)) + least))

    def _limit(self, out: Array, dtype: str, largest: float) -> None:
        """What became Inf is clamped, or raises OverflowError; `largest` bounds them all before they are rounded."""
        if largest <= LARGEST[dtype]:
            return
        if self._clamps:
            clamp(out, dtype)
        elif not bool(np.isfinite(widen(out, dtype)).all()):
            raise OverflowError(f"a merged weight is too large for {dtype}")

    def squares(self, weight: Array, dtype: str, delta: Delta, first: int, total: Array) -> None:
        """total[j] += Σ_i V_ij² over this block of rows, for a DoRA norm along columns."""
        value = self._sum(weight, dtype, delta, first)
        value *= value
        total += value.sum(axis=0)

    def _sum(self, weight: Array, dtype: str, delta: Delta, first: int) -> Array:
        """W + D in delta's compute dtype, in a buffer."""
        value = self._buffer("value", weight.shape, delta.compute)
        self._multiply(delta.scaled_left[first : first + weight.shape[0]], delta.right_cast, out=value)
        wide = self._buffer("wide", weight.shape, np.dtype(np.float64 if dtype == "F64" else np.float32))
        with np.errstate(over="ignore", invalid="ignore"):  # _finite tells
            value += widen(weight, dtype, wide)
        return value

    def _scale(self, value: Array, delta: Delta, rows: slice, largest: float) -> tuple[Array, float]:
        """(m / ‖V‖, shaped to broadcast over the block, and a bound on the norm's relative error)."""
        assert delta.magnitude is not None
        if delta.along == "rows":
            norm, count = np.sqrt(np.einsum("ij,ij->i", value, value))[:, None], value.shape[1]
            magnitude = delta.magnitude[rows, None]
            error = self._error(delta, rows, largest)
        else:
            assert delta.squares is not None
            norm, count = np.sqrt(delta.squares)[None, :], delta.left.shape[0]
            magnitude = delta.magnitude[None, :]
            error = self._error(delta, slice(None), float(norm.max(initial=0.0)))
        if not bool((norm > 0).all()):
            raise ValueError("DoRA would divide by a norm of zero")
        relative = math.sqrt(count) * error / float(norm.min()) + (count + 16) * UNIT64
        return np.asarray(magnitude / norm), relative * SAFETY

    def _error(self, delta: Delta, rows: slice, largest: float) -> float:
        """A bound on |value ± error as computed − the exact result|, over the whole block."""
        unit, rank, terms = UNIT[delta.compute], delta.left.shape[1], float(delta.row_bound[rows].max(initial=0.0))
        # rank products and sums, the scaling and the cast of the left side; then two additions of at most `largest`:
        # of the weight, and of the bound itself.
        relative = terms * ((rank + 4) * unit) + largest * (2 * unit)
        return (relative * SAFETY + delta.least) if relative else 0.0

    def _round_certain(self, value: Array, error: float, largest: float, out: Array, dtype: str) -> Array:
        """Step 1: write what is certain into `out`; flat positions of the rest. `value` may be float64."""
        if dtype == "F32":
            return self._round_certain_float32(value, error, out)
        if value.dtype == np.float64:
            narrowed = self._buffer("narrowed", value.shape, np.dtype(np.float32))
            np.copyto(narrowed, value, casting="same_kind")
            value, error = narrowed, error * SAFETY + largest * 2.0**-23
        high = self._buffer("high", value.shape, np.dtype(np.float32))
        low = self._buffer("low", value.shape, np.dtype(np.float32))
        # Rounding half away from zero, which is the same away from ties; the ties themselves lie within the error.
        top = np.add(value, np.float32(error), out=high).view(np.uint32)
        bottom = np.subtract(value, np.float32(error), out=low).view(np.uint32)
        top += TIE[dtype]
        bottom += TIE[dtype]
        differ = np.bitwise_xor(top, bottom, out=bottom)
        differ >>= DROPPED[dtype]
        if dtype == "BF16":
            top >>= np.uint32(16)
            np.copyto(out, top, casting="unsafe")
            return _nonzero(differ)
        return self._round_certain_half(value, error, top, differ, out)

    def _round_certain_half(self, value: Array, error: float, top: Array, differ: Array, out: Array) -> Array:
        """float16: normal numbers by their bits; subnormal ones, which have fewer, one by one."""
        size = top & np.uint32(0x7FFFFFFF)
        small = np.flatnonzero(size < SMALL_HALF + np.uint32(0x2000))
        sign = np.right_shift(top, np.uint32(16), out=top)
        sign &= np.uint32(0x8000)
        size >>= np.uint32(13)
        size -= np.uint32(112 << 10)
        np.minimum(size, HALF_INFINITY, out=size)  # larger numbers have exponents that float16 has not
        size |= sign
        np.copyto(out.view(np.uint16), size, casting="unsafe")
        if small.size:
            near = value.reshape(-1)[small]
            above, below = (near + np.float32(error)).astype(np.float16), (near - np.float32(error)).astype(np.float16)
            out.reshape(-1)[small] = above
            differ.reshape(-1)[small] = above.view(np.uint16) != below.view(np.uint16)
        return _nonzero(differ)

    def _round_certain_float32(self, value: Array, error: float, out: Array) -> Array:
        wide = self._buffer("wide64", value.shape, np.dtype(np.float64))
        low = self._buffer("low", value.shape, np.dtype(np.float32))
        np.copyto(out, np.add(value, error, out=wide), casting="same_kind")
        np.copyto(low, np.subtract(value, error, out=wide), casting="same_kind")
        return np.flatnonzero(low.view(np.uint32) != out.view(np.uint32))

    def _decide(
        self,
        positions: Array,
        weight: Array,
        dtype: str,
        delta: Delta,
        first: int,
        dora: tuple[Array, float] | None,
        out: Array,
        kind: str,
    ) -> None:
        """Steps 2 and 3 for the elements at `positions` (flat). `dora`: DoRA's values, in float64, and their error."""
        row, column = np.divmod(positions, weight.shape[1])
        if delta.magnitude is None:
            w = widen(weight[row, column], dtype).astype(np.float64)
            products = delta.left[row + first].astype(np.float64) * delta.right[column]
            values = w + products @ delta.scale
            # With float64 adapters the products themselves are rounded too: one unit more, inside the constant.
            error = (np.abs(w) + delta.row_bound[row + first]) * ((delta.scale.size + 6) * UNIT64 * SAFETY)
        else:
            assert dora is not None
            values, error = dora[0].reshape(-1)[positions], np.asarray(dora[1])
        self.tally.float64 += positions.size
        if delta.magnitude is None and kind == "BF16":
            sure, rounded = _surely(values, error)
            out[row[sure], column[sure]] = rounded[sure]
            rest = np.flatnonzero(~sure)
            row, column, values, error = row[rest], column[rest], values[rest], error[rest]
        low, high = narrow(values - error, kind), narrow(values + error, kind)
        open_cases = np.flatnonzero(low.view(f"u{low.itemsize}") != high.view(f"u{high.itemsize}"))
        for case in open_cases.tolist():
            exact = self._exactly(int(row[case]), int(column[case]), weight, dtype, delta, first, kind)
            high[case] = narrow(np.array([exact if exact is not None else values[case]]), kind)[0]
        out[row, column] = high
        self.tally.rational += len(open_cases)

    def _exactly(
        self, row: int, column: int, weight: Array, dtype: str, delta: Delta, first: int, kind: str
    ) -> float | None:
        """One element by rational arithmetic; None where a whole column would be needed for it (DoRA on Conv1D)."""
        if delta.magnitude is None:
            return round_rational(_rational(row, column, weight, dtype, delta, first), kind)
        if delta.along == "columns":
            return None
        entries = [_rational(row, at, weight, dtype, delta, first) for at in range(weight.shape[1])]
        square = sum((entry * entry for entry in entries), Fraction(0))
        magnitude = Fraction(float(delta.magnitude[row + first]))
        # m·V/√S to 200 bits: far more than a true tie of a root of a rational could hide in.
        shift = 400
        root = Fraction(math.isqrt((square.numerator << (2 * shift)) // square.denominator), 1 << shift)
        return round_rational(magnitude * entries[column] / root, kind)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        wanted = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.size < wanted:
            buffer = self._buffers[name, dtype] = np.empty(wanted, dtype=dtype)
        return buffer[:wanted].reshape(shape)


def _parts(positions: Array, delta: Delta) -> list[Array]:
    """Positions to decide together: as many as SLICE numbers of the factors belong to."""
    return np.array_split(positions, -(-positions.size * delta.left.shape[1] // SLICE)) if positions.size else []


def _surely(values: Array, error: Array) -> tuple[Array, Array]:
    """(which float64 values float32's bits decide, their bfloat16 bits): those two of float32's units and more from a
    tie, where a unit is more than the error of the value and of its rounding together. Nearly all that step 2 gets are
    such: step 1's error is a bound, not what happened."""
    with np.errstate(over="ignore"):  # an infinite one is not sure
        near = values.astype(np.float32)
    bits = near.view(np.uint32)
    from_tie = np.abs((bits & np.uint32(0xFFFF)).astype(np.int32) - 0x8000)
    size = np.abs(near)
    sure = (from_tie > 1) & (error < size * np.float32(2.0**-24)) & (size > np.float32(2.0**-125))
    return sure, ((bits + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)


def _nonzero(flags: Array) -> Array:
    """Flat positions of what is not zero; uint32, contiguous. Two at a time first: finding the few is what costs."""
    flat = flags.reshape(-1)
    even = flat.size // 2 * 2
    pairs = np.flatnonzero(flat[:even].view(np.uint64) != 0)
    positions = np.concatenate([2 * pairs, 2 * pairs + 1, np.arange(even, flat.size)])
    return np.asarray(positions[flat[positions] != 0])


def _largest(value: Array) -> float:
    """max |value|; NaN and Inf come through."""
    return max(abs(float(value.max(initial=0.0))), abs(float(value.min(initial=0.0))))


def _finite(largest: float, weight: Array, dtype: str) -> float:
    """`largest`, of W + D. Raises ValueError for a NaN or Inf in the weight, OverflowError for one that the sum made."""
    if not math.isfinite(largest):
        if not bool(np.isfinite(widen(weight, dtype)).all()):
            raise ValueError("the weight holds a NaN or Inf")
        raise OverflowError("a merged weight is too large for its dtype")
    return largest


def _rational(row: int, column: int, weight: Array, dtype: str, delta: Delta, first: int) -> Fraction:
    """W + D at one element, exactly."""
    entry = Fraction(float(widen(weight[row : row + 1, column : column + 1].copy(), dtype)[0, 0]))
    left, right = delta.left[row + first].tolist(), delta.right[column].tolist()
    for scale, x, y in zip(delta.scale.tolist(), left, right, strict=True):
        entry += Fraction(scale) * Fraction(x) * Fraction(y)
    return entry
