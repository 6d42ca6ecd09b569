"""Reading the inputs: pin a revision, read its small files and single byte ranges, download what a plan needs."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from huggingface_hub import get_cached_repo_tree, try_to_load_from_cache
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    OfflineModeIsEnabled,
    RevisionResolutionError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # re-exported lazily
    get_session,
    hf_raise_for_status,
)

from bot.errors import NotFound, Outside
from bot.hub.connection import Connection
from bot.hub.errors import HubBusy, Where, translate_errors
from bot.hub.suggestions import advise
from bot.records import FileEntry
from bot.untrusted.links import OID, SHA256, cached_blob, link_target

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

MOST_STEPS = 4  # from link to link; a cache has two


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """A repo at one commit. `online` is False where the local cache answered; privacy is then unknown."""

    repo: str
    revision: str | None
    sha: str
    files: tuple[FileEntry, ...]
    private: bool
    gated: str | None
    online: bool = True


class InputClient(Connection):
    """What a run needs of its inputs."""

    def reach(self) -> None:
        """Raise Outside where the endpoint does not answer as a Hub; no token is used."""
        with translate_errors(self.where("reach the Hub")):
            answer = get_session().get(f"{self.endpoint}/api/models", params={"limit": 1})
            hf_raise_for_status(answer)
            answer.json()  # a web page is no list: ValueError

    def pin(self, repo: str, revision: str | None = None) -> Pinned:
        """The commit that `revision` means now, and its files. From the cache where the Hub cannot be reached."""
        where = self.where(f"pin {repo}", repo, revision)
        try:
            info = self.patiently(where, lambda: self.inputs.model_info(repo, revision=revision))
        except Outside as away:
            if not nobody_answered(away):
                advise(self, away, repo, revision)
                raise
            if (cached := self._in_cache(repo, revision)) is None:
                raise
            return cached
        return self._pinned(repo, info, revision, where)

    def pin_online(self, repo: str, revision: str | None) -> Pinned:
        """As `pin`, but never from the cache: what the revision means now, or an error."""
        where = self.where(f"pin {repo}", repo, revision)
        info = self.patiently(where, lambda: self.inputs.model_info(repo, revision=revision))
        return self._pinned(repo, info, revision, where)

    def _pinned(self, repo: str, info: ModelInfo, revision: str | None, where: Where) -> Pinned:
        assert info.sha is not None
        self.current_names |= {repo: info.id, info.id: info.id}
        tree = self.tree(self.inputs, where, info.id, info.sha)
        self._remember(info.id, revision, info.sha)
        return Pinned(
            repo=info.id,  # the Hub's spelling; renamed repos answer under their new name
            revision=revision,
            sha=info.sha,
            files=tuple(
                FileEntry(
                    name=n,
                    size=b.size,
                    sha256=b.sha256,
                    oid=None if b.sha256 else b.oid,
                    here=self.cached(info.id, info.sha, n) is not None,
                )
                for n, b in sorted(tree.items())
            ),
            private=bool(info.private),
            gated=info.gated or None,
        )

    def _remember(self, repo: str, revision: str | None, sha: str) -> None:
        """Note in the cache, as the client does, what the revision meant: offline, it means that again."""
        name = revision or "main"
        if name == sha or ".." in name:
            return
        ref = self._storage(repo) / "refs" / name
        with suppress(OSError):  # a cache that is only readable still serves what it has
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(sha)

    def _in_cache(self, repo: str, revision: str | None) -> Pinned | None:
        """What the cache has of a repo; None where it has nothing."""
        try:
            resolved = self.inputs.resolve_revision(
                repo, revision=revision, cache_dir=self.cache_dir, local_files_only=True
            )
        except RevisionResolutionError:
            return None
        folder = self._storage(repo) / "snapshots" / resolved.resolved
        if not folder.is_dir():
            return None
        try:
            listed = get_cached_repo_tree(repo, revision=resolved.resolved, cache_dir=self.cache_dir)
        except CachedRepoTreeNotFoundError:
            present = (path for path in folder.rglob("*") if path.is_file())
            sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in present}
        else:
            sizes = {item.path: item.size for item in listed}
        return Pinned(
            repo=repo,
            revision=revision,
            sha=resolved.resolved,
            files=tuple(_from_cache(name, size, folder / name) for name, size in sorted(sizes.items())),
            private=True,  # unknown, and a private input must never become a public output
            gated=None,
            online=False,
        )

    def cached_folder(self, repo: str) -> Path | None:
        """The folder of a repo that lies in the cache with every weight; None where it does not. Nobody is asked."""
        pinned = self._in_cache(repo, None)
        if pinned is None:
            return None
        weights = [
            entry.here for entry in pinned.files if entry.name.endswith(".safetensors") and "/" not in entry.name
        ]
        whole = bool(weights) and all(weights) and self.cached(repo, pinned.sha, "config.json") is not None
        return self._storage(repo) / "snapshots" / pinned.sha if whole else None

    def _storage(self, repo: str) -> Path:
        return self.cache_dir / f"models--{repo.replace('/', '--')}"

    def tags_at(self, repo: str, sha: str) -> tuple[str, ...]:
        """The tags that point at a commit."""
        return tuple(sorted(name for name, at in self.tags_of(repo).items() if at == sha))

    def tags_of(self, repo: str) -> dict[str, str]:
        """The tags of an input, and the commits that they point at."""
        where = self.where(f"list the tags of {repo}", repo)
        refs = self.patiently(where, lambda: self.inputs.list_repo_refs(repo))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def privacy(self, repo: str) -> tuple[bool, str | None]:
        """(private, gated) of an input, now."""
        where = self.where(f"look up whether {repo} is private", repo)
        info = self.patiently(where, lambda: self.inputs.model_info(repo), publishing=True)
        return bool(info.private), info.gated or None

    def cached(self, repo: str, sha: str, file: str) -> Path | None:
        """Where the download cache has this file, if it has it."""
        path = try_to_load_from_cache(repo, file, cache_dir=self.cache_dir, revision=sha)
        return Path(path) if isinstance(path, str) else None

    def drop(self, repo: str, sha: str, file: str) -> None:
        """Take a damaged file out of the download cache, the link and what it leads to, so that the next download brings it
        anew. Raises Outside where that is not allowed."""
        link = self._storage(repo) / "snapshots" / sha / file
        try:
            for path in (link, *self._blobs_of(repo, link)):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise Outside(
                f"{file} of {repo} is damaged in the cache, and cannot be removed there: {error.strerror}.",
                remedy=f"Remove {link} by hand, or set HF_HOME to a cache of your own; then run it again.",
            ) from error

    def _blobs_of(self, repo: str, link: Path) -> list[Path]:
        """What a link of this cache leads to and the cache owns: the repo's blob, and the one that repos share (Xet)."""
        own, shared = (self._storage(repo) / "blobs").resolve(), (self.cache_dir / "blobs").resolve()
        targets: list[Path] = []
        while link.is_symlink() and len(targets) < MOST_STEPS:
            link = link_target(link)
            targets.append(link)
        return [path for path in targets if path.parent.resolve() == own or path.parent.parent.resolve() == shared]

    def read_span(self, repo: str, sha: str, file: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` (exclusive) of a file at a commit: from the cache, else by one ranged request."""
        path = self.cached(repo, sha, file)
        if path is None:
            return self.span(self.inputs, self.where(f"read {file} of {repo}", repo, sha, file), stop, start)
        with path.open("rb") as opened:
            opened.seek(start)
            return opened.read(stop - start)

    def download(self, repo: str, sha: str, names: Iterable[str], arrived: Callable[[int], None] | None = None) -> Path:
        """A folder that holds these files of a commit, in the ordinary download cache; cut downloads resume.

        `arrived` is told the number of further bytes that came in, from several threads, one at a time.
        """
        wanted = sorted(set(names))
        where = self.where(f"download {repo}", repo, sha)
        with translate_errors(where):
            folder = Path(
                self.inputs.snapshot_download(
                    repo,
                    revision=sha,
                    cache_dir=self.cache_dir,
                    allow_patterns=[glob.escape(name) for name in wanted] or ["/"],  # an empty list would mean all
                    tqdm_class=_meter(arrived),
                )
            )
        missing = [name for name in wanted if not (folder / name).is_file()]
        if missing and self._is_listed_wrongly(repo, sha, missing):
            self._download_unlisted(repo, sha, missing, where)
            missing = [name for name in missing if not (folder / name).is_file()]
        if missing:
            raise NotFound(
                f"Could not download {missing[0]} of {repo}@{sha[:8]}: "
                f"neither the local cache nor an answering Hub has it.",
                remedy="Check the network and HF_HUB_OFFLINE, then run it again; what was transferred is kept.",
            )
        return folder

    def download_apart(self, repo: str, sha: str, file: str, folder: Path) -> Path:
        """One file of a commit in a folder of the caller's own, not in the cache: to be dropped after use. A cut download
        resumes."""
        where = self.where(f"download {file} of {repo}", repo, sha, file)

        def fetch() -> Path:
            return Path(
                self.inputs.hf_hub_download(
                    repo, file, revision=sha, local_dir=folder, cache_dir=self.cache_dir, tqdm_class=_meter(None)
                )
            )

        return self.patiently(where, fetch)

    def _is_listed_wrongly(self, repo: str, sha: str, names: Iterable[str]) -> bool:
        """Whether the client's list of the commit's files lacks some that the Hub has told us of."""
        try:
            listed = {item.path for item in get_cached_repo_tree(repo, revision=sha, cache_dir=self.cache_dir)}
        except CachedRepoTreeNotFoundError:
            return False
        return not listed.issuperset(names)

    def _download_unlisted(self, repo: str, sha: str, names: Iterable[str], where: Where) -> None:
        """Files one by one. The client keeps a commit's list for ever, also one that was an answer for once (an empty one, of
        a proxy): it is taken out of the cache."""
        with suppress(OSError):
            (self._storage(repo) / "trees" / f"{sha}.json").unlink(missing_ok=True)
        for name in names:
            with translate_errors(where):
                self.inputs.hf_hub_download(repo, name, revision=sha, cache_dir=self.cache_dir)


def _from_cache(name: str, size: int, path: Path) -> FileEntry:
    """A file of the cache, without asking the Hub: the name of its blob, where it has one, is the hash of its content."""
    blob = cached_blob(path) or ""
    sha256, oid = (blob if kind.fullmatch(blob) else None for kind in (SHA256, OID))
    return FileEntry(name=name, size=size, sha256=sha256, oid=oid, here=path.is_file())


def nobody_answered(error: Outside) -> bool:
    """Whether a failure says nothing of the repo: the Hub was busy or out of reach, or we are to stay offline."""
    return isinstance(error, HubBusy) or isinstance(error.__cause__, OfflineModeIsEnabled)


def _meter(arrived: Callable[[int], None] | None) -> Any:
    """A class in tqdm's shape that draws nothing and reports the client's byte counts."""
    lock = Lock()

    class Meter:
        def __init__(self, *args: Any, unit: str = "it", total: float | None = None, **kwargs: Any) -> None:
            # Two byte bars are made: bytes on the wire and bytes written. Only the second counts every file fully.
            self.counts = unit == "B" and "Reconstructing" in str(kwargs.get("desc", ""))
            self.total, self.n = total, 0.0
            self.format_dict: dict[str, Any] = {}

        def update(self, amount: float | None = 1) -> None:
            if self.counts and arrived is not None and amount:
                with lock:
                    self.n += amount
                    arrived(int(amount))

        def __enter__(self) -> Meter:
            return self

        def __exit__(self, *error: object) -> None:
            self.close()

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None  # refresh, close, set_description … : nothing is drawn

    return Meter
