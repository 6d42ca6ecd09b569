"""The two ways to deliver a parcel: one commit on main, or one commit on a pull request's own ref."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bot.errors import AdapterMergeError, Moved, Outside
from bot.events import Emit
from bot.events import Moved as BytesMoved
from bot.publish import words
from bot.publish.parcel import CARD, REPORT, Parcel, proves_the_same, require_proven, unlike
from bot.publish.stale import stale
from bot.publish.standing import already, held
from bot.records import Publication

if TYPE_CHECKING:
    from bot.hub import Change, Hub, Pull, Target, Upload

STAGE = "publish"
RECENT = 10  # commits on top of the one that was looked at, among which ours may be


@dataclass(frozen=True, kw_only=True)
class Job:
    """A parcel on its way."""

    parcel: Parcel
    tag: str | None
    force: bool
    hub: Hub
    emit: Emit


def push(job: Job, target: Target) -> Publication:
    """One commit on main, whose checksums are then read back. Raises Moved where main changed meanwhile."""
    additions = _upload(job, target.repo, "main", pull_request=False)
    change = _change(job, target.repo, "main", target.sha, stale(target.files, job.parcel.files))
    found = _meanwhile(job, target)
    if found is not None:
        return found
    sha = _commit(job, change, additions)
    _require_arrived(job, target.repo, sha, change.delete)
    url = f"{job.hub.address}/{target.repo}/tree/{sha}"
    return Publication(status="published", how="push", repo=target.repo, revision=sha, url=url)


def propose(job: Job, target: Target, pull: Pull | None) -> Publication:
    """One commit on a pull request: `pull`, where ours is still open, else a new draft, opened when it is proven."""
    if pull is not None:
        return _update(job, target, pull)
    additions = _upload(job, target.repo, "main", pull_request=True)
    found = _meanwhile(job, target)
    if found is not None:
        return found
    gone = stale(target.files, job.parcel.files)
    draft = job.hub.open_draft(target.repo, words.title(job.parcel.document), _text(job, target, gone))
    try:
        found = _raced(job, target.repo, draft)
        if found is not None:
            return found
        sha = _commit(job, _change(job, target.repo, draft.ref, target.sha, gone), additions)
        _require_arrived(job, target.repo, sha, gone)
    except AdapterMergeError as error:
        _abandon(job, target.repo, draft, error.what)
        raise
    _open(job, target.repo, draft)
    return _proposed(target.repo, draft, sha)


def _raced(job: Job, repo: str, draft: Pull) -> Publication | None:
    """Another run of ours may have opened its draft of the same merge a moment earlier: the lower number stays."""
    for other in job.hub.open_pulls(repo):
        if words.mark_in(other.text) == job.parcel.fingerprint and other.num < draft.num:
            _abandon(job, repo, draft, f"pull request {other.num} already proposes this merge.")
            why = f"Pull request {other.num} already proposes this merge."
            return replace(_proposed(repo, other, None), status="unchanged", why=why)
    return None


def _open(job: Job, repo: str, pull: Pull) -> None:
    """Out of draft, unless another run of ours was faster."""
    if job.hub.pull(repo, pull.num).status == "draft":
        job.hub.set_status(repo, pull.num, "open")


def _update(job: Job, target: Target, pull: Pull) -> Publication:
    """A new commit on our open pull request (or on a draft that an earlier run left), told in a comment."""
    hub, repo = job.hub, target.repo
    parent = hub.head(repo, pull.ref)
    gone = stale(hub.target_files(repo, parent), job.parcel.files)
    additions = _upload(job, repo, pull.ref, pull_request=False)
    found = _meanwhile(job, target)
    if found is not None:
        return found
    sha = _commit(job, _change(job, repo, pull.ref, parent, gone), additions)
    _require_arrived(job, repo, sha, gone)
    hub.rewrite(repo, pull, _text(job, target, gone))
    hub.rename(repo, pull, words.title(job.parcel.document))
    if pull.status == "draft":
        _open(job, repo, pull)
    else:
        hub.comment(repo, pull.num, words.updated_text(job.parcel.document))
    return _proposed(repo, pull, sha)


def _upload(job: Job, repo: str, revision: str, *, pull_request: bool) -> tuple[Upload, ...]:
    total, done = job.parcel.size, 0

    def sent(amount: int) -> None:
        nonlocal done
        done += amount
        job.emit(BytesMoved(stage=STAGE, done=done, total=total))

    uploads = job.hub.upload(repo, revision, job.parcel.files, pull_request=pull_request, sent=sent)
    require_proven(job.parcel, {one.path_in_repo: one.upload_info.sha256.hex() for one in uploads})
    return uploads


def _change(job: Job, repo: str, revision: str, parent: str, delete: tuple[str, ...]) -> Change:
    document = job.parcel.document
    text = words.commit_text(document, job.parcel.fingerprint)
    from bot.hub import Change

    return Change(repo=repo, revision=revision, parent=parent, title=words.title(document), text=text, delete=delete)


def _meanwhile(job: Job, target: Target) -> Publication | None:
    """The last look before the commit. Raises Moved where main is not the commit that was planned on."""
    if not job.force:
        found = already(job.parcel.fingerprint, target.repo, job.hub)
        if found is not None:
            return found
    if job.hub.head(target.repo) != target.sha:
        raise Moved(
            f"{target.repo} changed while this run was working, so nothing was committed to it.",
            remedy="Run it again: what was uploaded is kept.",
        )
    return None


def _commit(job: Job, change: Change, additions: tuple[Upload, ...]) -> str:
    """Commit; where that fails, look whether the same merge landed all the same: our answer lost, or a faster run."""

    def landed() -> str | None:
        for sha, message in job.hub.commit_messages(change.repo, change.revision, most=RECENT):
            if sha == change.parent:
                return None
            if words.trailer_in(message) == job.parcel.fingerprint:
                return sha
        return None

    return job.hub.commit(change, additions, landed)


def _require_arrived(job: Job, repo: str, sha: str, gone: tuple[str, ...]) -> None:
    """Read the committed tree back and hold every file against its proven checksum.

    Where a faster run committed the same merge, its report and card may differ from ours in what was measured on the way,
    such as seconds: what they prove must be the same.
    """
    wrong = unlike(job.parcel, job.hub.target_files(repo, sha), gone)
    told = [line for line in wrong if line.split()[0] in (CARD, REPORT)]
    if told and proves_the_same(job.hub.target_text(repo, sha, REPORT), job.parcel.document):
        wrong = [line for line in wrong if line not in told]
    if wrong:
        raise Outside(
            f"The files that {repo} has at {sha[:8]} are not the ones that were verified: {', '.join(wrong[:3])}.",
            remedy="Do not use that commit; revert it on the Hub and run again.",
        )


def _abandon(job: Job, repo: str, draft: Pull, why: str) -> None:
    """Close our own draft, without its mark: a closed pull request that has it would count as declined."""
    try:
        job.hub.rewrite(repo, draft, words.abandoned_text(why))
        job.hub.set_status(repo, draft.num, "closed")
    except AdapterMergeError as error:
        error.add_note(f"The draft {draft.url} could not be closed either; close it by hand.")
        raise


def _text(job: Job, target: Target, gone: tuple[str, ...]) -> str:
    before = held(target, job.hub)
    document, fingerprint = job.parcel.document, job.parcel.fingerprint
    return words.pull_text(document, fingerprint, job.tag, gone, before=before, hub=job.hub.address)


def _proposed(repo: str, pull: Pull, sha: str | None) -> Publication:
    return Publication(
        status="published",
        how="pr",
        repo=repo,
        revision=sha,
        pr_url=pull.url,
        pr_number=pull.num,
        url=pull.url,
    )
