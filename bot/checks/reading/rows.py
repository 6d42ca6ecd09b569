"""Tensors by ranges of rows, read with pread: never mapped, so that reading a 100 GB file costs one buffer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from bot.checks.expected.changes import Matrix, View
from bot.checks.reading.checkpoint import Place
from bot.checks.reading.packed import SHELF, Packed

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
HELD = 2  # slabs of quantised tensors that one reader keeps: a tensor's source and its base may be two
CHUNK = 1 << 16  # elements: eight float64 arrays of this size stay in a core's cache


class Opened:
    """File descriptors, opened once per thread and closed together."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._slabs: dict[tuple[Packed, int], Tensor] = {}

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def read(self, path: Path, start: int, length: int) -> bytearray:
        """Exactly `length` bytes. Raises EOFError when the file has become shorter than its header says."""
        buffer = bytearray(length)
        self.read_into(path, start, memoryview(buffer))
        return buffer

    def read_into(self, path: Path, start: int, view: memoryview) -> None:
        """As many bytes as the view has."""
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = self._descriptors[path] = os.open(path, os.O_RDONLY)
        done = 0
        while done < len(view):
            got = os.preadv(descriptor, [view[done:]], start + done)
            if not got:
                raise EOFError(f"{path.name} ended at byte {start + done}")
            done += got

    def rows(self, place: Place, low: int, high: int, view: View | None = None) -> Tensor:
        """Rows `low` to `high` of a floating-point tensor seen as a matrix (shape[0] × the rest), in its stored dtype;
        of a quantised one in float32."""
        height, width = view or (place.stored.shape[0] if place.stored.shape else 1, 0)
        width = width if view else place.elements // max(1, height)
        if place.packed is not None:
            return self._dequantised(place, low * width, high * width).view(high - low, width)
        dtype = TORCH[place.stored.dtype]
        size = width * dtype.itemsize
        if not (high - low) * size:
            return torch.empty((high - low, width), dtype=dtype)
        buffer = self.read(place.path, place.stored.start + low * size, (high - low) * size)
        return torch.frombuffer(buffer, dtype=dtype).view(high - low, width)

    def _dequantised(self, place: Place, start: int, stop: int) -> Tensor:
        """Elements of a quantised tensor, counted over all of it. What is held is one slab, or two while they change."""
        assert place.packed is not None
        size = max(1, place.elements // place.packed.slabs)
        found = []
        for slab in range(start // size, -(-stop // size)):
            self._slabs[place.packed, slab] = dense = SHELF.take(place.packed, slab)
            while len(self._slabs) > HELD:
                del self._slabs[next(iter(self._slabs))]
            found.append(dense[max(0, start - slab * size) : stop - slab * size])
        return found[0] if len(found) == 1 else torch.cat(found) if found else torch.empty(0)

    def matrix(self, matrix: Matrix) -> Tensor:
        """A matrix out of an adapter tensor, in its stored dtype; only the rows that it needs are read."""
        if not matrix.shape[0] or not matrix.shape[1]:
            return torch.empty(matrix.shape, dtype=TORCH[matrix.place.stored.dtype])
        rows, columns = matrix.rows, matrix.columns
        height, width = matrix.view or (0, 0)
        if not width:
            height = matrix.place.stored.shape[0] if matrix.place.stored.shape else 1
            width = matrix.place.elements // max(1, height)
        if matrix.transposed and columns.step == 1 and len(columns) * 8 < width and matrix.place.packed is None:
            found = self._strips(matrix, width)
        else:
            whole = self.rows(matrix.place, rows.start, rows[-1] + 1, (height, width))
            found = whole[:: rows.step, columns.start : columns.stop : columns.step]
        return found.T if matrix.transposed else found

    def _strips(self, matrix: Matrix, width: int) -> Tensor:
        """A few columns of many: one read for each row, of these columns only."""
        dtype, columns = TORCH[matrix.place.stored.dtype], matrix.columns
        length = columns[-1] + 1 - columns.start
        buffer = bytearray(len(matrix.rows) * length * dtype.itemsize)
        view, size = memoryview(buffer), length * dtype.itemsize
        for number, row in enumerate(matrix.rows):
            start = matrix.place.stored.start + (row * width + columns.start) * dtype.itemsize
            self.read_into(matrix.place.path, start, view[number * size : (number + 1) * size])
        return torch.frombuffer(buffer, dtype=dtype).view(len(matrix.rows), length)[:, :: columns.step]


def chunks(view: View, size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about `size` elements each."""
    count, width = view
    step = max(1, size // max(1, width))
    for low in range(0, count, step):
        yield low, min(count, low + step)


def flat_view(place: Place) -> View:
    """shape[0] × the rest; a scalar is one row."""
    count = place.stored.shape[0] if place.stored.shape else 1
    return count, place.elements // max(1, count)


def same_values(one: Place, other: Place) -> bool:
    """Whether two floating-point tensors hold the same numbers, in whatever dtypes."""
    if one.stored.shape != other.stored.shape or not {one.stored.dtype, other.stored.dtype} <= TORCH.keys():
        return False
    with Opened() as opened:
        return all(
            torch.equal(opened.rows(one, low, high).double(), opened.rows(other, low, high).double())
            for low, high in chunks(flat_view(one))
        )


def same_transposed(one: Place, other: Place) -> bool:
    """Whether one matrix is the other, transposed."""
    if one.stored.shape != other.stored.shape[::-1] or not {one.stored.dtype, other.stored.dtype} <= TORCH.keys():
        return False
    height, width = flat_view(one)
    with Opened() as opened:
        return all(
            torch.equal(
                opened.rows(one, low, high).double(),
                opened.matrix(
                    Matrix(place=other, rows=range(width), columns=range(low, high), transposed=True)
                ).double(),
            )
            for low, high in chunks((height, width))
        )
