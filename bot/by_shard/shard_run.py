"""One weight file after the other: fetched, merged, proven, sent to the Hub and dropped. While one is made, the next ones are on their
way here and the last ones on their way out. Nothing of it is visible on the Hub before the one commit, which others make.

A file is compared with its base piece by piece while it is made, and what of the base is done with is given back to the disk: so
both together take little more room than one of them, and neither fetching nor sending has to wait for the other.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from bot.by_shard import placeholders
from bot.by_shard.base_files import BaseFiles
from bot.by_shard.disk_room import DiskRoom
from bot.by_shard.journal import Finished, Journal
from bot.by_shard.sending import Destination, Sender, Traffic
from bot.by_shard.spent import Spent, gives_back
from bot.errors import Interrupted
from bot.events import Emit, Note, StepProgress
from bot.shard_needs import IN_WORK, ShardNeeds, room

if TYPE_CHECKING:
    from bot.by_shard.shard_proof import Comparison, ShardProof
    from bot.engines.files import OpenInputs
    from bot.hub import Hub, ServerCopy, Upload
    from bot.merge import MergeRun

WHAT = "One weight file after the other"
SAMPLE = 512  # bytes of a file's beginning that the Hub's client sends along


@dataclass(frozen=True, kw_only=True)
class _Outgoing:
    """A finished file. `path`: where it is sent from; None: the Hub copies it. `held`: bytes that its sending frees."""

    finished: Finished
    path: Path | None
    held: int


class ShardRun:
    """The weight files of one merge on their way. `needs`: of all of them; `merge` and `proof` work in `folder`, where a file is whole
    only while it is made and compared."""

    def __init__(
        self, needs: Sequence[ShardNeeds], base: BaseFiles, folder: Path, to: Destination, journal: Journal, hub: Hub, emit: Emit
    ) -> None:  # fmt: skip
        self._needs, self._base, self._folder, self._to = needs, base, folder, to
        self._journal, self._emit = journal, emit
        self._disk = DiskRoom(room(needs, base.here))
        self._lock, self._line_in = Lock(), Lock()
        self._gives_back = False  # whether the filesystem takes a part of a file back
        self._done, self._kept, self._total = 0, 0, 0
        self.traffic = Traffic()
        self._sender = Sender(to, base.source, journal, hub, self.traffic)
        self.finished: dict[str, Finished] = {}

    @property
    def most_on_disk(self) -> int:
        """Bytes of weight files that lay on the disk at once, at most."""
        return self._disk.most

    def lay_out(self) -> None:
        """Every weight file of the result by name, header and size."""
        for need in self._needs:
            placeholders.write_whole_size(self._folder / need.shard.name, need.shard.header, need.shard.size)

    def cut(self) -> None:
        """From here on a tensor that is not here cannot be read."""
        for need in self._needs:
            placeholders.cut(self._folder / need.shard.name, need.shard.header)
        self._gives_back = gives_back(self._base.staging)

    def take_over(self, finished: Iterable[Finished]) -> None:
        """These were made, proven and sent elsewhere."""
        for each in finished:
            self.finished[each.name] = each
            self._sender.take_over(each)

    def go(self, needs: Sequence[ShardNeeds], merge: MergeRun, proof: ShardProof) -> None:
        """Some of them. Raises what goes wrong first; what is finished until then is kept for the next run."""
        self._total = sum(need.shard.size for need in needs)
        todo = self._in_order([need for need in needs if not self._is_finished(need)])
        self._base.expect(todo)
        # Two threads each: one reads what it has fetched, or will send, and hashes it, while the other one has the line.
        with ThreadPoolExecutor(2) as fetcher, ThreadPoolExecutor(2) as sender:
            coming: deque[Future[None]] = deque()
            sending: list[Future[None]] = []
            ahead = iter(todo)

            def fetch_another() -> None:
                for need in islice(ahead, 1):
                    coming.append(self._watched(fetcher.submit(self._fetch, need)))

            try:
                fetch_another()
                fetch_another()
                for need in todo:
                    coming[0].result()
                    coming.popleft()
                    outgoing = self._make(need, merge, proof, fetch_another)
                    self._raise_if_failed(sending)
                    sending.append(self._watched(sender.submit(self._send, outgoing)))
                for sent in sending:
                    sent.result()
            except Interrupted:
                self._disk.close()
                self._raise_if_failed([*coming, *sending])
                raise
            except BaseException:
                self._disk.close()
                raise

    def _in_order(self, needs: Sequence[ShardNeeds]) -> list[ShardNeeds]:
        """The smallest file first, so that sending begins early; the one that is sent soonest last, since nothing is done beside
        that; the others as they come."""
        order = list(needs)
        if len(order) > 2:
            order.insert(0, order.pop(min(range(len(order)), key=lambda at: order[at].shard.size)))
            last = min(range(1, len(order)), key=lambda at: (self._to_send(order[at]), -at))
            order.append(order.pop(last))
        return order

    def _to_send(self, need: ShardNeeds) -> int:
        return 0 if need.shard.same_as_base and self._to.copies else need.shard.size

    def _watched(self, future: Future[None]) -> Future[None]:
        """Whatever goes wrong in it, nobody waits for the room that it will not give any more."""
        future.add_done_callback(lambda done: self._disk.close() if done.exception() else None)
        return future

    def uploads(self) -> Mapping[str, Upload | ServerCopy]:
        """What the commit is made of, by name: all that `go` has finished."""
        return self._sender.uploads

    def send_instead_of_copying(self) -> None:
        """The Hub does not copy the base's files: fetch those again, and send them."""
        for need in self._needs:
            finished = self.finished[need.shard.name]
            if not finished.copied:
                continue
            self._fetch(need)
            self._base.put_in(need)
            path = self._aside(need, self._base.folder / need.shard.name)
            self._base.clear(need)
            self.traffic.copied -= finished.size
            held = need.to_fetch(self._base.here)
            outgoing = _Outgoing(finished=replace(finished, copied=False), path=path, held=held)
            self._sender.send(outgoing.finished, path)
            self._drop(outgoing)

    def _is_finished(self, need: ShardNeeds) -> bool:
        finished = self._journal.finished.get(need.shard.name)
        if finished is None:
            return False
        self._sender.take_over(finished)
        self.finished[finished.name] = finished
        self.traffic.kept += finished.size
        self._advance(need.shard.size, kept=True)
        self._emit(Note(text=f"{finished.name} was made, proven and sent by an earlier run."))
        return True

    def _fetch(self, need: ShardNeeds) -> None:
        with self._line_in:
            self._disk.take(need.to_fetch(self._base.here))
            self._base.fetch(need, self._arrived)
        self._base.require_stated(need, self._arrived)

    def _arrived(self, count: int) -> None:
        with self._lock:
            self.traffic.fetched += count

    def _make(self, need: ShardNeeds, merge: MergeRun, proof: ShardProof, has_room: Callable[[], None]) -> _Outgoing:
        """Fetch nothing, merge and prove one file, and put it where it is sent from. `has_room`: called once it has what room it
        needs; whoever takes some before that would have it wait for ever."""
        shard, name, fetched = need.shard, need.shard.name, need.to_fetch(self._base.here)
        made, comparison = self._folder / name, proof.begin(name)
        self._base.put_in(need)
        if shard.same_as_base:
            has_room()
            made.unlink()
            made.symlink_to(self._base.folder / name)
            sha256, taken, held = self._base.sha256_of(name), 0, fetched
        else:
            spent = Spent(need, self._base.here)
            taken, held = spent.most_beside(IN_WORK) if self._gives_back else shard.size, shard.size
            self._disk.take(taken)
            has_room()
            merge.shard(shard, partial(self._compare, comparison, spent))
            sha256 = merge.sha256[name]
        tallies = comparison.finish()
        with made.open("rb") as opened:
            sample = opened.read(SAMPLE)
        copied = shard.same_as_base and self._to.copies
        finished = Finished(name=name, sha256=sha256, size=shard.size, sample=sample, copied=copied, tallies=tallies)
        path = None if copied else self._aside(need, (self._base.folder if shard.same_as_base else self._folder) / name)
        placeholders.cut(made, shard.header)
        self._base.clear(need)
        held = 0 if copied else held
        self._disk.give(fetched + taken - held)
        return _Outgoing(finished=finished, path=path, held=held)

    def _compare(self, comparison: Comparison, spent: Spent, files: OpenInputs, written: int) -> None:
        """Compare a piece that was just made, and give back what of the base it was made from."""
        done = comparison.up_to(written)
        if self._gives_back:
            for file, ranges in spent.up_to(done).items():
                files.give_back("base", file, ranges)

    def _aside(self, need: ShardNeeds, path: Path) -> Path:
        """Where a file lies while it is sent: out of the way of what is made next. One that stays on this disk is sent from there."""
        if path.is_symlink():
            return path.resolve()
        aside = self._base.staging / "sent" / need.shard.name
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, aside)
        return aside

    def _send(self, outgoing: _Outgoing) -> None:
        finished = outgoing.finished
        self._sender.send(finished, outgoing.path)
        self._drop(outgoing)
        self.finished[finished.name] = finished
        self._advance(finished.size)

    def _drop(self, outgoing: _Outgoing) -> None:
        if outgoing.path is not None and self._base.staging in outgoing.path.parents:
            outgoing.path.unlink()
        self._disk.give(outgoing.held)

    def _advance(self, size: int, *, kept: bool = False) -> None:
        with self._lock:
            self._done += size
            self._kept += size if kept else 0
            self._emit(StepProgress(stage="merge", done=self._done, total=self._total, what=WHAT, kept=self._kept))

    def _raise_if_failed(self, futures: Iterable[Future[None]]) -> None:
        """What went wrong in one of them; not that nobody gets room any more, which comes of that."""
        for future in futures:
            error = future.exception() if future.done() else None
            if error is not None and not isinstance(error, Interrupted):
                raise error
