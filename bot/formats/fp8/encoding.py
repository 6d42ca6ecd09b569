"""float32 weights as e4m3 with a grid of scales, a strip of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bot.formats.base import Take
from bot.formats.float8 import LARGEST, encode_e4m3
from bot.formats.scale_grid import ScaleGrid

Array = NDArray[Any]
STRIP = 1 << 20  # elements of a weight that are held at a time, or one line of rectangles where that is more
TWICE = 1 << 22  # a line of more elements than this is read twice instead: for its largest values first


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Rows `first`… as codes; `scales` of the lines `line`… (lines × across, as rounded), once for each line."""

    first: int
    codes: Array
    line: int
    scales: Array | None


def encode(take: Take, grid: ScaleGrid, rounded: Callable[[Array], Array]) -> Iterator[Strip]:
    """The weight as codes and scales. `rounded`: largest values → scales, as numbers that can be stored.

    A code is e4m3(value ÷ scale), with the quotient in float32 and saturation, as compressed-tensors quantises.
    """
    for expert in range(grid.experts):
        top, line = expert * grid.rows, expert * grid.down
        if grid.high * grid.columns > TWICE and grid.high > 1:
            for down in range(grid.down):
                low, high = down * grid.high, min(grid.rows, (down + 1) * grid.high)
                yield from _twice(take, grid, rounded, (top + low, top + high), line + down)
            continue
        step = max(1, STRIP // max(1, grid.high * grid.columns)) * grid.high
        for low in range(0, grid.rows, step):
            values = take(top + low, min(step, grid.rows - low))
            scales = rounded(_largest(values, grid))
            yield Strip(
                first=top + low, codes=_codes(values, scales, grid), line=line + low // grid.high, scales=scales
            )


def _twice(
    take: Take, grid: ScaleGrid, rounded: Callable[[Array], Array], rows: tuple[int, int], line: int
) -> Iterator[Strip]:
    """One line of rectangles that is too large to be held."""
    step = max(1, STRIP // grid.columns)
    strips = [(low, min(step, rows[1] - low)) for low in range(*rows, step)]
    largest = np.zeros((1, grid.across), np.float32)
    for low, count in strips:
        values = take(low, count)
        largest = np.maximum(largest, np.max(_across(values, grid), axis=0, keepdims=True))
    scales = rounded(largest)
    for low, count in strips:
        codes = _codes(take(low, count), scales, grid)
        yield Strip(first=low, codes=codes, line=line, scales=scales if low == rows[0] else None)


def _across(values: Array, grid: ScaleGrid) -> Array:
    largest: Array = np.maximum.reduceat(np.abs(values), np.arange(0, values.shape[1], grid.wide), axis=1)
    return largest


def _largest(values: Array, grid: ScaleGrid) -> Array:
    """max |value| of each rectangle: lines × across. The values begin where a line does."""
    largest: Array = np.maximum.reduceat(_across(values, grid), np.arange(0, len(values), grid.high), axis=0)
    return largest


def _codes(values: Array, scales: Array, grid: ScaleGrid) -> Array:
    lines = np.arange(len(values)) // grid.high if len(scales) > 1 else np.zeros(len(values), np.intp)
    each = scales[lines] if grid.wide >= grid.columns else np.repeat(scales[lines], grid.wide, axis=1)
    with np.errstate(over="ignore", under="ignore"):
        return encode_e4m3(values / each[:, : values.shape[1]])


def over_448(largest: Array) -> Array:
    """The scale that takes the largest value to e4m3's largest, in float32; never 0."""
    scales: Array = np.maximum(largest / np.float32(LARGEST), np.float32(2.0**-126))
    return scales


def bfloat16(values: Array) -> Array:
    """float32 numbers rounded to bfloat16's, to nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)) & np.uint32(0xFFFF0000)
    rounded: Array = bits.view(np.float32)
    return rounded


def power_of_two(values: Array) -> Array:
    """The smallest power of two, 2⁻¹²⁷ at the least, that is not below each value (which is not 0)."""
    mantissa, exponent = np.frexp(values)
    powers: Array = np.ldexp(np.float32(1), np.maximum(exponent - (mantissa == 0.5), -127))
    return powers


def stored(scales: Array, dtype: str) -> Array:
    """Scales that `dtype` holds exactly, as its bytes."""
    if dtype == "BF16":
        return (np.ascontiguousarray(scales).view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.uint8)
    if dtype in ("F8_E8M0", "U8"):
        return (np.frexp(scales)[1] + 126).astype(np.uint8)
    return np.ascontiguousarray(scales.astype({"F32": np.float32, "F16": np.float16}[dtype])).view(np.uint8)
