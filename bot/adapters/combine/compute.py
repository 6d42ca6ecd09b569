"""The combined adapter's bytes: module after module, so that memory holds few of them at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bot.adapters.combine.adapter_input import AdapterInput
from bot.adapters.combine.algebra import Half, combine_module
from bot.adapters.combine.exact import Array
from bot.adapters.combine.outline import WEIGHTS, Outline, SavedCopy, Slot
from bot.checkpoint.header import read_header
from bot.errors import Refused
from bot.records import Combination, Stored

DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
COMPARED = 1 << 22  # bytes at a time
WORKERS = 2


def write_weights(
    planned: Outline, inputs: Sequence[AdapterInput], how: Combination, folders: Sequence[Path], target: Path
) -> None:
    """Write adapter_model.safetensors as the outline lays it out. Raises Refused; see `bot.adapters.combine.combine`."""
    paths = [folder / WEIGHTS for folder in folders]
    for adapter, path in zip(inputs, paths, strict=True):
        _require_pinned(adapter, path)
    with ExitStack() as stack:
        readers = [stack.enter_context(path.open("rb")).fileno() for path in paths]
        out = stack.enter_context(target.open("wb"))
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=WORKERS))
        out.write(planned.header.raw)
        for saved_copy in planned.saved_copies:
            _copy_saved(saved_copy, inputs, readers, out)
        for start in range(0, len(planned.slots), WORKERS):  # in step, so that results do not pile up
            slots = planned.slots[start : start + WORKERS]
            for slot, made in zip(slots, pool.map(lambda slot: _made(slot, inputs, how, readers), slots), strict=True):
                for matrix, shape in zip(made, (slot.a, slot.b), strict=True):
                    assert matrix.shape == shape, (slot.module, matrix.shape, shape)
                    out.write(np.ascontiguousarray(matrix, dtype="<f8").data)


def _made(slot: Slot, inputs: Sequence[AdapterInput], how: Combination, readers: Sequence[int]) -> tuple[Array, Array]:
    owners = [owner for owner in inputs if slot.module in owner.pairs]
    return combine_module(slot, [_half(owner, slot.module, how, readers[owner.index]) for owner in owners], how)


def _require_pinned(adapter: AdapterInput, path: Path) -> None:
    """The outline was made from headers; the file that is read now must still have the same tensors."""
    known = {tensor.key: tensor for tensor in read_header(path).tensors}
    planned = [stored for pair in adapter.pairs.values() for stored in (pair.a, pair.b)]
    for stored in (*planned, *adapter.copies.values()):
        now = known.get(stored.key)
        if now is None or (now.dtype, now.shape, now.start) != (stored.dtype, stored.shape, stored.start):
            raise Refused(f"{adapter.called} is not the file that was planned for.", remedy="Run the merge again.")


def _half(adapter: AdapterInput, module: str, how: Combination, reader: int) -> Half:
    pair = adapter.pairs[module]
    a, b = _numbers(pair.a, adapter, reader), _numbers(pair.b, adapter, reader)
    return Half(index=adapter.index, a=a, b=b, factor=how.weights[adapter.index] * pair.scaling)


def _numbers(stored: Stored, adapter: AdapterInput, reader: int) -> Array:
    """A tensor in float64, which holds every value of the other formats exactly."""
    read = _read(reader, stored.start, stored.stop - stored.start)
    if stored.dtype == "BF16":
        values = (np.frombuffer(read, dtype="<u2").astype("<u4") << np.uint32(16)).view("<f4").astype(np.float64)
    else:
        values = np.frombuffer(read, dtype=DTYPES[stored.dtype]).astype(np.float64)
    if not np.isfinite(values).all():
        raise Refused(
            f"{adapter.called} holds values that are not finite in {stored.key}.", remedy="Train or save it again."
        )
    return values.reshape(stored.shape)


def _read(reader: int, start: int, size: int) -> bytes:
    """`size` bytes; a read call gives 2 GiB at most, and a network's disk less."""
    content = b""
    while len(content) < size and (part := os.pread(reader, size - len(content), start + len(content))):
        content = content + part if content else part
    return content


def _copy_saved(saved_copy: SavedCopy, inputs: Sequence[AdapterInput], readers: Sequence[int], out: BinaryIO) -> None:
    """Copy a weight of the base that adapters hold, piece by piece; all of them must hold the same."""
    starts = {index: inputs[index].copies[saved_copy.module].start for index in saved_copy.owners}
    for at in range(0, saved_copy.stored.stop - saved_copy.stored.start, COMPARED):
        size = min(COMPARED, saved_copy.stored.stop - saved_copy.stored.start - at)
        pieces = [_read(readers[index], start + at, size) for index, start in starts.items()]
        if any(piece != pieces[0] for piece in pieces):
            raise Refused(
                f"The adapters bring different weights of their own for {saved_copy.module}.",
                remedy="Save them without their embeddings (PEFT: save_embedding_layers=False), or merge them apart.",
            )
        out.write(pieces[0])
