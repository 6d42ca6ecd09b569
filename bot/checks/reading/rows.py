"""Tensors by ranges of rows, read with pread: never mapped, so that reading a 100 GB file costs one buffer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from bot.checks.reading.checkpoint import FLOATS, Matrix, PackedWeight, TensorRef, View
from bot.checks.reading.digests import FileDigest
from bot.checks.reading.stored_numbers import HELD_AS, Array, as_float64, itemsize

HELD = 2  # slabs of quantised tensors that one reader keeps: a tensor's source and its base may be two
CHUNK = 1 << 16  # elements: eight float64 arrays of this size stay in a core's cache


class Opened:
    """File descriptors, opened once per thread and closed together. `digests`: files that are hashed of what is read of them."""

    def __init__(self, digests: Mapping[Path, FileDigest] | None = None) -> None:
        self._digests = digests or {}
        self._descriptors: dict[Path, int] = {}
        self._slabs: dict[tuple[PackedWeight, int], Array] = {}

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def bytes(self, path: Path, start: int, length: int) -> Array:
        """Exactly `length` bytes, as uint8. Raises EOFError when the file has become shorter than its header says."""
        held = np.empty(length, dtype=np.uint8)
        self.read_into(path, start, _bytes_of(held))
        return held

    def read_into(self, path: Path, start: int, view: memoryview) -> None:
        """As many bytes as the view has. Raises EOFError when the file has become shorter than its header says."""
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = self._descriptors[path] = os.open(path, os.O_RDONLY)
        done = 0
        while done < len(view):
            got = os.preadv(descriptor, [view[done:]], start + done)
            if not got:
                raise EOFError(f"{path.name} ended at byte {start + done}")
            done += got
        if path in self._digests:
            self._digests[path].take(start, view)

    def rows(self, ref: TensorRef, low: int, high: int, view: View | None = None) -> Array:
        """Rows `low` to `high` of a floating-point tensor seen as a matrix (shape[0] × the rest), as they are stored
        (see HELD_AS); of a quantised one in float32."""
        _, width = view or flat_view(ref)
        if ref.packed is not None:
            return self._dequantised(ref, low * width, high * width).reshape(high - low, width)
        held = np.empty((high - low, width), dtype=HELD_AS[ref.stored.dtype])
        if held.size:
            self.read_into(ref.path, ref.stored.start + low * width * held.itemsize, _bytes_of(held))
        return held

    def wide_rows(self, ref: TensorRef, low: int, high: int, view: View | None = None) -> Array:
        """The same in float64."""
        return as_float64(self.rows(ref, low, high, view), ref.stored.dtype)

    def _dequantised(self, ref: TensorRef, start: int, stop: int) -> Array:
        """Elements of a quantised tensor, counted over all of it. What is held is one slab, or two while they change."""
        assert ref.packed is not None
        size = max(1, ref.elements // ref.packed.slabs)
        pieces = []
        for slab in range(start // size, -(-stop // size)):
            self._slabs[ref.packed, slab] = dense = ref.packed.numbers(slab)
            while len(self._slabs) > HELD:
                del self._slabs[next(iter(self._slabs))]
            pieces.append(dense[max(0, start - slab * size) : stop - slab * size])
        return pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.empty(0, np.float32)])

    def matrix(self, matrix: Matrix) -> Array:
        """A matrix out of an adapter tensor, as it is stored; only the rows that it needs are read."""
        if not matrix.shape[0] or not matrix.shape[1]:
            return np.empty(matrix.shape, dtype=HELD_AS[matrix.ref.stored.dtype])
        rows, columns = matrix.rows, matrix.columns
        height, width = matrix.view or flat_view(matrix.ref)
        if matrix.transposed and columns.step == 1 and len(columns) * 8 < width and matrix.ref.packed is None:
            values = self._strips(matrix, width)
        else:
            whole = self.rows(matrix.ref, rows.start, rows[-1] + 1, (height, width))
            values = whole[:: rows.step, columns.start : columns.stop : columns.step]
        return values.T if matrix.transposed else values

    def wide_matrix(self, matrix: Matrix) -> Array:
        """The same in float64."""
        return as_float64(self.matrix(matrix), matrix.ref.stored.dtype)

    def _strips(self, matrix: Matrix, width: int) -> Array:
        """A few columns of many: one read for each row, of these columns only."""
        dtype, columns = matrix.ref.stored.dtype, matrix.columns
        held = np.empty((len(matrix.rows), columns[-1] + 1 - columns.start), dtype=HELD_AS[dtype])
        for line, row in zip(held, matrix.rows, strict=True):
            start = matrix.ref.stored.start + (row * width + columns.start) * itemsize(dtype)
            self.read_into(matrix.ref.path, start, _bytes_of(line))
        return held[:, :: columns.step]


def _bytes_of(held: Array) -> memoryview:
    return held.reshape(-1).view(np.uint8).data


def chunks(view: View, size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about `size` elements each."""
    count, width = view
    step = max(1, size // max(1, width))
    for low in range(0, count, step):
        yield low, min(count, low + step)


def flat_view(ref: TensorRef) -> View:
    """shape[0] × the rest; a scalar is one row."""
    count = ref.stored.shape[0] if ref.stored.shape else 1
    return count, ref.elements // max(1, count)


def same_values(first: TensorRef, second: TensorRef, *, transposed: bool = False) -> bool:
    """Whether two floating-point tensors hold the same numbers, in whatever dtypes. `transposed`: the second is a matrix that is
    to be the first one, transposed."""
    shape = second.stored.shape[::-1] if transposed else second.stored.shape
    if first.stored.shape != shape or not {first.stored.dtype, second.stored.dtype} <= FLOATS:
        return False
    rows, columns = map(range, flat_view(second))
    other = Matrix(ref=second, rows=rows, columns=columns, transposed=transposed)
    with Opened() as opened:
        return all(
            np.array_equal(opened.wide_rows(first, low, high), opened.wide_matrix(other.between(low, high)))
            for low, high in chunks(flat_view(first))
        )
