"""The settings that are asked for beside the merge itself: who may see it, its tag, a pull request that is open; set now or later."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bot.errors import AdapterMergeError, Forbidden, Moved, Outside
from bot.events import Emit, Note, silent
from bot.publish import messages, visibility
from bot.publish.existing import model_on_main
from bot.publish.stale_files import stale_files
from bot.publish.visibility import Visibility
from bot.records import Publication
from bot.report_document import NAME as REPORT
from bot.report_document import Document

if TYPE_CHECKING:
    from bot.hub import Hub, Target


@dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """`repos`: (base or adapter, repo) of every input, None for a folder. `private`: auto, true or false."""

    fingerprint: str
    repos: tuple[tuple[str, str | None], ...]
    private: str
    tag: str | None


def apply_settings(done: Publication, settings: PublishSettings, hub: Hub, emit: Emit) -> Publication:
    """Give a merge that is published already the settings asked for, where an earlier run was killed before it could."""
    if done.how == "pr" and done.revision is not None:
        return _finish_pull(done, settings, hub)
    if done.how != "push" or done.repo is None:
        return done
    try:
        put = _apply_visibility(done.repo, settings, hub, emit)
    except AdapterMergeError as error:
        emit(Note(text=f"{error.what} It stays as it is; see to it on the Hub.", level="warning"))
        put = []
    if put:
        emit(Note(text=f"{done.repo} {' and '.join(put)} now, as asked."))
        done = replace(done, why=f"{done.why} It {' and '.join(put)} now, as asked.".strip())
    return carry_tag(done, settings.tag, settings.fingerprint, hub, emit)


def _apply_visibility(repo: str, settings: PublishSettings, hub: Hub, emit: Emit) -> list[str]:
    """Set who may see a repo that holds this merge, where that was asked for. Returns what was changed, in words.

    `auto` decides for a new repo only: what its owner did with it since is not undone. A repo that is public under `auto` had its
    gate before the merge was in it (see `apply_visibility`): somebody took it away, or an input got its own later. One that a run
    was cut off from gating is private.
    """
    private, gated = hub.visibility(repo)
    seen = visibility.decide(settings.repos, settings.private, hub, silent)
    put = []
    if seen.gated and not gated and (private or settings.private == "true"):
        hub.set_gated(repo, seen.gated)
        put.append("is gated")
    elif seen.gated and not gated and settings.private == "auto":
        emit(Note(text=f"{repo} is open to everyone, though {seen.why}; gate it on the Hub, if that is not meant."))
    if settings.private != "auto" and private != seen.private:
        hub.set_private(repo, seen.private)
        put.append("is private" if seen.private else "is public")
    elif private and not seen.private:
        emit(Note(text=f"{repo} is private, though its inputs are public; --private false opens it."))
    return put


def _finish_pull(done: Publication, settings: PublishSettings, hub: Hub) -> Publication:
    """Write what the pull request holds, and take it out of draft: the steps after the commit, where a run was killed before them."""
    assert done.repo is not None
    assert done.pr_number is not None
    assert done.revision is not None
    pull = hub.pull(done.repo, done.pr_number)
    if messages.mark_in(pull.text) != settings.fingerprint:
        document = Document.of(json.loads(hub.target_text(done.repo, done.revision, REPORT) or b"{}"))
        main = hub.target(done.repo)
        gone = stale_files(main.files if main else {}, {*hub.target_files(done.repo, done.revision)})
        if pull.status == "open":
            hub.comment(done.repo, pull.num, messages.updated_text(document), once=True)
        hub.rename(done.repo, pull, messages.title(document))
        before = model_on_main(main, hub) if main else None
        text = messages.pull_text(document, settings.fingerprint, settings.tag, gone, before=before, hub=hub.address)
        hub.rewrite(done.repo, pull, text)
    if pull.status != "draft":
        return done
    hub.set_status(done.repo, pull.num, "open")
    return replace(done, why=f"{done.why} It was still a draft, and is open now.")


def carry_tag(done: Publication, tag: str | None, fingerprint: str, hub: Hub, emit: Emit) -> Publication:
    """Tag the commit on main like the adapter's; a tag that is elsewhere already is never moved. The merge is there already, so
    that a tag that fails is a warning: whoever runs this may only propose."""
    if tag is None or done.how != "push" or done.repo is None or done.revision is None:
        return done
    try:
        where = hub.tags(done.repo).get(tag)
        if where is None:
            hub.tag(done.repo, tag, done.revision)
        elif where != done.revision and where not in _since(fingerprint, done.repo, hub):
            text = f"{done.repo} has the tag {tag} on another commit ({where[:8]}); it was not moved."
            emit(Note(text=text, level="warning"))
            return done
    except AdapterMergeError as error:
        text = f"{done.repo} is published, but not tagged {tag}: {error.what} {error.remedy}"
        emit(Note(text=text, level="warning"))
        return done
    return replace(done, tag=tag)


def _since(fingerprint: str, repo: str, hub: Hub) -> list[str]:
    """The commits of main from its head down to that of this merge; none where the history does not have it."""
    shas = []
    for sha, message in hub.commit_messages(repo):
        shas.append(sha)
        if messages.trailer_in(message) == fingerprint:
            return shas
    return []


# --- a new repo ---------------------------------------------------------------------------------------------------


def create_target(repo: str, seen: Visibility, hub: Hub, emit: Emit) -> Target:
    """A new repo, with its final visibility from the start: it is empty until the one commit, and no later step can be missed.

    Where it is to be open and gated, it is private until the gate stands. Raises Moved where it is another's: an empty repo may
    be our own, whose answer was lost, but not a public one where it was to be private.
    """
    try:
        hub.create(repo, private=seen.private or seen.gated is not None)
    except Forbidden:
        if seen.private or seen.gated is None:
            raise
        hub.create(repo, private=False)  # there is no private storage left
    except Outside:
        if hub.target(repo) is None:
            raise
    created = hub.target(repo)
    if created is None or not created.empty or (seen.private and not created.private):
        raise Moved(
            f"{repo} came to be while this run was working, so nothing was committed to it.",
            remedy="Run it again: it then sees what is there.",
        )
    why = f", since {seen.why}" if seen.private and seen.why else ""
    emit(Note(text=f"Created {repo}{' (private' + why + ')' if seen.private else ''}."))
    return created


def apply_visibility(target: Target, seen: Visibility, private: str, hub: Hub, emit: Emit) -> None:
    """Gate a repo that has nothing in it yet as its inputs are, and open it where that was said. Raises where what is put
    into it would be seen by more than it should."""
    try:
        if seen.gated and not target.gated:
            hub.set_gated(target.repo, seen.gated)
        if private == "false" and target.private:
            hub.set_private(target.repo, False)
    except AdapterMergeError as error:
        if not target.private:
            raise
        text = f"{error.what} {target.repo} stays private; set its visibility and gating on the Hub."
        emit(Note(text=text, level="warning"))
