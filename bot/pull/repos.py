"""A source on the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.events import Emit, Note
from bot.held import is_stated, not_the_repos
from bot.pull import texts
from bot.pull.damage import fetched_again
from bot.records import Ref, Role, Source

if TYPE_CHECKING:
    from bot.hub import Hub, Pinned


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
    found = _sound_texts(pinned, names, hub, emit)
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
        tags=_tags(pinned, hub, emit) if role == "adapter" and pinned.online else (),
        card=texts.card_of(found),
    )


def _tags(pinned: Pinned, hub: Hub, emit: Emit) -> tuple[str, ...]:
    """The tags of the commit; none where a mirror of the Hub does not tell them, which is said."""
    from bot.hub import Unserved

    try:
        return hub.tags_at(pinned.repo, pinned.sha)
    except Unserved as unserved:
        emit(
            Note(
                text=f"{unserved.what} Whether that commit has a tag is not known, and none is carried over.",
                level="warning",
            )
        )
        return ()


def _sound_texts(pinned: Pinned, names: list[str], hub: Hub, emit: Emit) -> dict[str, bytes]:
    """The small files by name, as the repo states them; what is damaged in the cache is fetched anew. Raises Damaged."""
    stated = {entry.name: (entry.sha256, entry.oid) for entry in pinned.files}
    for last in (False, True):
        folder = hub.download(pinned.repo, pinned.sha, names)
        found = {name: (folder / name).read_bytes() for name in names}
        wrong = [name for name in names if not is_stated([found[name]], len(found[name]), *stated[name])]
        for name in wrong:
            hub.drop(pinned.repo, pinned.sha, name)
        if not wrong:
            return found
        if last:
            raise not_the_repos(wrong[0], pinned.repo)
        emit(fetched_again(wrong[0], pinned.repo))
    raise AssertionError("unreachable")
