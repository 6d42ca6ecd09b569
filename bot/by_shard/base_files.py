"""The base's weight files, each on this disk only while something is made from it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bot.by_shard import placeholders
from bot.errors import Outside
from bot.input_files import is_stated
from bot.records import Header, Source
from bot.shard_needs import ShardNeeds, Span

if TYPE_CHECKING:
    from bot.hub import Hub

PIECE = 8 << 20  # bytes of a range that are asked for at a time
Arrived = Callable[[int], None]


class BaseFiles:
    """The folder that merge and proof read the base from, and the places where what comes next is fetched to.

    Files that lie on this disk already (a folder's, or those in the Hub's cache) are linked and stay. The others are
    placeholders but for the moment that something is made from them. `fetch` and `require_stated` are for other threads
    than `put_in` and `clear`.
    """

    def __init__(self, source: Source, small: Path, folder: Path, staging: Path, hub: Hub) -> None:
        self.source, self.folder, self.staging, self.hub = source, folder, staging, hub
        self._headers: Mapping[str, Header] = {header.file: header for header in source.headers}
        self._sizes = {entry.name: entry.size for entry in source.files}
        self._planned: dict[str, set[Span]] = {}  # ranges that will be read of each file
        self._sha256: dict[tuple[str, Span], str] = {}  # of the ranges that were read, or that a whole file held
        folder.mkdir(parents=True, exist_ok=True)
        self.here = frozenset(name for name in self._headers if self._on_this_disk(name))
        for path in small.rglob("*"):  # configs and texts
            name = path.relative_to(small).as_posix()
            if path.is_file() and name not in self._headers and not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).symlink_to(path.resolve())
        for name, header in self._headers.items():
            if name in self.here:
                (folder / name).unlink(missing_ok=True)
                (folder / name).symlink_to(self._on_this_disk(name) or "")
            else:
                placeholders.write_whole_size(folder / name, header.raw, header.file_size)

    def cut(self) -> None:
        """From here on a tensor that is not here cannot be read: every header has been."""
        for name in self._headers.keys() - self.here:
            placeholders.cut(self.folder / name, self._headers[name].raw)

    def expect(self, needs: Iterable[ShardNeeds]) -> None:
        """What will be asked for: so a range can be held to the file that it is of, whenever that comes by."""
        for need in needs:
            for file, spans in need.spans:
                self._planned.setdefault(file, set()).update(spans)

    def fetch(self, need: ShardNeeds, arrived: Arrived) -> None:
        """Bring what is absent; `require_stated` holds it to what the repo states. Raises the Hub's errors."""
        arrival = self.staging / need.shard.name
        shutil.rmtree(arrival, ignore_errors=True)
        for file in self._absent(need):
            self._download(file, arrival, arrived)
        for file, spans in need.spans:
            if file not in self.here:
                self._fetch_spans(file, spans, arrival, arrived)

    def require_stated(self, need: ShardNeeds, arrived: Arrived) -> None:
        """What was fetched as a whole is what its repo states; what is not is fetched once more. Raises Outside where it still is
        not, and the Hub's errors."""
        arrival = self.staging / need.shard.name
        for file in self._absent(need):
            if not self._is_as_stated(arrival / file, file):
                (arrival / file).unlink()
                self._download(file, arrival, arrived)
                if not self._is_as_stated(arrival / file, file):
                    raise _damaged(self.source, file)
            for span in self._planned.get(file, ()):
                self._hold(file, span, _sha256_of(arrival / file, span))

    def _absent(self, need: ShardNeeds) -> list[str]:
        return [file for file, _ in need.whole if file not in self.here]

    def put_in(self, need: ShardNeeds) -> None:
        """Put what was fetched where merge and proof read it."""
        arrival = self.staging / need.shard.name
        for file in _files_of(need) - self.here:
            (arrival / file).replace(self.folder / file)
        shutil.rmtree(arrival, ignore_errors=True)

    def clear(self, need: ShardNeeds) -> None:
        """Drop it again."""
        for file in _files_of(need) - self.here:
            placeholders.cut(self.folder / file, self._headers[file].raw)

    def sha256_of(self, file: str) -> str:
        """Of a file that is here as a whole. Raises Outside where it is not what its repo states."""
        entry = next(entry for entry in self.source.files if entry.name == file)
        if entry.sha256 is not None and file not in self.here:
            return entry.sha256  # it was held to that when it came
        with (self.folder / file).open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        if entry.sha256 not in (None, sha256):
            raise _damaged(self.source, file)
        return sha256

    def _on_this_disk(self, name: str) -> Path | None:
        if self.source.ref.folder is not None:
            return (self.source.ref.folder / name).resolve()
        assert self.source.repo is not None
        path = self.hub.cached(self.source.repo, self.source.sha, self.source.in_repo(name))
        return path.resolve() if path is not None and path.is_file() else None

    def _download(self, file: str, arrival: Path, arrived: Arrived) -> None:
        assert self.source.repo is not None
        there = self.source.in_repo(file)
        path = self.hub.download_apart(self.source.repo, self.source.sha, there, arrival / ".fetched")
        (arrival / file).parent.mkdir(parents=True, exist_ok=True)
        arrived(path.replace(arrival / file).stat().st_size)

    def _is_as_stated(self, path: Path, file: str) -> bool:
        entry = next(entry for entry in self.source.files if entry.name == file)
        if path.stat().st_size != entry.size:
            return False
        with path.open("rb") as opened:
            return is_stated(iter(lambda: opened.read(1 << 20), b""), entry.size, entry.sha256, entry.oid)

    def _fetch_spans(self, file: str, spans: Iterable[Span], arrival: Path, arrived: Arrived) -> None:
        """Ranges of a file, at their places in a file that is empty between them."""
        assert self.source.repo is not None
        there, header = self.source.in_repo(file), self._headers[file]
        (arrival / file).parent.mkdir(parents=True, exist_ok=True)
        with (arrival / file).open("wb") as opened:
            opened.write(header.raw)
            for start, stop in spans:
                digest = hashlib.sha256()
                opened.seek(start)
                for at in range(start, stop, PIECE):
                    end = min(stop, at + PIECE)
                    content = self.hub.read_span(self.source.repo, self.source.sha, there, at, end)
                    if len(content) != end - at:
                        raise _damaged(self.source, file)
                    digest.update(content)
                    opened.write(content)
                    arrived(len(content))
                self._hold(file, (start, stop), digest.hexdigest())

    def _hold(self, file: str, span: Span, sha256: str) -> None:
        """Raises Outside where a range is not what the whole file, which its hash vouches for, has there."""
        if self._sha256.setdefault((file, span), sha256) != sha256:
            raise _damaged(self.source, file)


def _files_of(need: ShardNeeds) -> set[str]:
    return {file for file, _ in (*need.whole, *need.spans)}


def _sha256_of(path: Path, span: Span) -> str:
    digest, (start, stop) = hashlib.sha256(), span
    with path.open("rb") as opened:
        opened.seek(start)
        while start < stop and (piece := opened.read(min(1 << 20, stop - start))):
            digest.update(piece)
            start += len(piece)
    return digest.hexdigest()


def _damaged(source: Source, file: str) -> Outside:
    return Outside(
        f"{file} of {source.called} came with other bytes than its repo states, and again when it was fetched once more.",
        remedy="Look at the network and the disk, then at the repo; what was uploaded is kept for the next run.",
    )
