"""The two ways to publish an upload: one commit on main, or one commit on a pull request's own ref."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bot.errors import AdapterMergeError, Moved
from bot.events import Note, StepProgress, beating
from bot.publish import messages
from bot.publish.commit import ARRIVED_CHANGED, Parent, PublishJob, commit_verified, holds_a_merge, latest_parent
from bot.publish.existing import find_existing, model_on_main
from bot.publish.stale_files import stale_files
from bot.publish.upload import require_proven
from bot.records import Publication

if TYPE_CHECKING:
    from bot.hub import Pull, ServerCopy, Target, Upload

STAGE = "publish"


def push(job: PublishJob, target: Target) -> Publication:
    """One commit on main, whose checksums are then read back. Raises Moved where main changed in what is ours."""
    additions = _upload(job, target.repo, "main", pull_request=False)
    existing = published_meanwhile(job, target.repo)
    if existing is not None:
        return existing
    sha, _ = commit_verified(job, Parent(repo=target.repo, ref="main", sha=target.sha, files=target.files), additions)
    if job.how == "push" and not target.empty:
        _supersede(job, target.repo, sha)
    url = f"{job.hub.address}/{target.repo}/tree/{sha}"
    return Publication(status="published", how="push", repo=target.repo, revision=sha, url=url)


def propose(job: PublishJob, target: Target, pull: Pull | None) -> Publication:
    """One commit on a pull request: `pull`, where ours is still open, else a new draft, opened when it is proven."""
    if pull is not None:
        return _update(job, target, pull)
    additions = _upload(job, target.repo, "main", pull_request=True)
    return published_meanwhile(job, target.repo) or _propose_anew(job, target, additions)


def _propose_anew(job: PublishJob, target: Target, additions: tuple[Upload | ServerCopy, ...]) -> Publication:
    repo = target.repo
    try:
        parent = latest_parent(job, Parent(repo=repo, ref="main", sha=target.sha, files=target.files))
    except Moved:
        existing = published_meanwhile(job, repo)
        if existing is None:
            raise
        return existing
    text = _text(job, target, stale_files(parent.files, job.upload.files))
    draft = job.hub.open_draft(repo, messages.title(job.upload.document), text)
    sha: str | None = None
    try:
        other = _earlier_pull(job, repo, draft)
        if other is None:
            sha, _ = commit_verified(job, replace(parent, ref=draft.ref), additions)
    except AdapterMergeError as error:
        _close_unless_continued(job, repo, draft, None if error.code == ARRIVED_CHANGED else parent, error.what)
        raise
    if other is None:
        return _out_of_draft(job, repo, draft, sha)
    why = f"Pull request {other.num} already proposes this merge."
    _close_unless_continued(job, repo, draft, parent, why)
    if other.status == "open":
        return replace(_proposed(repo, other, None), status="unchanged", why=why)
    return _commit_to_pull(job, target, other, replace(parent, ref=other.ref), additions)


def _earlier_pull(job: PublishJob, repo: str, draft: Pull) -> Pull | None:
    """A pull request of the same merge with a lower number, which is kept: of another run of ours, a moment faster, or of our own
    call, where its answer was lost and the Hub listed it too late.

    While it is a draft, nobody may be at work on it any more: it is taken up. Where its run is alive, one commit of the two lands.
    """
    for other in job.hub.open_pulls(repo):
        if messages.mark_in(other.text) == job.upload.fingerprint and other.num < draft.num:
            return other
    return None


def _update(job: PublishJob, target: Target, pull: Pull) -> Publication:
    """A new commit on our open pull request (or on a draft that an earlier run left), told in a comment. Where it was merged or
    closed while this run was working, a new one."""
    hub, repo = job.hub, target.repo
    head = hub.head(repo, pull.ref)
    parent = Parent(repo=repo, ref=pull.ref, sha=head, files=hub.target_files(repo, head))
    additions = _upload(job, repo, pull.ref, pull_request=False)
    existing = published_meanwhile(job, repo)
    if existing is not None:
        return existing
    pull = hub.pull(repo, pull.num)
    if pull.status not in ("open", "draft"):
        text = f"Pull request {pull.num} was {pull.status} while this run was working, which now opens another."
        job.emit(Note(text=text))
        # Sent again, which costs little: what was as it is on that pull request would not be committed elsewhere.
        return propose(job, hub.target(repo) or target, None)
    return _commit_to_pull(job, target, pull, parent, additions)


def _commit_to_pull(
    job: PublishJob, target: Target, pull: Pull, parent: Parent, additions: tuple[Upload | ServerCopy, ...]
) -> Publication:
    """The commit on an existing pull request, and its new title and text."""
    hub, repo = job.hub, target.repo
    sha, gone = commit_verified(job, parent, additions)
    if pull.status == "open":
        hub.comment(repo, pull.num, messages.updated_text(job.upload.document))
    hub.rename(repo, pull, messages.title(job.upload.document))
    # With its mark, by which the next run knows that all this is done.
    hub.rewrite(repo, pull, _text(job, target, gone))
    return _out_of_draft(job, repo, pull, sha) if pull.status == "draft" else _proposed(repo, pull, sha)


def _out_of_draft(job: PublishJob, repo: str, draft: Pull, sha: str | None) -> Publication:
    """The publication, taken out of draft; one that was closed meanwhile stays closed."""
    status = job.hub.pull(repo, draft.num).status
    if status == "closed":
        why = f"Pull request {draft.num} with this merge was closed; it is not opened again (--force would)."
        return replace(_proposed(repo, draft, None), status="unchanged", why=why)
    if status == "draft":
        job.hub.set_status(repo, draft.num, "open")
    return _proposed(repo, draft, sha)


def _supersede(job: PublishJob, repo: str, sha: str) -> None:
    """Close our pull request of this merge, now that it was pushed to main; leave those of other merges open, with a note."""
    from bot.hub import NoDiscussions

    try:
        for pull in job.hub.open_pulls(repo):
            mark = messages.mark_in(pull.text)
            if mark == job.upload.fingerprint:
                _abandon(job, repo, pull, f"the merge was pushed to main, as {sha}.")
                job.emit(
                    Note(text=f"Pull request {pull.num} proposed this merge; it is closed, since main holds it now.")
                )
            elif mark is not None:
                job.emit(Note(text=f"Pull request {pull.num} proposes another merge; it is left open."))
    except NoDiscussions:
        pass
    except AdapterMergeError as error:
        job.emit(Note(text=f"{error.what} Look at the pull requests of {repo}.", level="warning"))


def _upload(job: PublishJob, repo: str, revision: str, *, pull_request: bool) -> tuple[Upload | ServerCopy, ...]:
    total, done = job.upload.size, 0

    def sent(amount: int) -> None:
        nonlocal done
        done += amount
        emit(StepProgress(stage=STAGE, done=done, total=total))

    with beating(job.emit, STAGE) as emit:
        sent(0)
        uploads = job.hub.upload(repo, revision, job.upload.here, pull_request=pull_request, sent=sent)
    require_proven(job.upload, {upload.path_in_repo: upload.upload_info.sha256.hex() for upload in uploads})
    return *uploads, *job.upload.sent.values()


def published_meanwhile(job: PublishJob, repo: str) -> Publication | None:
    """The last look before the commit: another run may have been faster."""
    return None if job.force else find_existing(job.upload.fingerprint, repo, job.hub, how=job.how)


def _close_unless_continued(job: PublishJob, repo: str, draft: Pull, parent: Parent | None, why: str) -> None:
    """Close a draft of ours that came to nothing. Where another run has committed to it since, on that `parent`, it is that run's
    now; without a parent, it is closed whatever is on it. A failure to close it is a warning, and hides no other error."""
    try:
        if parent is None or not holds_a_merge(job, repo, draft.ref, parent.sha):
            _abandon(job, repo, draft, why)
    except AdapterMergeError as error:
        job.emit(Note(text=f"{error.what} Close {draft.url} by hand.", level="warning"))


def _abandon(job: PublishJob, repo: str, draft: Pull, why: str) -> None:
    """Close our own draft, without its mark: a closed pull request that has it would count as declined."""
    job.hub.rewrite(repo, draft, messages.abandoned_text(why))
    job.hub.set_status(repo, draft.num, "closed")


def _text(job: PublishJob, target: Target, gone: tuple[str, ...]) -> str:
    before = model_on_main(target, job.hub)
    document, fingerprint = job.upload.document, job.upload.fingerprint
    return messages.pull_text(document, fingerprint, job.settings.tag, gone, before=before, hub=job.hub.address)


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
