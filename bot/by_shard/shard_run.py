"""One weight file after the other: fetched, merged, proven, sent to the Hub and dropped. While one is made, the next one is on its
way here and the last one on its way out. Nothing of it is visible on the Hub before the one commit, which others make.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from bot.by_shard import placeholders
from bot.by_shard.base_files import BaseFiles
from bot.by_shard.disk_room import DiskRoom
from bot.by_shard.journal import Finished, Journal
from bot.errors import Outside
from bot.events import Emit, Note, StepProgress
from bot.records import Source
from bot.shard_needs import ShardNeeds, room

if TYPE_CHECKING:
    from bot.by_shard.shard_proof import ShardProof
    from bot.hub import Hub, ServerCopy, Upload
    from bot.merge import MergeRun

WHAT = "One weight file after the other"
SAMPLE = 512  # bytes of a file's beginning that the Hub's client sends along


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where the weight files are sent before anything is committed. `proposing`: the commit will be a pull request's;
    `copies`: the Hub itself copies files that are the base's; `part`: of a merge that is shared out, which one sends."""

    repo: str
    proposing: bool
    copies: bool
    part: str = ""


@dataclass(kw_only=True)
class Traffic:
    """Bytes that went over the network, and those that did not have to."""

    fetched: int = 0
    sent: int = 0
    copied: int = 0  # by the Hub itself
    kept: int = 0  # sent and proven by an earlier run


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
        self._journal, self._hub, self._emit = journal, hub, emit
        self._disk = DiskRoom(room(needs, base.here))
        self._uploads: dict[str, Upload | ServerCopy] = {}
        self._lock = Lock()
        self._done, self._kept, self._total = 0, 0, 0
        self._failed = False  # a file is not what it must be: nothing is sent any more
        self.traffic = Traffic()
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

    def take_over(self, finished: Iterable[Finished]) -> None:
        """These were made, proven and sent elsewhere."""
        for each in finished:
            self.finished[each.name] = each
            self._uploads[each.name] = self._as_sent(each)

    def go(self, needs: Sequence[ShardNeeds], merge: MergeRun, proof: ShardProof) -> None:
        """Some of them. Raises what goes wrong first; what is finished until then is kept for the next run."""
        self._total = sum(need.shard.size for need in needs)
        todo = [need for need in needs if not self._is_finished(need)]
        self._base.expect(todo)
        with ThreadPoolExecutor(1) as fetcher, ThreadPoolExecutor(1) as sender:
            sending: list[Future[None]] = []
            try:
                coming = [fetcher.submit(self._fetch, need) for need in todo[:1]]
                for need, after in zip_longest(todo, todo[1:]):
                    coming.pop().result()
                    if after is not None:
                        coming.append(fetcher.submit(self._fetch, after))
                    self._raise_if_failed(sending)
                    sending.append(sender.submit(self._send, self._make(need, merge, proof)))
                for sent in sending:
                    sent.result()
            except BaseException:
                self._disk.close()
                raise

    def uploads(self) -> Mapping[str, Upload | ServerCopy]:
        """What the commit is made of, by name: all that `go` has finished."""
        return dict(self._uploads)

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
            outgoing = _Outgoing(
                finished=replace(finished, copied=False), path=path, held=need.to_fetch(self._base.here)
            )
            self._upload(outgoing.finished, path)
            self._drop(outgoing)

    def _is_finished(self, need: ShardNeeds) -> bool:
        finished = self._journal.finished.get(need.shard.name)
        if finished is None:
            return False
        self._uploads[finished.name] = self._as_sent(finished)
        self.finished[finished.name] = finished
        self.traffic.kept += finished.size
        self._advance(need.shard.size, kept=True)
        self._emit(Note(text=f"{finished.name} was made, proven and sent by an earlier run."))
        return True

    def _as_sent(self, finished: Finished) -> Upload | ServerCopy:
        from bot.hub.upload import sent_before

        if finished.copied:
            return self._copy(finished.name)
        return sent_before(finished.name, finished.size, finished.sha256, finished.sample)

    def _copy(self, name: str) -> ServerCopy:
        from bot.hub.upload import copy_of

        source: Source = self._base.source
        assert source.repo is not None
        return copy_of(name, source.repo, source.sha, source.in_repo(name))

    def _fetch(self, need: ShardNeeds) -> None:
        self._disk.take(need.to_fetch(self._base.here))
        self._base.fetch(need, self._arrived)

    def _arrived(self, count: int) -> None:
        with self._lock:
            self.traffic.fetched += count

    def _make(self, need: ShardNeeds, merge: MergeRun, proof: ShardProof) -> _Outgoing:
        """Fetch nothing, merge and prove one file, and put it where it is sent from."""
        shard, name, fetched = need.shard, need.shard.name, need.to_fetch(self._base.here)
        made = self._folder / name
        self._base.put_in(need)
        if shard.same_as_base:
            made.unlink()
            made.symlink_to(self._base.folder / name)
            sha256, held = self._base.sha256_of(name), fetched
        else:
            self._disk.take(shard.size)
            merge.shard(shard)
            sha256, held = merge.sha256[name], shard.size
        tallies = proof.prove(name)
        with made.open("rb") as opened:
            sample = opened.read(SAMPLE)
        copied = shard.same_as_base and self._to.copies
        finished = Finished(name=name, sha256=sha256, size=shard.size, sample=sample, copied=copied, tallies=tallies)
        path = None if copied else self._aside(need, (self._base.folder if shard.same_as_base else self._folder) / name)
        placeholders.cut(made, shard.header)
        self._base.clear(need)
        if copied or not shard.same_as_base:
            self._disk.give(fetched)
        return _Outgoing(finished=finished, path=path, held=0 if copied else held)

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
        self._failed = self._failed or not finished.proven
        if outgoing.path is None:
            self._uploads[finished.name] = self._copy(finished.name)
            self.traffic.copied += finished.size
            self._journal.note(finished)
        elif not self._failed:
            self._upload(finished, outgoing.path)
        self._drop(outgoing)
        self.finished[finished.name] = finished
        self._advance(finished.size)

    def _drop(self, outgoing: _Outgoing) -> None:
        if outgoing.path is not None and self._base.staging in outgoing.path.parents:
            outgoing.path.unlink()
        self._disk.give(outgoing.held)

    def _upload(self, finished: Finished, path: Path) -> None:
        upload = self._hub.upload(
            self._to.repo, "main", {finished.name: path}, pull_request=self._to.proposing, sent=self._sent
        )[0]
        if upload.upload_info.sha256.hex() != finished.sha256:
            raise Outside(
                f"{finished.name} changed while it was sent.",
                remedy="Nothing was committed. Run it again, with nothing else writing there.",
            )
        self._uploads[finished.name] = upload
        if upload._upload_mode == "lfs":  # a small file travels in the commit itself, and is made again by the next run
            self._journal.note(finished)

    def _sent(self, count: int) -> None:
        self.traffic.sent += count

    def _advance(self, size: int, *, kept: bool = False) -> None:
        with self._lock:
            self._done += size
            self._kept += size if kept else 0
            self._emit(StepProgress(stage="merge", done=self._done, total=self._total, what=WHAT, kept=self._kept))

    def _raise_if_failed(self, sending: Iterable[Future[None]]) -> None:
        for sent in sending:
            if sent.done():
                sent.result()
