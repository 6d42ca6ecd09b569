"""What each weight file of a merge is made from, and what making them one after the other costs: bytes to fetch, to send, on disk.

Pure data, from headers alone. All sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bot.records import AddDelta, Cast, Copy, Header, Op, Quantize, Shard, ShardCosts, Stored

GAP = 1 << 20  # bytes between two ranges of a file that are fetched with them rather than asked for apart
MOST = 0.5  # of a file's bytes: where more are needed, all of it is fetched, and held to its hash
# Bytes of a file that may be made and not compared yet, or compared and their base not yet given back.
IN_WORK = 34 << 20

Span = tuple[int, int]  # absolute offsets in a file: the first byte, and the one after the last


@dataclass(frozen=True, kw_only=True)
class Use:
    """Bytes `source` of a base file that bytes `target` of the result are made from or compared with. `by_rows`: each part of
    these of the same part of those, so that what is done with the first half of one needs no more of the other's."""

    file: str
    source: Span
    target: Span
    by_rows: bool


@dataclass(frozen=True, kw_only=True)
class ShardNeeds:
    """What one weight file of the result is made from: base files as a whole, and ranges of others; and by `uses`, what for."""

    shard: Shard
    whole: tuple[tuple[str, int], ...]  # (file, its size)
    spans: tuple[tuple[str, tuple[Span, ...]], ...]
    uses: tuple[Use, ...] = ()

    def to_fetch(self, here: frozenset[str] = frozenset()) -> int:
        """Bytes of the base that it is made from. `here`: files that lie on this disk anyway."""
        whole = sum(size for file, size in self.whole if file not in here)
        return whole + sum(_bytes(ranges) for file, ranges in self.spans if file not in here)


def shard_needs(ops: Iterable[Op], shards: Sequence[Shard], headers: Iterable[Header]) -> tuple[ShardNeeds, ...]:
    """For each weight file of the result, in their order, what of the base it is made from."""
    headers = tuple(headers)
    sizes = {header.file: header.file_size for header in headers}
    own = {tensor.key: tensor for header in headers for tensor in header.tensors}
    by_shard: dict[str, list[Op]] = {shard.name: [] for shard in shards}
    for op in ops:
        by_shard[op.target.file].append(op)
    return tuple(_needs(shard, by_shard[shard.name], sizes, own) for shard in shards)


def _needs(shard: Shard, ops: Sequence[Op], sizes: Mapping[str, int], own: Mapping[str, Stored]) -> ShardNeeds:
    read = [(op, part) for op in ops for part in _read_by(op, own)]
    uses = tuple(_use(op, part) for op, part in read)
    needs = needs_of([part for _, part in read], sizes, frozenset({shard.name} if shard.same_as_base else ()))
    return ShardNeeds(shard=shard, **needs, uses=uses)


def _use(op: Op, part: Stored) -> Use:
    target = (op.parts[0].start, op.parts[-1].stop) if isinstance(op, Quantize) else (op.target.start, op.target.stop)
    by_rows = part == op.source and part.packed is None and part.shape == op.target.shape and _is_by_rows(op)
    return Use(file=part.file, source=(part.start, part.stop), target=target, by_rows=by_rows)


def _is_by_rows(op: Op) -> bool:
    """Whether a row of what it makes is made from the same row of its source alone; norms of columns are of all rows."""
    if isinstance(op, AddDelta):
        return not any(patch.magnitude and patch.along == "columns" for patch in op.patches)
    return isinstance(op, Copy | Cast)


def needs_of(
    tensors: Iterable[Stored], sizes: Mapping[str, int], all_of: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """`whole` and `spans` for these tensors of the base. `sizes`: of its files; `all_of`: files that are wanted whole."""
    spans: dict[str, list[Span]] = {}
    for stored in tensors:
        if stored.stop > stored.start:
            spans.setdefault(stored.file, []).append((stored.start, stored.stop))
    ranges = {file: _without_gaps(each) for file, each in sorted(spans.items())}
    whole = all_of or {file for file, each in ranges.items() if _bytes(each) > MOST * sizes[file]}
    rest = tuple((file, each) for file, each in ranges.items() if file not in whole)
    return {"whole": tuple((file, sizes[file]) for file in sorted(whole)), "spans": rest}


def _read_by(op: Op, own: Mapping[str, Stored]) -> Iterable[Stored]:
    """The base's tensors behind an op, as they lie in the files; also the one of its own name, which the proof measures the
    change by where the op is made from another (a head that follows its embedding)."""
    source = op.source
    if source is not None and source.role == "base":
        yield from (part for _, part in source.packed.parts) if source.packed else (source,)
    if op.target.key in own:
        yield own[op.target.key]


def _without_gaps(spans: Iterable[Span]) -> tuple[Span, ...]:
    """In order, with neighbours in one."""
    merged: list[Span] = []
    for start, stop in sorted(spans):
        if merged and start - merged[-1][1] <= GAP:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return tuple(merged)


def _bytes(spans: Iterable[Span]) -> int:
    return sum(stop - start for start, stop in spans)


def room(needs: Sequence[ShardNeeds], here: frozenset[str] = frozenset()) -> int:
    """The most that may lie on the disk at once: what one file is made from and that file, the larger of what the next one
    needs and the one before that is still being sent, and what is in work. `here`: files of the base that lie on this disk anyway.

    What is fetched for one file, being made into another and being sent are three files; where base and result of the one that is
    made cannot share their room, one of the others has to wait.
    """
    fetched = [need.to_fetch(here) for need in needs]
    made = [0 if need.shard.same_as_base else need.shard.size for need in needs]
    both = max((read + write for read, write in zip(fetched, made, strict=True)), default=0)
    return both + max([*fetched, *made], default=0) + min(IN_WORK, max(made, default=0))


def costs(needs: Sequence[ShardNeeds], here: frozenset[str], *, copies: bool) -> ShardCosts:
    """What such a run fetches and sends. `copies`: files that are the base's need not be sent, where the Hub copies them."""
    same = sum(need.shard.size for need in needs if need.shard.same_as_base and copies)
    return ShardCosts(
        disk=room(needs, here),
        fetch=sum(need.to_fetch(here) for need in needs),
        send=sum(need.shard.size for need in needs) - same,
        copied=same,
    )
