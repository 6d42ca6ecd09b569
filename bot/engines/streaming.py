"""The streaming engine: read a block of rows by offset, add, round, write by offset. No model code, bounded memory.

Untouched ranges go from file to file inside the kernel (`copy_file_range`; filesystems with reflinks share the blocks).
Two workers take the ops of a shard from one queue; each owns its buffers, so memory does not grow with the model.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import local

import torch
from torch import Tensor

from bot.errors import Refused
from bot.records import AddDelta, Cast, Copy, Local, Measured, Op, Shard, Stored
from bot.weights.delta import LowRank, Rounder, frobenius, low_rank, round_once

BLOCK = 1 << 19  # elements in a block of rows: 2 MiB of float32; smaller blocks cost more calls, larger ones the cache
COPY_RUN = 64 << 20  # bytes per copy call, so that progress moves
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
Moved = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Descriptors:
    """Open files: the base's shard, the adapter's by name, and the shard being written."""

    base: int
    adapter: dict[str, int]
    out: int


class Worker(local):
    """One thread's buffers."""

    def __init__(self) -> None:
        self.rounder = Rounder()
        self.raw = bytearray()
        self.out = bytearray()


def write_shard(shard: Shard, ops: list[Op], inputs: Local, target: Path, moved: Moved) -> list[Measured]:
    """Write one weight file whole. `ops` are the shard's, in file order; `moved` is told of bytes written.

    Raises Refused for a NaN or Inf in what is merged, or for a result too large for its dtype, and OSError.
    """
    with (
        _open(inputs.base / shard.name, os.O_RDONLY) as base,
        ExitStack() as stack,
        _open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as out,
    ):
        adapter_files = {op.a.file for op in ops if isinstance(op, AddDelta)}
        adapter = {name: stack.enter_context(_open(inputs.adapter / name, os.O_RDONLY)) for name in adapter_files}
        files = Descriptors(base=base, adapter=adapter, out=out)
        os.truncate(out, shard.size)
        if shard.same_as_base:
            _copy_range(files, 0, 0, shard.size, moved)
            return []
        _write_all(out, shard.header, 0)
        moved(len(shard.header))
        return _run_ops(ops, files, moved)


def _run_ops(ops: list[Op], files: Descriptors, moved: Moved) -> list[Measured]:
    worker = Worker()

    def do(item: Op | tuple[int, int, int]) -> Measured | None:
        match item:
            case AddDelta():
                return _add_delta(item, files, worker, moved)
            case Cast():
                _cast(item, files, worker, moved)
            case (int(start), int(position), int(length)):
                _copy_range(files, start, position, length, moved)
        return None

    # The largest first: no worker is left with a giant at the end.
    items = sorted((*_copy_runs(ops), *(op for op in ops if not isinstance(op, Copy))), key=_bytes, reverse=True)
    pool = ThreadPoolExecutor(max_workers=max(1, min(4, torch.get_num_threads())), initializer=_one_thread)
    try:
        futures: list[Future[Measured | None]] = [pool.submit(do, item) for item in items]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()  # raises what went wrong
        return [measured for future in futures if (measured := future.result()) is not None]
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, only what is in work is waited for


