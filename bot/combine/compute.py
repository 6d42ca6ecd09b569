"""The combined adapter's bytes: module after module, so that memory holds one of them at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bot.combine.algebra import Half, combine_module
from bot.combine.exact import Array
from bot.combine.given import Given
from bot.combine.outline import WEIGHTS, Carried, Outline
from bot.errors import Refused
from bot.records import Combination, Stored
from bot.weights.headers import read_header

DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
PIECE = 1 << 22  # bytes compared at a time


def write_weights(
    planned: Outline, given: Sequence[Given], how: Combination, folders: Sequence[Path], target: Path
) -> None:
    """Write adapter_model.safetensors as the outline lays it out. Raises Refused; see `bot.combine.combine`."""
    paths = [folder / WEIGHTS for folder in folders]
    for one, path in zip(given, paths, strict=True):
        _require_pinned(one, path)
    readers = [path.open("rb") for path in paths]
    try:
        with target.open("wb") as out:
            out.write(planned.header.raw)
            for carried in planned.carried:
                _carry(carried, given, readers, out)
            for slot in planned.slots:
                owners = [one for one in given if slot.module in one.pairs]
                halves = [_half(one, slot.module, how, readers[one.place]) for one in owners]
                for made, shape in zip(combine_module(slot, halves, how), (slot.a, slot.b), strict=True):
                    assert made.shape == shape, (slot.module, made.shape, shape)
                    out.write(np.ascontiguousarray(made, dtype="<f8").data)
    finally:
        for reader in readers:
            reader.close()


def _require_pinned(one: Given, path: Path) -> None:
    """The outline was made from headers; the file that is read now must still have the same tensors."""
    known = {tensor.key: tensor for tensor in read_header(path).tensors}
    planned = [stored for pair in one.pairs.values() for stored in (pair.a, pair.b)] + list(one.copies.values())
    for stored in planned:
        found = known.get(stored.key)
        if found is None or (found.dtype, found.shape, found.start) != (stored.dtype, stored.shape, stored.start):
            raise Refused(f"{one.called} is not the file that was planned for.", remedy="Run the merge again.")


def _half(one: Given, module: str, how: Combination, reader: BinaryIO) -> Half:
    pair = one.pairs[module]
    a, b = _numbers(pair.a, one, reader), _numbers(pair.b, one, reader)
    return Half(place=one.place, a=a, b=b, factor=how.weights[one.place] * pair.scaling)


def _numbers(stored: Stored, one: Given, reader: BinaryIO) -> Array:
    """A tensor in float64, which holds every value of the other formats exactly."""
    read = _bytes(stored, reader)
    if stored.dtype == "BF16":
        values = (np.frombuffer(read, dtype="<u2").astype("<u4") << np.uint32(16)).view("<f4").astype(np.float64)
    else:
        values = np.frombuffer(read, dtype=DTYPES[stored.dtype]).astype(np.float64)
    if not np.isfinite(values).all():
        raise Refused(
            f"{one.called} holds values that are not finite in {stored.key}.", remedy="Train or save it again."
        )
    return values.reshape(stored.shape)


def _bytes(stored: Stored, reader: BinaryIO) -> bytes:
    reader.seek(stored.start)
    return reader.read(stored.stop - stored.start)


def _carry(carried: Carried, given: Sequence[Given], readers: Sequence[BinaryIO], out: BinaryIO) -> None:
    """Copy a weight that came along, piece by piece; every adapter that brings it must bring the same."""
    starts = {place: given[place].copies[carried.module].start for place in carried.owners}
    for at in range(0, carried.stored.stop - carried.stored.start, PIECE):
        size = min(PIECE, carried.stored.stop - carried.stored.start - at)
        pieces = []
        for place, start in starts.items():
            readers[place].seek(start + at)
            pieces.append(readers[place].read(size))
        if any(piece != pieces[0] for piece in pieces):
            raise Refused(
                f"The adapters bring different weights of their own for {carried.module}.",
                remedy="Save them without their embeddings (PEFT: save_embedding_layers=False), or merge them apart.",
            )
        out.write(pieces[0])
