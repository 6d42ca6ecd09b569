"""(code − zero) · scale, where scales and zeros stand in a grid: one for each rectangle of the weight. In float32.

Tensors, channels, groups, blocks and stacks of experts are all such grids. Element (i, j) of an expert's matrix belongs to
rectangle (⌊i/b⌋, ⌊j/c⌋), at the ragged edge too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bot.formats.base import ReadRange
from bot.formats.float8 import E2M1_PAIRS, E4M3, E8M0, NIBBLES, POWERS
from bot.records import Stored

Array = NDArray[Any]
RAW: dict[str, Any] = {"F16": np.float16, "F32": np.float32, "I8": np.int8}


@dataclass(frozen=True, kw_only=True)
class ScaleGrid:
    """`rows` × `columns`: one expert's matrix (the whole weight where there are none); `high` × `wide`: a rectangle."""

    experts: int = 1
    rows: int
    columns: int
    high: int
    wide: int

    @property
    def down(self) -> int:
        """Rectangles in a column of one matrix."""
        return math.ceil(self.rows / self.high)

    @property
    def across(self) -> int:
        return math.ceil(self.columns / self.wide)

    def lines(self, first: int, count: int) -> Array:
        """Which line of the grid each row belongs to; the matrices of a stack stand below each other."""
        expert, row = np.divmod(np.arange(first, first + count), self.rows)
        lines: Array = expert * self.down + row // self.high
        return lines


@dataclass(frozen=True, kw_only=True)
class ScaleGridRows:
    """One opened weight. `scale` and `zero`: float32, (experts · down) × across."""

    main: Stored
    kind: str  # how `main` is coded: e4m3, e2m1, int8, or packN: unsigned numbers of N bits, offset by 2^(N−1)
    scale_grid: ScaleGrid
    scale: Array
    zero: Array | None
    read: ReadRange

    def rows(self, first: int, count: int) -> Array:
        """float32, count × columns."""
        wide = row_bytes(self.kind, self.scale_grid.columns)
        raw = self.read(self.main, first * wide, count * wide).reshape(count, wide)
        values = decode(raw, self.kind, self.scale_grid.columns)
        lines = self.scale_grid.lines(first, count)
        if self.zero is not None:
            _apply(np.subtract, values, self.zero[lines], self.scale_grid.wide)
        _apply(np.multiply, values, self.scale[lines], self.scale_grid.wide)
        return values


def _apply(operation: np.ufunc, values: Array, each: Array, wide: int) -> None:
    """values ← operation(values, each), where each column of `each` stands for `wide` columns of the values."""
    whole = values.shape[1] // wide
    inner = values[:, : whole * wide].reshape(len(values), whole, wide)  # a view: only an axis is split
    operation(inner, each[:, :whole, None], out=inner)
    if whole * wide < values.shape[1]:
        edge = values[:, whole * wide :]
        operation(edge, each[:, whole:], out=edge)


def row_bytes(kind: str, columns: int) -> int:
    """Bytes that one row takes as it is stored."""
    if kind.startswith("pack"):
        return math.ceil(columns * int(kind[4:]) / 32) * 4
    return math.ceil(columns / 2) if kind == "e2m1" else columns


def decode(raw: Array, kind: str, columns: int) -> Array:
    """Stored rows (uint8) as float32 codes, rows × columns."""
    if kind == "e4m3":
        codes: Array = E4M3.take(raw, mode="clip")  # of bytes nothing is out of range: the quickest mode
        return codes
    if kind == "int8":
        return raw.view(np.int8).astype(np.float32)
    if kind == "e2m1":
        return E2M1_PAIRS[raw].view(np.float32)[:, :columns]
    return unpack_bits(raw, int(kind[4:]), columns)


def unpack_bits(raw: Array, bits: int, count: int) -> Array:
    """Rows of little-endian 32-bit words that hold `count` numbers of `bits` bits, densely, the lowest bits first, as
    compressed-tensors packs them; float32, with the offset of 2^(bits−1) taken off."""
    offset = np.float32(1 << (bits - 1))
    if bits == 8:
        return raw[:, :count].astype(np.float32) - offset
    if bits == 4:
        return np.ascontiguousarray(NIBBLES[raw].view(np.float32)[:, :count])
    single = np.unpackbits(raw, axis=1, count=count * bits, bitorder="little").reshape(len(raw), count, bits)
    numbers = np.zeros((len(raw), count), np.float32)
    for bit in range(bits):
        numbers += single[:, :, bit] * np.float32(1 << bit)
    return numbers - offset


def read_numbers(stored: Stored, read: ReadRange, *, bytes_as: Array | None = None) -> Array:
    """A whole small tensor as float32, in its shape. `bytes_as`: the table for scale bytes (default: none are allowed)."""
    raw = read(stored, 0, stored.stop - stored.start)
    tables = {"F8_E8M0": E8M0, "F8_E4M3": E4M3} | ({} if bytes_as is None else {"U8": bytes_as})
    if stored.dtype in tables:
        decoded: Array = tables[stored.dtype][raw].reshape(stored.shape)
        return decoded
    if stored.dtype == "BF16":
        numbers: Array = (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        return numbers.reshape(stored.shape)
    values: Array = raw.view(RAW[stored.dtype]).astype(np.float32)
    return values.reshape(stored.shape)


def read_packed_columns(stored: Stored, read: ReadRange, bits: int, count: int) -> Array:
    """Zero points, which compressed-tensors packs downwards: words × across → count × across, float32."""
    words = read(stored, 0, stored.stop - stored.start).view(np.uint32).reshape(stored.shape)
    lines = np.ascontiguousarray(words.T).view(np.uint8)
    numbers: Array = unpack_bits(lines, bits, count).T
    return numbers


def open_scale_grid(tensor: Stored, read: ReadRange, zero: Array | None = None) -> ScaleGridRows:
    """A logical tensor whose settings describe a grid; the scales are read. `zero`: of the grid's shape, or to be spread."""
    assert tensor.packed is not None
    parts, settings = dict(tensor.packed.parts), dict(tensor.packed.settings)
    grid = scale_grid_of(settings)
    shape = (grid.experts * grid.down, grid.across)
    scale = read_numbers(parts["scale"], read, bytes_as=POWERS)
    return ScaleGridRows(
        main=parts["weight"],
        kind=str(settings["kind"]),
        scale_grid=grid,
        scale=np.ascontiguousarray(_spread(scale, shape)),
        zero=None if zero is None else np.ascontiguousarray(_spread(zero, shape)),
        read=read,
    )


def scale_grid_of(settings: dict[str, Any]) -> ScaleGrid:
    """The grid that a logical tensor's settings spell out."""
    return ScaleGrid(**{name: int(settings[name]) for name in ("experts", "rows", "columns", "high", "wide")})


def _spread(values: Array, shape: tuple[int, int]) -> Array:
    """One value for all, one for each expert, or one for each rectangle."""
    if values.size == shape[0] * shape[1]:
        return values.reshape(shape)
    if values.size == 1:
        return np.broadcast_to(values.reshape(1, 1), shape)
    raise AssertionError(f"{values.shape} does not fill {shape}")  # the plan has compared the shapes