def _add_delta(op: AddDelta, files: Descriptors, worker: Worker, moved: Moved) -> Measured:
    delta = _load_delta(op, files)
    before = worker.rounder.tally.float64, worker.rounder.tally.rational
    rows, columns = op.source.shape
    step = max(1, BLOCK // max(1, columns))
    for first in range(0, rows, step):
        count = min(step, rows - first)
        weight = _read_block(op.source, first * columns, count * columns, files.base, worker).view(count, columns)
        out = _out_block(op.target, count * columns, worker)
        try:
            worker.rounder.add(weight, delta, first, out.view(count, columns))
        except ValueError as error:
            raise Refused(f"The base's {op.source.key} holds a NaN or Inf.", remedy="Take another base.") from error
        except OverflowError as error:
            raise _too_large(op.target) from error
        _write_block(op.target, first * columns, out, files.out, worker, moved)
    tally = worker.rounder.tally
    return Measured(
        key=op.target.key,
        elements=rows * columns,
        delta_norm=frobenius(delta),
        by_float64=tally.float64 - before[0],
        by_rational=tally.rational - before[1],
    )


def _load_delta(op: AddDelta, files: Descriptors) -> LowRank:
    a, b = (_read_tensor(side, files.adapter[side.file]) for side in (op.a, op.b))
    for stored, tensor in ((op.a, a), (op.b, b)):
        if not bool(torch.isfinite(tensor).all()):
            raise Refused(f"The adapter's {stored.key} holds a NaN or Inf.", remedy="Train or save the adapter again.")
    return low_rank(a, b, op.scaling, transposed=op.transposed, out=DTYPES[op.target.dtype])


def _cast(op: Cast, files: Descriptors, worker: Worker, moved: Moved) -> None:
    total = 1
    for extent in op.source.shape:
        total *= extent
    wanted = DTYPES[op.target.dtype]
    for first in range(0, total, BLOCK):
        count = min(BLOCK, total - first)
        values = _read_block(op.source, first, count, files.base, worker)
        out = _out_block(op.target, count, worker)
        out.copy_(round_once(values, wanted) if values.dtype == torch.float64 else values)
        if bool((torch.isfinite(values) & ~torch.isfinite(out)).any()):
            raise _too_large(op.target)
        _write_block(op.target, first, out, files.out, worker, moved)


def _too_large(target: Stored) -> Refused:
    dtype = str(DTYPES[target.dtype]).removeprefix("torch.")
    return Refused(
        f"{target.key} holds values that are too large for {dtype}.", remedy="Choose --dtype bfloat16 or float32."
    )


# --- bytes --------------------------------------------------------------------------------------------------------


def _copy_runs(ops: list[Op]) -> Iterator[tuple[int, int, int]]:
    """Join neighbouring copies into (source offset, target offset, length) runs."""
    run: tuple[int, int, int] | None = None
    for op in ops:
        if not isinstance(op, Copy) or op.source.start == op.source.stop:
            continue
        start, position, length = op.source.start, op.target.start, op.source.stop - op.source.start
        if run and run[0] + run[2] == start and run[1] + run[2] == position:
            run = (run[0], run[1], run[2] + length)
        else:
            if run:
                yield run
            run = (start, position, length)
    if run:
        yield run


def _copy_range(files: Descriptors, start: int, position: int, length: int, moved: Moved) -> None:
    end = start + length
    while start < end:
        count = _copy_some(files, min(COPY_RUN, end - start), start, position)
        if count == 0:
            raise Refused("A base file became shorter while it was read.", remedy="Run the merge again.")
        start, position = start + count, position + count
        moved(count)


def _copy_some(files: Descriptors, count: int, start: int, position: int) -> int:
    try:
        if not hasattr(os, "copy_file_range"):
            raise OSError(errno.ENOSYS, "not on this system")
        return os.copy_file_range(files.base, files.out, count, start, position)
    except OSError as error:
        # Not between these two filesystems, or not on this kernel: through a buffer then.
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            raise
    piece = os.pread(files.base, min(count, 8 << 20), start)
    _write_all(files.out, piece, position)
    return len(piece)


def _read_tensor(stored: Stored, descriptor: int) -> Tensor:
    raw = bytearray(stored.stop - stored.start)
    _read_all(descriptor, memoryview(raw), stored.start)
    return torch.frombuffer(raw, dtype=DTYPES[stored.dtype]).view(stored.shape)


def _read_block(stored: Stored, first: int, count: int, descriptor: int, worker: Worker) -> Tensor:
    """`count` elements of a stored tensor from element `first` on, flat, in the worker's buffer."""
    dtype = DTYPES[stored.dtype]
    length = count * dtype.itemsize
    if len(worker.raw) < length:
        worker.raw = bytearray(length)
    _read_all(descriptor, memoryview(worker.raw)[:length], stored.start + first * dtype.itemsize)
    return torch.frombuffer(worker.raw, dtype=dtype, count=count)


def _out_block(target: Stored, count: int, worker: Worker) -> Tensor:
    dtype = DTYPES[target.dtype]
    if len(worker.out) < count * dtype.itemsize:
        worker.out = bytearray(count * dtype.itemsize)
    return torch.frombuffer(worker.out, dtype=dtype, count=count)


def _write_block(target: Stored, first: int, block: Tensor, descriptor: int, worker: Worker, moved: Moved) -> None:
    length = block.numel() * block.element_size()
    _write_all(descriptor, memoryview(worker.out)[:length], target.start + first * block.element_size())
    moved(length)


def _read_all(descriptor: int, buffer: memoryview, offset: int) -> None:
    while buffer.nbytes:
        count = os.preadv(descriptor, [buffer], offset)
        if count == 0:
            raise Refused("An input file became shorter while it was read.", remedy="Run the merge again.")
        buffer, offset = buffer[count:], offset + count


def _write_all(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    view = memoryview(content)
    while view.nbytes:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


@contextmanager
def _open(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _bytes(item: Op | tuple[int, int, int]) -> int:
    return item[2] if isinstance(item, tuple) else item.target.stop - item.target.start


def _one_thread() -> None:
    torch.set_num_threads(1)
