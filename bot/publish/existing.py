"""What the target already has: the same merge on main, or in a pull request of ours."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from bot.events import Emit, Note, silent
from bot.publish.messages import ModelOnMain, mark_in, trailer_in
from bot.publish.stale_files import is_weights, stale_files
from bot.records import Json, Publication
from bot.report_document import NAME as REPORT
from bot.report_document import OWN_FILES, Document
from bot.verdict_text import level

if TYPE_CHECKING:
    from bot.hub import Blob, Hub, Pull, Target

SMALL = 16_000_000  # bytes; what the Hub keeps outside LFS is smaller


def find_existing(
    fingerprint: str, target: str, hub: Hub, emit: Emit = silent, how: str = "auto"
) -> Publication | None:
    """`unchanged`, where this merge is published, proposed, or was declined by the target's owner; else None.

    Where it is to be pushed (`how`), only what main holds counts. What else was asked for may be missing: see `apply_settings`.

    Cheap enough to ask before any download, and asked again just before the commit. A target that held this merge and was
    changed since is said to `emit`, and is None: then it is published again.
    """
    there = hub.target(target)
    if there is None:
        return None
    on_main = _on_main(fingerprint, there, hub, emit)
    return on_main if on_main or how == "push" else _in_a_pull(fingerprint, there, hub, emit)


def _on_main(fingerprint: str, target: Target, hub: Hub, emit: Emit) -> Publication | None:
    published = _changes_since(fingerprint, target, hub)
    if published is None:
        return None
    document, changes = published
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        text = f"{target.repo} was changed since this merge was published: {', '.join(changes[:3])}{more}."
        emit(Note(text=text, level="warning"))
        return None
    return Publication(
        status="unchanged",
        how="push",
        repo=target.repo,
        revision=target.sha,
        url=f"{hub.address}/{target.repo}/tree/{target.sha}",
        why="The target already holds this merge.",
        proof=_proof(document, target.repo, target.sha, hub),
    )


def _proof(document: Document, repo: str, revision: str, hub: Hub) -> Json:
    """The verdict of a published merge, the hardest level that was proven, and the address of its report."""
    url = f"{hub.address}/{repo}/blob/{revision}/{REPORT}"
    return {"verdict": document.verdict, "level": level(document), "report": url}


def _changes_since(fingerprint: str, target: Target, hub: Hub) -> tuple[Document, list[str]] | None:
    """The report of this merge as it was published, and how main differs from it; None where main never held it, or holds a
    newer one.

    The report names every file with its sha256. Small files, whose sha256 the Hub does not know, are compared with our
    commit, whose files were read back when it was made; where the history lost that commit, they are read.
    """
    if REPORT not in target.files:
        return None
    ours = next(
        ((sha, mark) for sha, message in hub.commit_messages(target.repo) if (mark := trailer_in(message))), None
    )
    if ours is not None and ours[1] != fingerprint:
        return None
    document = _report(target.repo, ours[0] if ours else target.sha, fingerprint, hub)
    if document is None:
        return None
    then = hub.target_files(target.repo, ours[0]) if ours else {}
    files = document.files or {}
    changes = [
        f"{name} {'has other bytes' if name in target.files else 'is missing'}"
        for name, sha256 in sorted(files.items())
        if not _main_has(name, sha256, target, then, hub)
    ]
    return document, changes + [f"{name} was added" for name in stale_files(target.files, {*files, *then, *OWN_FILES})]


def model_on_main(target: Target, hub: Hub) -> ModelOnMain | None:
    """What main holds, for the text of a pull request; None where it has no weights yet."""
    if not any(map(is_weights, target.files)):
        return None
    text = hub.target_text(target.repo, target.sha, REPORT) if REPORT in target.files else None
    try:
        return ModelOnMain(document=Document.read(text) if text else None)
    except ValueError:
        return ModelOnMain(document=None)


def _report(repo: str, revision: str, fingerprint: str, hub: Hub) -> Document | None:
    """The report at a commit, where it is a verified one of this merge."""
    text = hub.target_text(repo, revision, REPORT)
    try:
        document = Document.read(text or b"{}")
    except ValueError:
        return None
    fits = document.merge.fingerprint == fingerprint and document.verdict == "verified" and document.files is not None
    return document if fits else None


def _main_has(name: str, sha256: str, target: Target, then: dict[str, Blob], hub: Hub) -> bool:
    """Whether main has this file with the bytes that were proven."""
    blob = target.files.get(name)
    if blob is None:
        return False
    if blob.sha256 is not None:
        return blob.sha256 == sha256
    if name in then:
        return then[name] == blob
    text = hub.target_text(target.repo, target.sha, name) if blob.size < SMALL else None
    return text is not None and hashlib.sha256(text).hexdigest() == sha256


def _in_a_pull(fingerprint: str, target: Target, hub: Hub, emit: Emit) -> Publication | None:
    from bot.hub import NoDiscussions

    if not hub.signed_in(hub.outputs):
        return None
    try:
        return _of_ours(fingerprint, target, hub, emit)
    except NoDiscussions:  # nothing is proposed there, and pushing needs no pull request
        return None


def _of_ours(fingerprint: str, target: Target, hub: Hub, emit: Emit) -> Publication | None:
    for pull in hub.my_pulls(target.repo):  # a merged one counts by what main holds now
        ours, repo = mark_in(pull.text) == fingerprint, target.repo
        if ours and pull.status == "open":
            why = f"Pull request {pull.num} already proposes this merge."
            existing = _unchanged(fingerprint, repo, pull, hub.head(repo, pull.ref), why, hub)
            if existing.proof is not None:
                return existing
            emit(Note(text=f"Pull request {pull.num} has the mark of this merge, but other weights.", level="warning"))
            continue  # it gets the right weights again: see `pull_to_update`
        if ours and pull.status == "closed":
            why = f"Pull request {pull.num} with this merge was closed; it is not opened again (--force would)."
            return _unchanged(fingerprint, repo, pull, None, why, hub)
        sha = _committed(fingerprint, pull, target, hub) if pull.status in ("open", "draft") else None
        if sha is not None:
            return _unchanged(fingerprint, repo, pull, sha, f"Pull request {pull.num} already holds this merge.", hub)
    return None


def _committed(fingerprint: str, pull: Pull, target: Target, hub: Hub) -> str | None:
    """The head of a pull request, where it is this merge, whole, though the run that put it there was cut off before it
    could say so. A draft without that is work to be taken up."""
    newest = hub.commit_messages(target.repo, pull.ref, most=1)
    if not newest or trailer_in(newest[0][1]) != fingerprint or newest[0][0] == target.sha:
        return None
    sha = newest[0][0]
    document = _report(target.repo, sha, fingerprint, hub)
    if document is None:
        return None
    there = replace(target, sha=sha, files=hub.target_files(target.repo, sha))
    files = document.files or {}
    whole = all(_main_has(name, sha256, there, {}, hub) for name, sha256 in files.items())
    return sha if whole and not stale_files(there.files, {*files, *OWN_FILES}) else None


def _unchanged(fingerprint: str, repo: str, pull: Pull, revision: str | None, why: str, hub: Hub) -> Publication:
    return Publication(
        status="unchanged",
        how="pr",
        repo=repo,
        revision=revision,
        pr_url=pull.url,
        pr_number=pull.num,
        url=pull.url,
        why=why,
        proof=_proposed_proof(fingerprint, repo, revision, hub) if revision else None,
    )


def _proposed_proof(fingerprint: str, repo: str, head: str, hub: Hub) -> Json | None:
    """The proof of what a pull request holds now: None where somebody changed its weights, or the report is not this merge's."""
    document = _report(repo, head, fingerprint, hub)
    if document is None:
        return None
    there = hub.target_files(repo, head)
    known = {name: blob.sha256 for name, blob in there.items() if blob.sha256 is not None}
    files = document.files or {}
    same = files.keys() <= there.keys() and all(known.get(name, sha256) == sha256 for name, sha256 in files.items())
    return _proof(document, repo, head, hub) if same else None


def pull_to_update(fingerprint: str, target: Target, hub: Hub) -> Pull | None:
    """The unfinished pull request of ours that this merge belongs in: one with its mark, else the newest of ours."""
    ours = [pull for pull in hub.open_pulls(target.repo) if mark_in(pull.text)]
    same = [pull for pull in ours if mark_in(pull.text) == fingerprint]
    return next(iter(same or ours), None)
