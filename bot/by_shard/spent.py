"""What of the base's files nobody needs any more, while a weight file is made from them: its place on the disk can be given back."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from operator import itemgetter
from pathlib import Path

from bot.shard_needs import ShardNeeds, Span, Use

TRIED = 1 << 20  # bytes
Spans = Mapping[str, list[Span]]


def gives_back(folder: Path) -> bool:
    """Whether the filesystem there takes the blocks of a part of a file back."""
    from bot.engines.files import punch

    with tempfile.TemporaryFile(dir=folder) as opened:
        opened.write(b"\1" * TRIED)
        opened.flush()
        os.fsync(opened.fileno())
        before = os.fstat(opened.fileno()).st_blocks
        return punch(opened.fileno(), 0, TRIED) and os.fstat(opened.fileno()).st_blocks < before


class Spent:
    """The ranges that are not needed any more once a file is made and compared up to some byte. `here`: files that stay as they
    are, because they lie on this disk anyway."""

    def __init__(self, need: ShardNeeds, here: frozenset[str]) -> None:
        self._size = need.shard.size
        self._uses: dict[tuple[str, Span], list[Use]] = {}
        for use in need.uses:
            if use.file not in here and use.source[1] > use.source[0]:
                self._uses.setdefault((use.file, use.source), []).append(use)
        self._spent = {of: of[1][0] for of in self._uses}  # up to which byte each is

    def up_to(self, done: int) -> Spans:
        """By file, what has become so since it was last asked for; `done`: bytes of the result. Neighbours are in one."""
        ranges: dict[str, list[Span]] = {}
        for (file, source), stop in sorted(self._all_up_to(done).items()):
            start = self._spent[file, source]
            if stop <= start:
                continue
            self._spent[file, source] = stop
            some = ranges.setdefault(file, [])
            if some and some[-1][1] == start:
                some[-1] = some[-1][0], stop
            else:
                some.append((start, stop))
        return ranges

    def most_beside(self, lag: int) -> int:
        """The most bytes by which the file that is made has ever grown more than the base's have become fewer, where those are
        given back when `lag` bytes more are written."""
        stops = sorted((max(use.target[1] for use in uses), of[1]) for of, uses in self._uses.items())
        given = [0, *accumulate(stop - start for _, (start, stop) in stops)]

        def grown(written: int, done: int) -> int:
            return written - given[bisect_right(stops, done, key=itemgetter(0))]

        targets: dict[Span, bool] = {}
        for use in (use for uses in self._uses.values() for use in uses):
            targets[use.target] = targets.get(use.target, True) and use.by_rows
        most = grown(self._size, self._size)
        for (start, stop), by_rows in targets.items():
            most = max(most, grown(start if by_rows else stop, start), grown(stop, stop))
        return min(self._size, most + lag)

    def _all_up_to(self, done: int) -> dict[tuple[str, Span], int]:
        return {of: min(_spent_of(use, done) for use in uses) for of, uses in self._uses.items()}


def _spent_of(use: Use, done: int) -> int:
    """Up to which byte a use needs its source no more."""
    (start, stop), (first, last) = use.source, use.target
    if done >= last:
        return stop
    if not use.by_rows or done <= first:
        return start
    return start + (stop - start) * (done - first) // (last - first)
