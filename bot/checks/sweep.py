"""One pass over every byte of the merged weights, beside the base's, in bounded memory and on all cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch

from bot.checks.checkpoint import FLOATS, Checkpoint, Place
from bot.checks.claims import Claims
from bot.checks.compare import compare_bytes, compare_cast, compare_touched
from bot.checks.rows import Opened, chunks
from bot.checks.tally import Swept, Tally
from bot.checks.touch import Touch
from bot.events import Emit, Moved

STAGE = "verify"
SPAN = 1 << 22  # elements per piece of work: large enough to amortise opening, small enough to balance threads


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some rows of one tensor, here and in the base; every range in `ranges` fits the working set."""

    base: Place
    merged: Place
    touch: Touch | None
    ranges: tuple[tuple[int, int], ...]


def sweep(base: Checkpoint, merged: Checkpoint, claims: Claims, emit: Emit) -> Swept:
    """Compare every tensor that base and merged both hold in one shape. Working set: about 10 MB a thread."""
    shared = [key for key in merged.tensors if key in base.tensors]
    comparable = [key for key in shared if _comparable(base.tensors[key], merged.tensors[key])]
    pieces = [piece for key in comparable
              for piece in _pieces(base.tensors[key], merged.tensors[key], claims.touches.get(key))]  # fmt: skip
    tallies = {key: Tally(key=key, touch=claims.touches.get(key)) for key in comparable}
    total, done = sum(_size(piece) for piece in pieces), 0
    threads = torch.get_num_threads()
    try:
        # One torch thread per worker: the arrays are too small to share, and workers scale better.
        with ThreadPoolExecutor(os.cpu_count() or 1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            running = {pool.submit(_examine, piece): piece for piece in pieces}
            for finished in as_completed(running):
                piece = running.pop(finished)
                tallies[piece.merged.stored.key].add(finished.result())
                done += _size(piece)
                emit(Moved(stage=STAGE, done=done, total=total))
    finally:
        torch.set_num_threads(threads)
    return Swept(tallies=tallies, skipped=tuple(key for key in shared if key not in tallies))


def _comparable(base: Place, merged: Place) -> bool:
    same_kind = base.stored.dtype == merged.stored.dtype or {base.stored.dtype, merged.stored.dtype} <= FLOATS
    return base.stored.shape == merged.stored.shape and same_kind


def _pieces(base: Place, merged: Place, touch: Touch | None) -> Iterator[Piece]:
    ranges = list(chunks(base))
    count = base.stored.shape[0] if base.stored.shape else 1
    per_piece = max(1, SPAN * len(ranges) // max(1, base.elements)) if count else 1
    for at in range(0, len(ranges), per_piece):
        yield Piece(base=base, merged=merged, touch=touch, ranges=tuple(ranges[at : at + per_piece]))


def _size(piece: Piece) -> int:
    """Bytes of the merged tensor that the piece spans."""
    stored = piece.merged.stored
    rows = stored.shape[0] if stored.shape else 1
    spanned = sum(high - low for low, high in piece.ranges)
    return (stored.stop - stored.start) * spanned // max(1, rows)


def _examine(piece: Piece) -> Tally:
    tally = Tally(key=piece.merged.stored.key, touch=piece.touch)
    with Opened() as opened:
        if piece.touch:
            compare_touched(piece.base, piece.merged, piece.touch, piece.ranges, opened, tally)
        elif piece.base.stored.dtype == piece.merged.stored.dtype:
            compare_bytes(piece.base, piece.merged, piece.ranges, opened, tally)
        else:
            compare_cast(piece.base, piece.merged, piece.ranges, opened, tally)
    return tally
