"""Memory does not grow with a weight: readers and writers hold a few rows, and the scales."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bot import formats
from bot.formats.fp8 import writer_channel, writer_same
from bot.formats.mxfp4.writer import SameMxfp4Writer
from bot.records import Packed, Stored

ROWS, COLUMNS = 8192, 4096  # 128 MiB as float32
ROOM = 80 << 20
RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 120, 1 << 22, dtype=np.uint8)
NUMBERS = RANDOM.standard_normal((1024, COLUMNS)).astype(np.float32)


def read(stored: Stored, start: int, count: int) -> Any:
    return np.resize(BYTES, count)


def take(first: int, count: int) -> Any:
    return NUMBERS[:count] if count <= len(NUMBERS) else np.resize(NUMBERS, (count, COLUMNS))


def peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def stored(key: str, dtype: str, shape: tuple[int, ...], size: int) -> Stored:
    return Stored(key=key, file="f", dtype=dtype, shape=shape, start=0, stop=int(np.prod(shape)) * size)


def gridded(kind: str, high: int, wide: int, scale: tuple[int, ...]) -> Stored:
    across = {"e4m3": COLUMNS, "int8": COLUMNS, "pack4": COLUMNS // 8}[kind]
    main = stored("w.weight", "I32" if kind == "pack4" else "F8_E4M3", (ROWS, across), 4 if kind == "pack4" else 1)
    grid = {"kind": kind, "experts": 1, "rows": ROWS, "columns": COLUMNS, "high": high, "wide": wide, "bits": 4}
    parts = (("weight", main), ("scale", stored("w.weight_scale", "F32", scale, 4)))
    packed = Packed(format="compressed-tensors", parts=parts, settings=tuple(sorted(grid.items())))
    return Stored(key="w.weight", file="f", dtype="F32", shape=(ROWS, COLUMNS), start=0, stop=0, packed=packed)


FORMS = {
    "blocks": ("e4m3", 128, 128, (ROWS // 128, COLUMNS // 128)),
    "one scale": ("e4m3", ROWS, COLUMNS, (1,)),
    "rows": ("e4m3", 1, COLUMNS, (ROWS, 1)),
    "groups": ("pack4", 1, 128, (ROWS, COLUMNS // 128)),
}


@pytest.mark.parametrize("form", FORMS)
def test_reading_is_bounded(form: str) -> None:
    def work() -> None:
        rows = formats.open_packed(gridded(*FORMS[form]), read)
        for first in range(0, ROWS, 64):
            rows.rows(first, 64)

    assert peak(work) < ROOM // 4


def experts_in_mxfp4() -> Stored:
    blocks = stored("b", "U8", (4, ROWS // 2, COLUMNS // 32, 16), 1)  # 8 MiB an expert; 64 MiB as float32
    scales = stored("s", "U8", (4, ROWS // 2, COLUMNS // 32), 1)
    packed = Packed(format="mxfp4", parts=(("blocks", blocks), ("scales", scales)))
    return Stored(key="w", file="f", dtype="F32", shape=(4, COLUMNS, ROWS // 2), start=0, stop=0, packed=packed)


def test_reading_transposed_experts_holds_one_packed_expert() -> None:
    def work() -> None:
        rows = formats.open_packed(experts_in_mxfp4(), read)
        for first in range(0, 4 * COLUMNS, 64):
            rows.rows(first, 64)

    assert peak(work) < 2 * 8 * 17 / 16 * (1 << 20) + (8 << 20)


@pytest.mark.parametrize("form", ["blocks", "one scale", "rows"])
def test_writing_is_bounded(form: str) -> None:
    tensor = gridded(*FORMS[form])

    def work() -> None:
        for writer in (writer_channel, writer_same.SameFp8Writer(tensor=tensor)):
            for _ in writer.quantise("w.weight", take, (ROWS, COLUMNS)):
                pass

    assert peak(work) < ROOM


def test_writing_transposed_experts_holds_one_packed_expert_and_a_strip_of_it() -> None:
    tensor = experts_in_mxfp4()
    packed = 8 * 17 / 16 * (1 << 20)

    def work() -> None:
        for _ in SameMxfp4Writer(tensor=tensor, read=read).quantise("w", take, tensor.shape):
            pass

    assert peak(work) < 2 * packed + 10 * 4 * (1 << 20)  # what comes next is read while the last one is held
