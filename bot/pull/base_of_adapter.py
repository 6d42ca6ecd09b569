"""A base whose repo and revision were read from a file, not given by the user: its commit must be the repo owners' own.

A pull request's commit lies in the base's repo, under the base's good name, and anybody can open one. So a revision out of
an adapter's config, or a commit out of a verification.json, counts only where the repo's owners have it: in main's history,
in a branch or under a tag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.errors import Refused
from bot.events import Emit, Note
from bot.records import Source

if TYPE_CHECKING:
    from bot.hub import Hub


def vouch(source: Source, hub: Hub, emit: Emit, named_by: str) -> Source:
    """The source. Raises Refused where its commit is not its owners' own. `named_by`: the file that named it."""
    if source.repo is None or source.revision in (None, "main"):
        return source
    known = hub.is_owners(source.repo, source.sha)
    if known is None:
        text = f"{named_by} names {source.repo}@{source.revision}; whose commit that is cannot be looked up now."
        emit(Note(text=text, level="warning"))
    elif not known:
        raise Refused(
            f"{named_by} names {source.revision} of {source.repo}, which is in no branch and under no tag of it: anybody "
            "may have proposed it.",
            remedy=f"If you trust it, name it yourself: --{source.role} {source.called}@{source.revision}.",
        )
    return source
