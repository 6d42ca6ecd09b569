"""Finished weight files on their way to the Hub: one after the other on the line, each kept for the one commit, and noted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from bot.by_shard.journal import Finished, Journal
from bot.errors import Outside
from bot.records import Source

if TYPE_CHECKING:
    from bot.hub import Hub, ServerCopy, Upload


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


class Sender:
    """Sends or has the Hub copy what is finished; `send` may be called by several threads. `source`: the base. Once a file is not
    what it must be, nothing is sent any more."""

    def __init__(self, to: Destination, source: Source, journal: Journal, hub: Hub, traffic: Traffic) -> None:
        self._to, self._source, self._journal, self._hub, self._traffic = to, source, journal, hub, traffic
        self._uploads: dict[str, Upload | ServerCopy] = {}
        self._line, self._stopped = Lock(), False

    @property
    def uploads(self) -> Mapping[str, Upload | ServerCopy]:
        """What the commit is made of, by name."""
        return dict(sorted(self._uploads.items()))

    def take_over(self, finished: Finished) -> None:
        """This one was sent elsewhere, or by an earlier run."""
        from bot.hub.upload import sent_before

        self._uploads[finished.name] = (
            self._copy(finished.name)
            if finished.copied
            else sent_before(finished.name, finished.size, finished.sha256, finished.sample)
        )

    def send(self, finished: Finished, path: Path | None) -> None:
        """`path`: where it lies; None: the Hub copies it. Raises Outside where it is not what was made, and the Hub's errors."""
        self._stopped = self._stopped or not finished.proven
        if path is not None:
            self._upload(finished, path)
            return
        with self._line:
            self._uploads[finished.name] = self._copy(finished.name)
            self._traffic.copied += finished.size
            self._journal.note(finished)

    def _copy(self, name: str) -> ServerCopy:
        from bot.hub.upload import copy_of

        source = self._source
        assert source.repo is not None
        return copy_of(name, source.repo, source.sha, source.in_repo(name))

    def _upload(self, finished: Finished, path: Path) -> None:
        if self._stopped:
            return
        name = finished.name
        hashed = self._hub.hashed(self._to.repo, "main", name, path)  # while the one before is sent
        if hashed.upload_info.sha256.hex() != finished.sha256:
            raise Outside(
                f"{name} changed while it was sent.",
                remedy="Nothing was committed. Run it again, with nothing else writing there.",
            )
        with self._line:
            if self._stopped:
                return
            self._uploads[name] = self._hub.upload(
                self._to.repo, "main", {name: path}, pull_request=self._to.proposing, sent=self._count, hashed={name: hashed}
            )[0]  # fmt: skip
            # A small file travels in the commit itself, and is made again by the next run.
            if hashed._upload_mode == "lfs":
                self._journal.note(finished)

    def _count(self, sent: int) -> None:
        self._traffic.sent += sent
