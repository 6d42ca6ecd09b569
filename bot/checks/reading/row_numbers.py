"""Rows traced by number: transformers' own converter is run on tensors in which every row holds the row's number.

For converters that boxes (`symbolic`) cannot describe, since they reorder rows: rotary halves, interleaved pairs.
Columns stay together, so that one number a row is enough, and a tensor of any width costs one number a row.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bot.checks.reading.symbolic import Block, NotFollowed, Source, SymbolicTensor

LARGEST = 1 << 26  # rows of all tensors of one converter


class Counted:
    """The tensors that one converter is given, by key and shape, and what its results say about them."""

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = {key: tuple(shape) for key, shape in shapes.items()}
        counts = [_rows(shape) for shape in self.shapes.values()]
        if sum(counts) > LARGEST:
            raise NotFollowed(f"{sum(counts)} rows")
        self.starts = [0, *itertools.accumulate(counts)]
        self.keys = list(self.shapes)

    def tensor(self, key: str) -> Tensor:
        """A stand-in for a stored tensor: of its shape but for a last dimension of 1, int64, unlike in every row."""
        shape = self.shapes[key]
        start = self.starts[self.keys.index(key)]
        numbers = torch.arange(start, start + _rows(shape), dtype=torch.int64)
        return numbers.reshape((*shape[:-1], 1)) if len(shape) > 1 else numbers

    def symbolic(self, made: Tensor) -> SymbolicTensor:
        """A converter's result, read. Raises NotFollowed where its rows are no rows of the stored tensors."""
        if not isinstance(made, Tensor) or made.dtype != torch.int64 or not made.dim() or not made.numel():
            raise NotFollowed("it makes no tensor of them")
        flat = made.dim() == 1
        widths = {self.shapes[self._key(number)][-1] for number in made.flatten().tolist()} if not flat else {1}
        if len(widths) != 1 or (not flat and made.shape[-1] != 1):
            raise NotFollowed("its columns move too")
        (width,) = widths
        shape = tuple(made.shape) if flat else (*made.shape[:-1], width)
        lines = made if flat else made.squeeze(-1)
        blocks = [
            self._block(above, first, run, shape)
            for above in itertools.product(*map(range, lines.shape[:-1]))
            for first, run in _runs(lines[above].tolist(), self._room)
        ]
        return SymbolicTensor(shape, blocks)

    def _block(self, above: tuple[int, ...], first: int, run: range, shape: tuple[int, ...]) -> Block:
        """`run`: numbers that lie at `above` of the leading dimensions, from row `first` on."""
        key = self._key(run[0])
        stored, start = self.shapes[key], self.starts[self.keys.index(key)]
        if (len(shape) == 1) != (len(stored) == 1):
            raise NotFollowed("vectors become matrices")
        at = len(above)  # the dimension of the rows
        box = [*((index, index + 1) for index in above), (first, first + len(run))]
        height = stored[-2] if len(stored) > 1 else stored[0]
        slab, row = divmod(run[0] - start, height)
        source: list[Source] = list(_leading(stored, slab, at))
        source.append((at, row, row + run[-1] - run[0] + 1, run.step))
        if len(stored) > 1:
            box.append((0, stored[-1]))
            source.append((at + 1, 0, stored[-1], 1))
        return Block(key=key, box=tuple(box), source=tuple(source))

    def _key(self, number: int) -> str:
        return self.keys[bisect.bisect_right(self.starts, number) - 1]

    def _room(self, number: int) -> int:
        """The first number behind the matrix that a row belongs to."""
        key = self._key(number)
        start, shape = self.starts[self.keys.index(key)], self.shapes[key]
        height = shape[-2] if len(shape) > 1 else shape[0]
        return start + ((number - start) // height + 1) * height


def _leading(stored: tuple[int, ...], slab: int, dims: int) -> Iterator[Source]:
    """Where a stack's matrix `slab` lies in the stored dimensions before rows and columns."""
    sizes = stored[:-2]
    for at, extent in enumerate(sizes):
        index = slab // math.prod(sizes[at + 1 :]) % extent
        yield (at if len(sizes) == dims else None, index, index + 1, 1)


def _rows(shape: tuple[int, ...]) -> int:
    return math.prod(shape[:-1] if len(shape) > 1 else shape)


def _runs(numbers: list[int], room: Any) -> Iterator[tuple[int, range]]:
    """(where it begins, its numbers) of every stretch of evenly rising numbers that stays in one matrix."""
    first = 0
    while first < len(numbers):
        stop, edge = first + 1, room(numbers[first])
        step = numbers[stop] - numbers[first] if stop < len(numbers) else 1
        while step > 0 and stop < len(numbers) and numbers[stop] - numbers[stop - 1] == step and numbers[stop] < edge:
            stop += 1
        run = range(numbers[first], numbers[stop - 1] + 1, step if stop - first > 1 else 1)
        yield first, run
        first = stop
