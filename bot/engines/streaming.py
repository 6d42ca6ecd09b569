"""The streaming engine: read a block of rows by offset, add, round, write by offset. No model code, bounded memory.

Untouched ranges go from file to file inside the kernel (`copy_file_range`; filesystems with reflinks share the blocks).
A few workers take pieces of the shard's tensors in file order, and a thread behind them hashes what is written; each
worker owns its buffers, so memory does not grow with the model. numpy only: importing torch would take longer than
merging a gigabyte.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock, local

# Two workers at a time each multiply small matrices: OpenBLAS's own threads would only stand in their way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from bot import formats
from bot.engines.deltas import Deltas
from bot.engines.files import COPY_RUN, Inputs, Output, opened
from bot.engines.reading import Buffers, TensorReader
from bot.errors import Refused
from bot.records import (
    AddDelta,
    Cast,
    Copy,
    Local,
    Measured,
    Op,
    PeftMerge,
    PlainOp,
    Quantize,
    Replace,
    SetRows,
    Shard,
    Stored,
)
from bot.weights.delta import Delta, Product, Rounder
from bot.weights.headers import TORCH_NAMES
from bot.weights.rounding import RAW, Array, narrow, widen

BLOCK = 1 << 19  # elements in a block of rows: 2 MiB of float32; smaller ones cost more calls, larger ones the cache
PIECE = 1 << 22  # elements of a tensor that one worker takes at a time
Moved = Callable[[int], None]
FillLater = Callable[[Sequence[PeftMerge], int], list[Measured]]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows `first` to `stop` of the tensor that `op` makes, seen as rows × columns; for a copy, bytes."""

    op: Op | None
    first: int
    stop: int
    columns: int
    start: int  # where in the shard it is written
    length: int  # bytes
    source: Stored | None = None  # of a run of copies: its first


@dataclass(frozen=True, kw_only=True)
class Written:
    """A finished weight file: what was measured of its tensors, and its sha256."""

    measured: tuple[Measured, ...]
    sha256: str


class Worker(local):
    """One thread's rounder, and what it needs to make rows for a writer of another form."""

    def __init__(self, product: Product) -> None:
        self.rounder = Rounder(product)


