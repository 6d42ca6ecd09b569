"""The streaming engine: read a block of rows by offset, add, round, write by offset. No model code, bounded memory.

Untouched ranges go from file to file inside the kernel (`copy_file_range`; filesystems with reflinks share the blocks).
A few workers take blocks of the shard's tensors in file order, and hash what is written while it is in the cache; buffers
are used again, so memory does not grow with the model. numpy only: importing torch would take longer than merging a
gigabyte.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np

from bot import formats
from bot.engines.files import OpenInputs, Output, opened
from bot.engines.row_maker import RowMaker
from bot.engines.schedule import WorkItem, blocks, computed_in, computed_ranges, offset_of, pieces, work_items
from bot.numerics.rounder import HERE, Arithmetic
from bot.numerics.rounding import RAW
from bot.records import Local, Op, PeftMerge, PlainOp, Quantize, Shard

CountBytes = Callable[[int], None]
FillPeft = Callable[[Sequence[PeftMerge], int], None]
EachPiece = Callable[[OpenInputs, int], None]
PIECE = 16 << 20  # bytes of a file that are written between two calls of `each_piece`


def write_shard(
    shard: Shard,
    ops: Sequence[Op],
    inputs: Local,
    target: Path,
    moved: CountBytes,
    later: FillPeft | None = None,
    arithmetic: Arithmetic = HERE,
    each_piece: EachPiece | None = None,
) -> str:
    """Write one weight file whole; its sha256. `ops` are the shard's; `moved` is told of bytes written.

    `later` fills in what PEFT's own layers make (PeftMerge ops). `each_piece`: called whenever about PIECE further bytes are
    written, with the open inputs and the byte up to which the file is final; nothing is written meanwhile. Raises Refused for a
    NaN or Inf in what is merged, for a result too large for its dtype (where it is not clamped), or for an input that changes
    meanwhile, and OSError.
    """
    with OpenInputs(inputs) as files, opened(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as descriptor:
        out = Output(descriptor, shard.size)
        if each_piece is None:
            for start, stop in computed_ranges(ops):
                out.reserve(start, stop)
        out.write(shard.header, 0)
        out.mark_final(0, len(shard.header))
        moved(len(shard.header))
        run = _Run(files, out, moved, arithmetic)
        if each_piece is None:
            run.do(work_items(ops))
        else:
            for items in pieces(work_items(ops), PIECE):
                for start, stop in computed_in(items):
                    out.reserve(start, stop)
                run.do(iter(items))
                each_piece(files, items[-1].start + items[-1].length)
        peft = [op for op in ops if isinstance(op, PeftMerge)]
        if peft:
            assert later is not None
            later(peft, descriptor)
            for op in peft:
                out.mark_final(op.target.start, op.target.stop)
        files.unchanged()
        return out.digest()


class _Run:
    """The work on one shard."""

    def __init__(self, files: OpenInputs, out: Output, moved: CountBytes, arithmetic: Arithmetic) -> None:
        self.files, self.out, self.moved = files, out, moved
        self.rows = RowMaker(files, arithmetic)
        self._lock, self._ended = Lock(), False

    def do(self, todo: Iterator[WorkItem]) -> None:
        """Do all of it; in file order, so that the hash can follow."""
        workers = max(1, min(4, _processors()))
        pool = ThreadPoolExecutor(max_workers=workers)
        try:
            futures: list[Future[None]] = [pool.submit(self._work, todo) for _ in range(workers)]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()  # raises what went wrong
        except BaseException:  # after an error or Ctrl-C, only what is in work is waited for
            self._ended = True
            self.out.stop()
            raise
        finally:
            pool.shutdown()

    def _work(self, todo: Iterator[WorkItem]) -> None:
        """One worker: takes item after item."""
        while not self._ended:
            with self._lock:
                item = next(todo, None)
            if item is None:
                return
            self._do_item(item)
            self.moved(item.length)

    def _do_item(self, item: WorkItem) -> None:
        if item.op is None:
            assert item.source is not None
            source = self.files.descriptor(item.source.role, item.source.file)
            self.files.require(source, item.first, item.first + item.length)
            self.out.copy(source, item.first, item.start, item.length)
            return
        if isinstance(item.op, Quantize):
            self._quantize(item.op, item)
        else:
            self._plain(item.op, item)

    def _plain(self, op: PlainOp, item: WorkItem) -> None:
        for first, count in blocks(item):
            offset = offset_of(op.target, first, item.columns)
            size = offset_of(op.target, first + count, item.columns) - offset
            buffer = self.out.buffer(size)
            numbers = np.frombuffer(buffer, dtype=RAW[op.target.dtype], count=count * item.columns)
            self.rows.fill(op, first, numbers.reshape(count, item.columns))
            self.out.put(buffer, size, offset)

    def _quantize(self, op: Quantize, item: WorkItem) -> None:
        """One whole tensor: its rows are made in float32, for the writer to store."""
        parts = {part.key: part for part in op.parts}
        take = partial(self.rows.float32, op.make, item.columns)
        writer = formats.writer_of(op, self.rows.reader.range)
        for key, offset, content in writer.quantise(op.target.key, take, op.target.shape):
            self.out.write(np.ascontiguousarray(content).data.cast("B"), parts[key].start + offset)
        self.out.mark_final(item.start, item.start + item.length)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
