"""The work on a shard in items, in file order: blocks of rows of what is computed, runs of what is copied."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from bot.engines.files import COPY_RUN
from bot.numerics.rounding import RAW
from bot.records import AddDelta, Copy, Op, PeftMerge, PlainOp, Quantize, Stored

BLOCK = 1 << 19  # elements in a block of rows: 2 MiB of float32; smaller ones cost more calls, larger ones the cache


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """Rows `first` to `stop` of the tensor that `op` makes, seen as rows × columns; for a copy, bytes."""

    op: Op | None
    first: int
    stop: int
    columns: int
    start: int  # where in the shard it is written
    length: int  # bytes
    source: Stored | None = None  # of a run of copies: its first


def work_items(ops: Sequence[Op]) -> Iterator[WorkItem]:
    """All but what PEFT's layers make, in file order; neighbouring copies in one."""
    ordered = sorted((op for op in ops if not isinstance(op, PeftMerge)), key=_start)
    for are_copies, some in groupby(ordered, key=lambda op: isinstance(op, Copy)):
        if are_copies:
            yield from _copy_runs(op for op in some if isinstance(op, Copy))
            continue
        for op in some:
            yield from [_whole(op)] if isinstance(op, Quantize) else _cut(op)


def pieces(items: Iterable[WorkItem], size: int) -> Iterator[list[WorkItem]]:
    """As many of them at a time as come to `size` bytes."""
    piece: list[WorkItem] = []
    gathered = 0
    for item in items:
        piece.append(item)
        gathered += item.length
        if gathered >= size:
            yield piece
            piece, gathered = [], 0
    if piece:
        yield piece


def computed_ranges(ops: Sequence[Op]) -> Iterator[tuple[int, int]]:
    """(start, stop) of what no copy fills; neighbours in one."""
    computed = sorted((op for op in ops if not isinstance(op, Copy)), key=_start)
    return _in_runs((_start(op), op.parts[-1].stop if isinstance(op, Quantize) else op.target.stop) for op in computed)


def computed_in(piece: Iterable[WorkItem]) -> Iterator[tuple[int, int]]:
    """The same of some items."""
    return _in_runs((item.start, item.start + item.length) for item in piece if item.op is not None)


def _in_runs(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    run: tuple[int, int] | None = None
    for start, stop in ranges:
        if run is not None and run[1] != start:
            yield run
        run = (run[0] if run is not None and run[1] == start else start), stop
    if run is not None:
        yield run


def _start(op: Op) -> int:
    return op.parts[0].start if isinstance(op, Quantize) else op.target.start


def _cut(op: PlainOp) -> Iterator[WorkItem]:
    rows, columns = view_of(op)
    step = _block_rows(columns)
    if isinstance(op, AddDelta) and any(patch.along == "columns" and patch.magnitude for patch in op.patches):
        step = rows or 1  # its norms need the whole tensor first: one worker reads it twice
    for first in range(0, rows, step):
        stop = min(rows, first + step)
        start, end = offset_of(op.target, first, columns), offset_of(op.target, stop, columns)
        yield WorkItem(op=op, first=first, stop=stop, columns=columns, start=start, length=end - start)


def _whole(op: Quantize) -> WorkItem:
    """A tensor that is stored quantised: its scales are known only when all of it is, so that one worker makes it."""
    rows, columns = view_of(op.make)
    start, stop = op.parts[0].start, op.parts[-1].stop
    return WorkItem(op=op, first=0, stop=rows, columns=columns, start=start, length=stop - start)


def whole(op: PlainOp) -> WorkItem:
    """All rows of what an op makes, for somebody who writes them nowhere."""
    rows, columns = view_of(op)
    return WorkItem(op=op, first=0, stop=rows, columns=columns, start=0, length=0)


def view_of(op: PlainOp) -> tuple[int, int]:
    """The rows × columns that an op's result is made as."""
    return op.view if isinstance(op, AddDelta) else _view(op.target)


def _view(stored: Stored) -> tuple[int, int]:
    if not stored.shape:
        return 1, 1
    if len(stored.shape) == 3:  # as readers of packed stacks of experts see them
        return stored.shape[0] * stored.shape[1], stored.shape[2]
    return stored.shape[0], math.prod(stored.shape[1:])


def _copy_runs(copies: Iterable[Copy]) -> Iterator[WorkItem]:
    """Join neighbouring copies (they come in file order), then cut them into items."""
    run: list[int] = []  # source offset, target offset, length
    source: Stored | None = None
    for op in [*copies, None]:
        if op is not None and op.source.start == op.source.stop:
            continue
        if op is not None and source is not None and _joins(source, run, op):
            run[2] += op.source.stop - op.source.start
            continue
        if source is not None:
            yield from cut_run(source, *run)
        if op is not None:
            source, run = op.source, [op.source.start, op.target.start, op.source.stop - op.source.start]


def cut_run(source: Stored, start: int, position: int, length: int) -> Iterator[WorkItem]:
    """Pieces that end where the file's blocks do, so that a filesystem can share those."""
    stop = position + length
    while position < stop:
        end = min(stop, (position // COPY_RUN + 1) * COPY_RUN)
        yield WorkItem(op=None, first=start, stop=0, columns=0, start=position, length=end - position, source=source)
        start, position = start + end - position, end


def _joins(source: Stored, run: list[int], op: Copy) -> bool:
    same_file = (source.role, source.file) == (op.source.role, op.source.file)
    return same_file and (run[0] + run[2], run[1] + run[2]) == (op.source.start, op.target.start)


def blocks(item: WorkItem) -> Iterator[tuple[int, int]]:
    """(first row, rows) of a block each."""
    step = _block_rows(item.columns)
    for first in range(item.first, item.stop, step):
        yield first, min(step, item.stop - first)


def _block_rows(columns: int) -> int:
    return max(1, BLOCK // max(1, columns))


def offset_of(target: Stored, row: int, columns: int) -> int:
    """The byte of its file where the tensor's row begins."""
    return target.start + row * columns * int(np.dtype(RAW[target.dtype]).itemsize)