def write_shard(
    shard: Shard,
    ops: Sequence[Op],
    inputs: Local,
    target: Path,
    moved: Moved,
    later: FillLater | None = None,
    product: Product = np.matmul,
) -> Written:
    """Write one weight file whole. `ops` are the shard's; `moved` is told of bytes written.

    `later` fills in what PEFT's own layers make (PeftMerge ops); `product` multiplies, perhaps on another device.
    Raises Refused for a NaN or Inf in what is merged, for a result too large for its dtype, or for an input that changes
    meanwhile, and OSError.
    """
    with Inputs(inputs) as files, opened(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as descriptor:
        out = Output(descriptor, shard.size)
        try:
            out.write(shard.header, 0)
            out.written(0, len(shard.header))
            moved(len(shard.header))
            measured = _Run(files, out, moved, product).do(ops)
            peft = [op for op in ops if isinstance(op, PeftMerge)]
            if peft:
                assert later is not None
                measured += later(peft, descriptor)
                for op in peft:
                    out.written(op.target.start, op.target.stop)
            files.unchanged()
            return Written(measured=tuple(measured), sha256=out.digest())
        finally:
            out.stop()


class _Run:
    """The work on one shard."""

    def __init__(self, files: Inputs, out: Output, moved: Moved, product: Product) -> None:
        self.files, self.out, self.moved = files, out, moved
        self.worker, self.buffers = Worker(product), Buffers()
        self.reader = TensorReader(files, self.buffers)
        self.deltas = Deltas(files)
        self._measured: dict[str, Measured] = {}
        self._lock = Lock()

    def do(self, ops: Sequence[Op]) -> list[Measured]:
        """Run every op; in file order, so that the hash can follow."""
        pieces = sorted(_pieces(ops), key=lambda piece: piece.start)
        pool = ThreadPoolExecutor(max_workers=max(1, min(4, _processors())))
        try:
            futures: list[Future[None]] = [pool.submit(self._piece, piece) for piece in pieces]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()  # raises what went wrong
            deltas = [op.make if isinstance(op, Quantize) else op for op in ops]
            norms = {op.target.key: self.deltas.norm(op) for op in deltas if isinstance(op, AddDelta)}
            return [replace(found, delta_norm=norms[key]) for key, found in self._measured.items()]
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, only what is in work is waited for

    def _piece(self, piece: Piece) -> None:
        match piece.op:
            case None:
                assert piece.source is not None
                source = self.files.descriptor(piece.source.owner, piece.source.file)
                self.out.copy(source, piece.first, piece.start, piece.length)
            case AddDelta() as op:
                self._add_delta(op, piece)
            case Quantize() as op:
                self._quantize(op, piece)
            case SetRows() as op:
                self._set_rows(op, piece)
            case Replace() as op:
                self._cast(op.values, op.target, piece)
            case Cast() as op:
                self._cast(op.source, op.target, piece)
        self.out.written(piece.start, piece.start + piece.length)
        self.moved(piece.length)

    def _add_delta(self, op: AddDelta, piece: Piece) -> None:
        tally = self.worker.rounder.tally
        before = tally.float64, tally.rational
        for first, count in _blocks(piece):
            block = self._delta_block(op, first, count, piece.columns)
            self.out.write(block.data.cast("B"), _offset(op.target, first, piece.columns))
        self._measure(op, piece, tally.float64 - before[0], tally.rational - before[1])

    def _delta_block(self, op: AddDelta, first: int, count: int, columns: int) -> Array:
        weight = self.reader.rows(op.source, first, count, columns)
        block = self.buffers.array("out", op.target.dtype, count * columns).reshape(weight.shape)
        patches = self.deltas.between(op, first, first + count)
        if sum((high - low) * (p.columns[1] - p.columns[0]) for p, low, high in patches) < weight.size:
            _convert(weight, op.source, block, op.target)  # no patch covers all of it
        for patch, low, high in patches:
            inside = slice(low - first, high - first), slice(*patch.columns)
            delta = self.deltas.prepared(op, patch, self.reader.rows)
            self._round(weight[inside], op.source.dtype, delta, low - patch.rows[0], block[inside], op)
        return block

    def _quantize(self, op: Quantize, piece: Piece) -> None:
        """One whole tensor: its rows are made in float32, for the writer to store."""
        make, tally = op.make, self.worker.rounder.tally
        before = tally.float64, tally.rational
        parts = {part.key: part for part in op.parts}
        writer = formats.writer_of(op)
        take = partial(self._float32_rows, make, piece.columns)
        for key, offset, content in writer.quantise(op.target.key, take, op.target.shape):
            self.out.write(np.ascontiguousarray(content).data.cast("B"), parts[key].start + offset)
        if isinstance(make, AddDelta):
            self._measure(make, piece, tally.float64 - before[0], tally.rational - before[1])

    def _float32_rows(self, op: PlainOp, columns: int, first: int, count: int) -> Array:
        match op:
            case AddDelta():
                return self._delta_block(op, first, count, columns)
            case SetRows():
                return self._rows_block(op, first, count, columns)
        source = op.values if isinstance(op, Replace) else op.source
        return self._cast_block(source, op.target, first, count, columns)

    def _round(self, weight: Array, dtype: str, delta: Delta, first: int, block: Array, op: AddDelta) -> None:
        result = block if block.flags.c_contiguous else np.empty(block.shape, block.dtype)
        try:
            self.worker.rounder.add(weight, dtype, delta, first, result, op.target.dtype)
        except ValueError as error:
            raise _unusable(op.source, error) from error
        except OverflowError as error:
            raise _too_large(op.target) from error
        if result is not block:
            block[...] = result

    def _measure(self, op: AddDelta, piece: Piece, float64: int, rational: int) -> None:
        """Add up what the workers counted of one tensor; its norm is known at the end."""
        with self._lock:
            before = self._measured.get(op.target.key)
            self._measured[op.target.key] = Measured(
                key=op.target.key,
                elements=(before.elements if before else 0) + (piece.stop - piece.first) * piece.columns,
                delta_norm=0.0,
                by_float64=(before.by_float64 if before else 0) + float64,
                by_rational=(before.by_rational if before else 0) + rational,
            )

    def _set_rows(self, op: SetRows, piece: Piece) -> None:
        for first, count in _blocks(piece):
            block = self._rows_block(op, first, count, piece.columns)
            self.out.write(block.data.cast("B"), _offset(op.target, first, piece.columns))

    def _rows_block(self, op: SetRows, first: int, count: int, columns: int) -> Array:
        places = {row: at for at, row in enumerate(op.rows)}
        block = self.buffers.array("out", op.target.dtype, count * columns).reshape(count, columns)
        _convert(self.reader.rows(op.source, first, count, columns), op.source, block, op.target)
        for row in sorted(places.keys() & set(range(first, first + count))):
            values = self.reader.rows(op.values, places[row], 1, columns, name="values")
            _convert(values, op.values, block[row - first : row - first + 1], op.target, finite=True)
        return block

    def _cast(self, source: Stored, target: Stored, piece: Piece) -> None:
        for first, count in _blocks(piece):
            block = self._cast_block(source, target, first, count, piece.columns)
            self.out.write(block.data.cast("B"), _offset(target, first, piece.columns))

    def _cast_block(self, source: Stored, target: Stored, first: int, count: int, columns: int) -> Array:
        values = self.reader.rows(source, first, count, columns)
        block = self.buffers.array("out", target.dtype, count * columns).reshape(values.shape)
        _convert(values, source, block, target, finite=source.owner != 0)
        return block


# --- pieces of work -----------------------------------------------------------------------------------------------


def _pieces(ops: Sequence[Op]) -> Iterator[Piece]:
    yield from _copy_runs([op for op in ops if isinstance(op, Copy)])
    for op in ops:
        if isinstance(op, Copy | PeftMerge):
            continue
        if isinstance(op, Quantize):
            yield _whole(op)
            continue
        rows, columns = op.view if isinstance(op, AddDelta) else _view(op.target)
        step = max(1, PIECE // max(1, columns))
        if isinstance(op, AddDelta) and any(patch.along == "columns" and patch.magnitude for patch in op.patches):
            step = rows or 1  # its norms need the whole tensor first: one worker reads it twice
        for first in range(0, rows, step):
            stop = min(rows, first + step)
            start, end = _offset(op.target, first, columns), _offset(op.target, stop, columns)
            yield Piece(op=op, first=first, stop=stop, columns=columns, start=start, length=end - start)


def _whole(op: Quantize) -> Piece:
    """A tensor that is stored quantised: its scales are known only when all of it is, so that one worker makes it."""
    rows, columns = op.make.view if isinstance(op.make, AddDelta) else _view(op.target)
    start, stop = op.parts[0].start, op.parts[-1].stop
    return Piece(op=op, first=0, stop=rows, columns=columns, start=start, length=stop - start)


def _view(stored: Stored) -> tuple[int, int]:
    if not stored.shape:
        return 1, 1
    if len(stored.shape) == 3:  # as readers of packed stacks of experts see them
        return stored.shape[0] * stored.shape[1], stored.shape[2]
    return stored.shape[0], math.prod(stored.shape[1:])


def _copy_runs(copies: list[Copy]) -> Iterator[Piece]:
    """Join neighbouring copies, then cut them into runs of at most COPY_RUN bytes."""
    run: list[int] = []  # source offset, target offset, length
    source: Stored | None = None
    for op in [*sorted(copies, key=lambda op: op.target.start), None]:
        if op is not None and op.source.start == op.source.stop:
            continue
        if op is not None and source is not None and _joins(source, run, op):
            run[2] += op.source.stop - op.source.start
            continue
        if source is not None:
            for at in range(0, run[2], COPY_RUN):
                length = min(COPY_RUN, run[2] - at)
                yield Piece(
                    op=None, first=run[0] + at, stop=0, columns=0, start=run[1] + at, length=length, source=source
                )
        if op is not None:
            source, run = op.source, [op.source.start, op.target.start, op.source.stop - op.source.start]


def _joins(source: Stored, run: list[int], op: Copy) -> bool:
    same_file = (source.owner, source.file) == (op.source.owner, op.source.file)
    return same_file and (run[0] + run[2], run[1] + run[2]) == (op.source.start, op.target.start)


def _blocks(piece: Piece) -> Iterator[tuple[int, int]]:
    """(first row, rows) of about BLOCK elements."""
    step = max(1, BLOCK // max(1, piece.columns))
    for first in range(piece.first, piece.stop, step):
        yield first, min(step, piece.stop - first)


def _offset(target: Stored, row: int, columns: int) -> int:
    return target.start + row * columns * int(np.dtype(RAW[target.dtype]).itemsize)


def _convert(values: Array, source: Stored, out: Array, target: Stored, *, finite: bool = False) -> None:
    """out ← values, rounded once. `finite`: the source may hold no NaN or Inf. Raises Refused."""
    wide = widen(np.ascontiguousarray(values), source.dtype)
    whole = bool(np.isfinite(wide).all())
    if finite and not whole:
        raise _unusable(source, ValueError("NaN or Inf"))
    if source.dtype == target.dtype:
        out[...] = values
        return
    found = narrow(wide, target.dtype)
    after = np.isfinite(widen(found, target.dtype))
    if not bool(after.all()) and bool((np.isfinite(wide) & ~after).any()):
        raise _too_large(target)
    out[...] = found


def _unusable(stored: Stored, error: ValueError) -> Refused:
    if "norm of zero" in str(error):
        return Refused(
            f"{stored.key} has a row or column of zeros, which DoRA would divide by.",
            remedy="Keep the adapter separate.",
        )
    if stored.owner:
        return Refused(f"The adapter's {stored.key} holds a NaN or Inf.", remedy="Train or save the adapter again.")
    return Refused(f"The base's {stored.key} holds a NaN or Inf.", remedy="Take another base.")


def _too_large(target: Stored) -> Refused:
    dtype = TORCH_NAMES.get(target.dtype, target.dtype)
    return Refused(
        f"{target.key} holds values that are too large for {dtype}.", remedy="Choose --dtype bfloat16 or float32."
    )


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
