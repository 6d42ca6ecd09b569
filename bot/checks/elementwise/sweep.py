"""One pass over every byte of the merged weights, beside the base's, in bounded memory and on all cores."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from bot.checks.elementwise.row_comparisons import RowRange, compare_bytes, compare_cast, compare_touched
from bot.checks.elementwise.steps import SourceMatrix, ready
from bot.checks.elementwise.tally import Swept, Tally
from bot.checks.expected.changes import AddProduct, Expected
from bot.checks.expected.claims import Claims
from bot.checks.reading.checkpoint import FLOATS, Checkpoint, TensorRef, View
from bot.checks.reading.digests import FileDigest
from bot.checks.reading.rows import CHUNK, Opened, chunks, flat_view
from bot.events import Emit, StepProgress

STAGE = "verify"
WHAT = "Comparing every weight"
SPAN = 1 << 22  # elements per piece of work: large enough to amortise opening, small enough to balance threads
AT_ONCE = (
    1 << 18
)  # elements that are looked at together: what two bytes each take of base and result stays in a core's cache
HIGH_RANK = 64  # from this rank on that is at least TALL rows: each time the whole right-hand factor is read
TALL = 64


def sweep(
    merged: Checkpoint,
    claims: Claims,
    clamps: bool,
    emit: Emit,
    *,
    foreign: bool = False,
    threads: int | None = None,
) -> Swept:
    """Compare every tensor that is as expected in kind and shape. See RowRange for `clamps` and `foreign`.

    `threads`: by default one for each core; what is counted and summed does not depend on it, to the last bit. Working set: about
    10 MB a thread, and the factors of the tensors in work.
    """
    work = Sweep(merged, claims, clamps, foreign=foreign)
    work.go(emit, threads=threads)
    return work.swept


class Sweep:
    """The comparison of all tensors, or of those named in `only`: at once, or as they come to be there."""

    def __init__(
        self,
        merged: Checkpoint,
        claims: Claims,
        clamps: bool,
        *,
        foreign: bool = False,
        only: frozenset[str] | None = None,
    ) -> None:
        packed = frozenset(key for key, ref in merged.tensors.items() if ref.packed is not None)
        asked = merged.tensors if only is None else [key for key in merged.tensors if key in only]
        shared = [key for key in asked if key in claims.expected and key not in packed]
        comparable = [key for key in shared if _comparable(claims.expected[key], merged.tensors[key])]
        tallies = {
            key: Tally(key=key, wanted=claims.expected[key], stored=merged.tensors[key].stored.dtype)
            for key in comparable
        }
        self.swept = Swept(tallies=tallies, skipped=tuple(key for key in shared if key not in tallies), packed=packed)
        self._todo = [
            rows
            for key in comparable
            for rows in _row_ranges(claims.expected[key], merged.tensors[key], clamps, foreign)
        ]

    def go(
        self,
        emit: Emit,
        *,
        written: int | None = None,
        threads: int | None = None,
        digests: Mapping[Path, FileDigest] | None = None,
    ) -> int | None:
        """Compare what is left. `written`: all tensors are of one file, which is there up to this byte only; the byte from which
        on something of it has still to be compared, None: nothing has. `digests`: files to hash of what is read of them.

        What is counted and summed is the same to the last bit, however it was divided: a tensor's rows go in their order.
        """
        spans = [_span(rows) for rows in self._todo]
        now = [rows for rows, (_, end) in zip(self._todo, spans, strict=True) if written is None or end <= written]
        later = [number for number, (_, end) in enumerate(spans) if written is not None and end > written]
        self._todo = [self._todo[number] for number in later]
        for tally in _examined(now, threads or os.cpu_count() or 1, emit, digests or {}):
            self.swept.tallies[tally.key].add(tally)
        return min((spans[number][0] for number in later), default=None)


def _examined(all_ranges: list[RowRange], threads: int, emit: Emit, digests: Mapping[Path, FileDigest]) -> list[Tally]:
    """A tally of each, in their order, whichever is done first: so sums come out the same."""
    total, done = sum(map(_size, all_ranges)), 0
    emit(StepProgress(stage=STAGE, done=0, total=total, what=WHAT))
    tallies: list[Tally | None] = [None] * len(all_ranges)
    with ThreadPoolExecutor(threads) as pool:
        running = {
            pool.submit(_examine, rows, digests): (number, _size(rows)) for number, rows in enumerate(all_ranges)
        }
        all_ranges.clear()  # the factors of a tensor go with the last of its ranges
        for finished in as_completed(list(running)):
            number, size = running.pop(finished)
            tallies[number] = finished.result()
            done += size
            emit(StepProgress(stage=STAGE, done=done, total=total, what=WHAT))
    return [tally for tally in tallies if tally is not None]


def _comparable(wanted: Expected, merged: TensorRef) -> bool:
    stored, source = merged.stored, wanted.source.stored
    return stored.shape == wanted.shape and (stored.dtype == source.dtype or {stored.dtype, source.dtype} <= FLOATS)


def _view(wanted: Expected, merged: TensorRef) -> View:
    """As which rows it is compared: bytes and casts in the tensor's own."""
    return wanted.view if wanted.touched and wanted.source.stored.dtype in FLOATS else flat_view(merged)


def _row_ranges(wanted: Expected, merged: TensorRef, clamps: bool, foreign: bool) -> Iterable[RowRange]:
    view = _view(wanted, merged)
    tall = max(
        (TALL for step in wanted.steps if isinstance(step, AddProduct) and step.left.shape[1] >= HIGH_RANK), default=1
    )
    at_once = CHUNK if foreign and wanted.steps else AT_ONCE  # some of a foreign merge's are asked which way they lean
    ranges = list(chunks(view, max(at_once, tall * view[1])))
    per_task = max(1, SPAN * len(ranges) // max(1, merged.elements))
    source = SourceMatrix(ref=wanted.source, view=view)
    steps = tuple((step, ready(step, source)) for step in wanted.steps)
    for at in range(0, len(ranges), per_task):
        some = tuple(ranges[at : at + per_task])
        yield RowRange(wanted=wanted, merged=merged, steps=steps, clamps=clamps, foreign=foreign, ranges=some)


def _size(rows: RowRange) -> int:
    """Bytes of the merged tensor that they span."""
    return _bytes_of(rows, sum(high - low for low, high in rows.ranges))


def _span(rows: RowRange) -> tuple[int, int]:
    """The bytes of the merged file that they are: the first, and the one after the last."""
    first = rows.merged.stored.start
    return first + _bytes_of(rows, rows.ranges[0][0]), first + _bytes_of(rows, rows.ranges[-1][1])


def _bytes_of(rows: RowRange, count: int) -> int:
    """So many of the tensor's rows, in bytes of the merged file."""
    stored = rows.merged.stored
    return (stored.stop - stored.start) * count // max(1, _view(rows.wanted, rows.merged)[0])


def _examine(rows: RowRange, digests: Mapping[Path, FileDigest]) -> Tally:
    wanted, merged = rows.wanted, rows.merged
    tally = Tally(key=merged.stored.key, wanted=wanted)
    if wanted.touched and wanted.source.stored.dtype in FLOATS:
        compare = compare_touched
    elif wanted.source.stored.dtype == merged.stored.dtype and wanted.source.packed is None:
        compare = compare_bytes
    else:
        compare = compare_cast
    with Opened(digests) as opened:
        compare(rows, opened, tally)
    return tally
