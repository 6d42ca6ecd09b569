"""One pass over every byte of the merged weights, beside the base's, in bounded memory and on all cores."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch

from bot.checks.elementwise.compare import Steps, compare_bytes, compare_cast, compare_touched
from bot.checks.elementwise.steps import Source, ready
from bot.checks.elementwise.tally import Swept, Tally
from bot.checks.expected.changes import Expected, Product
from bot.checks.expected.claims import Claims
from bot.checks.reading.checkpoint import FLOATS, Checkpoint, Place
from bot.checks.reading.packed import SHELF
from bot.checks.reading.rows import CHUNK, Opened, chunks, flat_view
from bot.events import Emit, Moved

STAGE = "verify"
WHAT = "Comparing every weight"
SPAN = 1 << 22  # elements per piece of work: large enough to amortise opening, small enough to balance threads


HIGH_RANK = 64  # from this rank on a tile has at least TALL rows: each reads the whole right-hand factor
TALL = 16


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some rows of one tensor, and of what it is made from; every range in `ranges` fits the working set.

    `steps` are shared by all pieces of the tensor, and freed with the last of them.
    """

    wanted: Expected
    merged: Place
    steps: Steps
    clamps: bool
    foreign: bool
    ranges: tuple[tuple[int, int], ...]


def sweep(merged: Checkpoint, claims: Claims, clamps: bool, emit: Emit, *, foreign: bool = False) -> Swept:
    """Compare every tensor that is as expected in kind and shape. `clamps`: too large numbers should have been clamped;
    `foreign`: it need not be exact, and is asked whether it leans.
    Working set: about 10 MB a thread, and the factors of the tensors in work."""
    packed = frozenset(key for key, place in merged.tensors.items() if place.packed is not None)
    shared = [key for key in merged.tensors if key in claims.expected and key not in packed]
    comparable = [key for key in shared if _comparable(claims.expected[key], merged.tensors[key])]
    tallies = {
        key: Tally(key=key, wanted=claims.expected[key], stored=merged.tensors[key].stored.dtype) for key in comparable
    }
    pieces = [
        piece for key in comparable for piece in _pieces(claims.expected[key], merged.tensors[key], clamps, foreign)
    ]
    total, done = sum(_size(piece) for piece in pieces), 0
    emit(Moved(stage=STAGE, done=0, total=total, what=WHAT))
    threads = torch.get_num_threads()
    try:
        # One torch thread per worker: the arrays are too small to share, and workers scale better.
        with ThreadPoolExecutor(os.cpu_count() or 1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            running = {pool.submit(_examine, piece): piece for piece in pieces}
            del pieces
            for finished in as_completed(list(running)):
                piece = running.pop(finished)
                tallies[piece.merged.stored.key].add(finished.result())
                done += _size(piece)
                emit(Moved(stage=STAGE, done=done, total=total, what=WHAT))
    finally:
        torch.set_num_threads(threads)
    SHELF.clear()
    return Swept(tallies=tallies, skipped=tuple(key for key in shared if key not in tallies), packed=packed)


def _comparable(wanted: Expected, merged: Place) -> bool:
    found, source = merged.stored, wanted.source.stored
    return found.shape == wanted.shape and (found.dtype == source.dtype or {found.dtype, source.dtype} <= FLOATS)


def _pieces(wanted: Expected, merged: Place, clamps: bool, foreign: bool) -> Iterable[Piece]:
    """Rows of the view; bytes and casts are compared in the tensor's own rows."""
    computed = wanted.touched and wanted.source.stored.dtype in FLOATS
    view = wanted.view if computed else flat_view(merged)
    tall = max(
        (TALL for step in wanted.steps if isinstance(step, Product) and step.left.shape[1] >= HIGH_RANK), default=1
    )
    ranges = list(chunks(view, max(CHUNK, tall * view[1])))
    per_piece = max(1, SPAN * len(ranges) // max(1, merged.elements))
    source = Source(place=wanted.source, view=view)
    steps = tuple((step, ready(step, source)) for step in wanted.steps)
    for at in range(0, len(ranges), per_piece):
        some = tuple(ranges[at : at + per_piece])
        yield Piece(wanted=wanted, merged=merged, steps=steps, clamps=clamps, foreign=foreign, ranges=some)


def _size(piece: Piece) -> int:
    """Bytes of the merged tensor that the piece spans."""
    stored = piece.merged.stored
    rows = piece.wanted.view[0] if piece.steps else flat_view(piece.merged)[0]
    spanned = sum(high - low for low, high in piece.ranges)
    return (stored.stop - stored.start) * spanned // max(1, rows)


def _examine(piece: Piece) -> Tally:
    wanted, merged = piece.wanted, piece.merged
    tally = Tally(key=merged.stored.key, wanted=wanted)
    with Opened() as opened:
        if wanted.touched and wanted.source.stored.dtype in FLOATS:
            compare_touched(
                wanted, merged, piece.steps, piece.ranges, opened, tally, piece.clamps, foreign=piece.foreign
            )
        elif wanted.source.stored.dtype == merged.stored.dtype and wanted.source.packed is None:
            compare_bytes(wanted.source, merged, piece.ranges, opened, tally)
        else:
            compare_cast(wanted.source, merged, piece.ranges, opened, tally, piece.clamps)
    return tally
