"""Tensors by ranges of rows, read with pread: never mapped, so that reading a 100 GB file costs one buffer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from bot.checks.checkpoint import Place
from bot.checks.touch import Touch

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
CHUNK = 1 << 16  # elements: eight float64 arrays of this size stay in a core's cache


class Opened:
    """File descriptors, opened once per thread and closed together."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def read(self, path: Path, start: int, length: int) -> bytearray:
        """Exactly `length` bytes. Raises EOFError when the file has become shorter than its header says."""
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = self._descriptors[path] = os.open(path, os.O_RDONLY)
        buffer = bytearray(length)
        view, done = memoryview(buffer), 0
        while done < length:
            got = os.preadv(descriptor, [view[done:]], start + done)
            if not got:
                raise EOFError(f"{path.name} ended at byte {start + done}")
            done += got
        return buffer

    def rows(self, place: Place, low: int, high: int) -> Tensor:
        """Rows `low` to `high` of a floating-point tensor, in its stored dtype; a vector is one row per element."""
        shape = place.stored.shape
        width = place.elements // shape[0] if shape else 1
        dtype = TORCH[place.stored.dtype]
        size = width * dtype.itemsize
        length = (high - low) * size
        if not length:
            return torch.empty((high - low, *shape[1:]), dtype=dtype)
        buffer = self.read(place.path, place.stored.start + low * size, length)
        return torch.frombuffer(buffer, dtype=dtype).view(high - low, *shape[1:])


def chunks(place: Place) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about CHUNK elements each; a scalar is one row."""
    shape = place.stored.shape
    count = shape[0] if shape else 1
    step = max(1, CHUNK * count // max(1, place.elements))
    for low in range(0, count, step):
        yield low, min(count, low + step)


def same_values(one: Place, other: Place) -> bool:
    """Whether two floating-point tensors hold the same numbers, in whatever dtypes."""
    if one.stored.shape != other.stored.shape or not {one.stored.dtype, other.stored.dtype} <= TORCH.keys():
        return False
    with Opened() as opened:
        return all(
            torch.equal(opened.rows(one, low, high).double(), opened.rows(other, low, high).double())
            for low, high in chunks(one)
        )


class Factors:
    """The two factors of one touch, ready to give any rows of ΔW in float64."""

    def __init__(self, touch: Touch, opened: Opened) -> None:
        left = opened.rows(touch.left, 0, touch.left.stored.shape[0])
        right = opened.rows(touch.right, 0, touch.right.stored.shape[0]).to(torch.float64)
        self._left = left.T if touch.flipped else left  # rows × rank, still in its stored dtype
        self._right = right.T.contiguous() if touch.flipped else right  # rank × columns
        self._scaling = touch.scaling
        self.rank = self._left.shape[1]

    def delta(self, low: int, high: int) -> Tensor:
        """Rows of scaling · left · right."""
        return (self._left[low:high].to(torch.float64) * self._scaling) @ self._right

    def magnitude(self, low: int, high: int) -> Tensor:
        """Rows of |scaling| · |left| · |right|: what every a-priori bound on the product's error is a multiple of."""
        return (self._left[low:high].to(torch.float64).abs() * abs(self._scaling)) @ self._right.abs()
