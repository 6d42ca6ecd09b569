"""A merge that never lies on one disk as a whole: one weight file after the other is fetched, merged, proven, sent and dropped.

`make` does that for all files, and builds what a publication needs beside them; the commit is made by `bot.publish`, as ever.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from bot.budget import readable
from bot.by_shard.base_files import BaseFiles
from bot.by_shard.journal import Finished, Journal
from bot.by_shard.sending import Destination, Traffic
from bot.by_shard.shard_run import ShardRun
from bot.events import Emit, Note, Stage, silent
from bot.publish import SentBefore
from bot.records import Local, Merged, Plan, Publication, Report, Source
from bot.report_text import block
from bot.shard_needs import ShardNeeds, shard_needs

if TYPE_CHECKING:
    from bot.hub import Hub
    from bot.records import Request, Sources

STAGING = "staging"


@dataclass(frozen=True, kw_only=True)
class MadeByShard:
    """What `make` leaves for the publication: the report, the sha256 of the weight files, and how those are on the Hub."""

    report: Report
    sha256: Mapping[str, str]
    run: ShardRun
    journal: Journal
    clear: Callable[[], None]  # nothing of it is needed on this disk any more

    def publish(self, commit: Callable[[SentBefore], Publication], emit: Emit) -> Publication:
        """What `commit` makes of it. Where the Hub does not copy the base's own files, they are sent after all; where it has lost
        what was sent, that is forgotten, for the next run to make again."""
        from bot.hub import LostUpload, NotCopied

        try:
            try:
                done = commit(SentBefore(uploads=self.run.uploads(), sha256=self.sha256))
            except NotCopied as refused:
                emit(Note(text=f"{refused.what} What is the base's is fetched once more, and sent."))
                self.run.send_instead_of_copying()
                done = commit(SentBefore(uploads=self.run.uploads(), sha256=self.sha256))
        except LostUpload:
            self.journal.drop()
            raise
        finally:
            self.clear()
        self.journal.drop()
        return done


def weight_files_of(source: Source) -> set[str]:
    """The base's files that are not fetched as others are."""
    return {header.file for header in source.headers}


def _journal_of(scratch: Path, fingerprint: str, to: Destination) -> Journal:
    """What earlier runs have made, proven and sent of this merge, or of this part of it, for this target."""
    name = hashlib.sha256(f"{fingerprint} {to.repo} {to.part}".encode()).hexdigest()[:16]
    return Journal(scratch / "by-shard" / f"{name}.json", fingerprint, to.repo)


def _forget_what_is_gone(journal: Journal, repo: str, hub: Hub, emit: Emit) -> None:
    """Have those files made again that the Hub no longer holds: it collects what nobody commits after a day or two."""
    sent = {each.sha256: each.size for each in journal.finished.values() if not each.copied}
    held = hub.holds(repo, "main", sent)
    gone = frozenset(each.name for each in journal.finished.values() if not each.copied and each.sha256 not in held)
    if gone:
        emit(Note(text=f"The Hub no longer holds {len(gone)} of the weight files that were sent: they are made again."))
        journal.forget(gone)


@dataclass(frozen=True, kw_only=True)
class Merge:
    """What is merged, from what, and where to. `inputs`: the adapter and the small files of the base, without its weights."""

    plan: Plan
    inputs: Local
    sources: Sources
    request: Request
    to: Destination

    @property
    def needs(self) -> tuple[ShardNeeds, ...]:
        """Of every weight file."""
        return shard_needs(self.plan.ops, self.plan.shards, self.sources.base.headers)


def make(what: Merge, partial: Path, hub: Hub, emit: Emit) -> MadeByShard:
    """Make, prove and send every weight file, and write all other files and the report into `partial`.

    Raises what merging, proving and sending raise.
    """
    journal = _journal_of(hub.scratch, what.plan.fingerprint, what.to)
    _forget_what_is_gone(journal, what.to.repo, hub, emit)
    with _Workplace(what, partial, hub, emit, journal) as work:
        work.go(what.needs)
        return work.report(work.run.finished)


