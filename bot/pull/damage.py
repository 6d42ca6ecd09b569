"""Damaged files: what is read of a source is held to what it states; a repo's file that is not is removed, and fetched once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bot.errors import Damaged, Outside
from bot.events import Emit, Note
from bot.input_files import look, not_the_repos
from bot.pull.folders import entry_of
from bot.pull.hashes import Hashes
from bot.records import FileEntry, Held, Ref, Source, Sources
from bot.untrusted.links import result_files

if TYPE_CHECKING:
    from bot.hub import Hub, Pinned

T = TypeVar("T")
MEMORY = "hashes.json"  # in our scratch folder


def hold(source: Source, entry: FileEntry, folder: Path, *, ours: bool = False) -> Held:
    """A file of the source as it lies in the folder. `ours`: we have made it of one that came, so no repo has it."""
    repo = None if ours else source.repo
    return replace(_held(entry, folder, source.repo or source.ref.text, repo, source.sha), role=source.role)


def require_headers(sources: Sources, hub: Hub) -> None:
    """Raises Damaged where a header that lay in the cache is not the Hub's: what is planned from it, a refusal above all, would
    be of no base that there is. Where the Hub cannot be asked, the headers are taken as they are."""
    given = [source for source in (sources.base, *sources.adapters) if source.repo is not None]
    try:
        wrong = [held for source in given for held in _other_headers(source, hub)]
    except Outside:
        return
    if wrong:
        raise not_the_repos(wrong[0].name, wrong[0].owner, tuple(wrong))


def _other_headers(source: Source, hub: Hub) -> Iterator[Held]:
    assert source.repo is not None
    entries = {entry.name: entry for entry in source.files}
    for header in source.headers:
        there = source.in_repo(header.file)
        path = hub.cached(source.repo, source.sha, there)
        where = hub.where(f"read {there} of {source.repo}", source.repo, source.sha, there)
        if path is not None and hub.span(hub.inputs, where, len(header.raw)) != header.raw:
            yield hold(source, entries[header.file], path.parents[header.file.count("/")])


def repo_files(pinned: Pinned, folder: Path) -> tuple[Held, ...]:
    """All files of a merged repo, which were downloaded into the folder."""
    return tuple(_held(entry, folder, pinned.repo, pinned.repo, pinned.sha) for entry in pinned.files)


def merged_files(ref: Ref) -> tuple[Held, ...]:
    """The files of a merged folder, of which only a Hub cache's say what is in them; they must stay the same. Raises Refused
    for a link that leads out of it."""
    assert ref.folder is not None
    return tuple(
        _held(entry_of(name, path), ref.folder, ref.text, None, "") for name, path in result_files(ref.folder).items()
    )


def _held(entry: FileEntry, folder: Path, owner: str, repo: str | None, sha: str) -> Held:
    path = folder / entry.name
    return Held(
        role="merged",
        name=entry.path or entry.name,
        path=path,
        owner=owner,
        repo=repo,
        sha=sha,
        sha256=entry.sha256,
        oid=entry.oid,
        identity=entry.identity or look(path),
    )


@contextmanager
def dropping(hub: Hub) -> Iterator[None]:
    """Files that turn out to be damaged in this block are removed from the Hub's cache, or from our remembered hashes."""
    try:
        yield
    except Damaged as damaged:
        files = _files_of(damaged)
        for held in files:
            if held.repo is not None:
                hub.drop(held.repo, held.sha, held.name)
        Hashes(hub.scratch / MEMORY).forget(held.identity for held in files if held.repo is None)
        raise


def with_sound_files(work: Callable[[], T], hub: Hub, emit: Emit) -> T:
    """What `work` gives. Where files out of the Hub's cache are damaged they are removed, and it is all done again, once for
    each file. Raises Damaged where that cannot help or has not."""
    gone: set[tuple[str | None, str, str]] = set()
    while True:
        try:
            with dropping(hub):
                return work()
        except Damaged as damaged:
            files = {(held.repo, held.sha, held.name) for held in _files_of(damaged)}
            if not files or files & gone or any(repo is None for repo, _, _ in files):
                raise
            gone |= files
            for repo, _, name in sorted(files, key=str):
                emit(fetched_again(name, str(repo)))


def fetched_again(name: str, repo: str) -> Note:
    """What is told of a file that was damaged."""
    return Note(text=f"{name} of {repo} was damaged in the cache; it is fetched again.", level="warning")


def _files_of(damaged: Damaged) -> list[Held]:
    return [held for held in damaged.files if isinstance(held, Held)]
