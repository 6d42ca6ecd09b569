"""A source on the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.events import Emit, Note
from bot.pull import texts
from bot.records import Ref, Role, Source

if TYPE_CHECKING:
    from bot.hub import Hub


def pin_repo(role: Role, ref: Ref, hub: Hub, emit: Emit) -> Source:
    """The commit that the revision means now, its file list and its small files."""
    assert ref.repo is not None
    pinned = hub.pin(ref.repo, ref.revision)
    if not pinned.online:
        text = f"The Hub cannot be reached; {pinned.repo} is taken from the cache, at commit {pinned.sha[:8]}."
        emit(Note(text=text, level="warning"))
    names = texts.wanted(pinned.files)
    if not pinned.online:
        names = [name for name in names if hub.cached(pinned.repo, pinned.sha, name)]
    folder = hub.download(pinned.repo, pinned.sha, names)
    found = {name: (folder / name).read_bytes() for name in names}
    texts.check(found, pinned.repo)
    return Source(
        role=role,
        ref=ref,
        repo=pinned.repo,
        revision=ref.revision,
        sha=pinned.sha,
        files=pinned.files,
        headers=(),
        texts=found,
        private=pinned.private,
        gated=pinned.gated,
        # Only the adapter's tag is carried to the merged repo.
        tags=hub.tags_at(pinned.repo, pinned.sha) if role == "adapter" and pinned.online else (),
        card=texts.card_of(found),
    )