def make_part(what: Merge, needs: Sequence[ShardNeeds], partial: Path, hub: Hub, emit: Emit) -> list[Finished]:
    """Make, prove and send some of the weight files: what is to be known of each."""
    journal = _journal_of(hub.scratch, what.plan.fingerprint, what.to)
    _forget_what_is_gone(journal, what.to.repo, hub, emit)
    with _Workplace(what, partial, hub, emit, journal) as work:
        work.go(needs)
        work.clear()
        return [work.run.finished[need.shard.name] for need in needs]


def put_together(what: Merge, finished: Iterable[Finished], partial: Path, hub: Hub, emit: Emit) -> MadeByShard:
    """The rest of a merge whose weight files others have made, proven and sent: every other file, and the report."""
    journal = _journal_of(hub.scratch, what.plan.fingerprint, what.to)
    with _Workplace(what, partial, hub, emit, journal) as work:
        work.run.take_over(finished)
        work.go(())
        return work.report(work.run.finished)


class _Workplace:
    """Where weight files come, are made and go. What is left of it on this disk is dropped where something goes wrong: what is
    finished is on the Hub, and noted."""

    def __init__(self, what: Merge, partial: Path, hub: Hub, emit: Emit, journal: Journal) -> None:
        self._what, self._partial, self._emit, self._journal = what, partial, emit, journal
        self._staging = partial.with_name(f"{partial.name}.{STAGING}")
        self._base = BaseFiles(what.sources.base, what.inputs.base, self._staging / "base", self._staging, hub)
        self._sha256: dict[str, str] = {}
        self.run = ShardRun(what.needs, self._base, partial, what.to, journal, hub, emit)
        self._hub = hub

    def __enter__(self) -> _Workplace:
        from bot.by_shard.shard_proof import ShardProof
        from bot.proof import subject_of

        what, plan = self._what, self._what.plan
        title = f"Merging {plan.method} into {plan.dtype}, one weight file after the other"
        self._emit(Stage(name="merge", title=title))
        self.run.lay_out()
        if plan.index is not None and plan.index_name is not None:  # which weight files there are is read from it
            (self._partial / plan.index_name).write_bytes(plan.index)
        self._inputs = replace(what.inputs, base=self._base.folder)
        merged = Merged(folder=self._partial, plan=plan, sha256=self._sha256)
        subject = subject_of(merged, self._inputs, what.sources, what.request, what.to.repo, self._hub)
        keeps_form = plan.options.quantize == "same"  # and nothing is written in it: else the whole lies on the disk
        self._proof = ShardProof(replace(subject, as_stored=keeps_form), self._emit)
        self._base.cut()
        self.run.cut()
        self._proof.read_adapter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self.clear()

    def clear(self) -> None:
        """Nothing of it is needed on this disk any more."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def go(self, needs: Sequence[ShardNeeds]) -> None:
        """Make, prove and send these files; and write every file that is no weight."""
        from bot.merge import merging

        with merging(self._what.plan, self._inputs, self._partial, silent) as merge:
            self.run.go(needs, merge, self._proof)
            merge.write_rest()
        _tell(self.run.traffic, self._emit)

    def report(self, finished: Mapping[str, Finished]) -> MadeByShard:
        """The report over all files, written beside them."""
        from bot.verify import write

        self._sha256.update({name: each.sha256 for name, each in finished.items()})
        report = self._proof.finish(finished.values())
        self._emit(block(report.document))
        write(report, self._partial)
        return MadeByShard(report=report, sha256=self._sha256, run=self.run, journal=self._journal, clear=self.clear)


def _tell(traffic: Traffic, emit: Emit) -> None:
    if traffic == Traffic():
        return
    parts = [f"{readable(traffic.fetched)} fetched", f"{readable(traffic.sent)} sent"]
    parts += [f"{readable(traffic.copied)} to be copied by the Hub"] if traffic.copied else []
    parts += [f"{readable(traffic.kept)} sent by an earlier run"] if traffic.kept else []
    emit(Note(text=f"Weight files: {', '.join(parts)}."))


__all__ = ["Destination", "Finished", "MadeByShard", "Merge", "make", "make_part", "put_together", "weight_files_of"]
