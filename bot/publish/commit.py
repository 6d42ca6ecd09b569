"""One commit on a ref that others may write to as well: made on its newest state, found again if our answer was lost, read back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bot.errors import Moved, Outside
from bot.events import Emit, Note
from bot.publish import messages
from bot.publish.repo_settings import PublishSettings
from bot.publish.stale_files import stale_files
from bot.publish.upload import CARD, VerifiedUpload, differing_files, proves_the_same
from bot.report_document import NAME as REPORT
from bot.report_document import OWN_FILES

if TYPE_CHECKING:
    from bot.hub import Blob, Change, Hub, ServerCopy, Upload

ARRIVED_CHANGED = "arrived-changed"
ROUNDS = 5  # times that a commit is tried again on top of what others have committed
RECENT = 10  # newest commits, among which ours is looked for


@dataclass(frozen=True, kw_only=True)
class PublishJob:
    """One publication in work. `how`: as it was asked for, auto, pr or push."""

    upload: VerifiedUpload
    settings: PublishSettings
    how: str
    force: bool
    hub: Hub
    emit: Emit


@dataclass(frozen=True, kw_only=True)
class Parent:
    """What our commit is made on: a ref, the commit that it had when it was looked at, and the files there."""

    repo: str
    ref: str
    sha: str
    files: dict[str, Blob]


def commit_verified(
    job: PublishJob, parent: Parent, additions: tuple[Upload | ServerCopy, ...]
) -> tuple[str, tuple[str, ...]]:
    """Commit and read back: the commit, and the files that it deleted. Raises Moved where the parent changed in what is ours,
    or goes on changing."""
    for rounds in range(ROUNDS, 0, -1):
        parent, sha = _current_parent(job, parent)
        gone = stale_files(parent.files, job.upload.files)
        if sha is None:
            try:
                sha = _commit(job, _change(job, parent, gone), additions)
            except Moved:
                if rounds == 1:
                    raise
                continue
        _require_arrived(job, parent.repo, sha, gone)
        return sha, gone
    raise AssertionError("unreachable")


def _current_parent(job: PublishJob, parent: Parent) -> tuple[Parent, str | None]:
    """The parent as it is now; and the commit of this merge, where a faster run has made it already."""
    try:
        return latest_parent(job, parent), None
    except Moved:
        sha = _find_commit(job, parent.repo, parent.ref, parent.sha)
        if sha is None:
            raise
        return parent, sha


def latest_parent(job: PublishJob, parent: Parent) -> Parent:
    """The parent as it is now. Raises Moved where what came since touches a file that our commit adds, changes or deletes, or
    would have it delete another: then it is not what was looked at."""
    sha = job.hub.head(parent.repo, parent.ref)
    if sha == parent.sha:
        return parent
    now = replace(parent, sha=sha, files=job.hub.target_files(parent.repo, sha))
    before, after = (stale_files(state.files, job.upload.files) for state in (parent, now))
    # .gitattributes decides which files are large, as they were when ours were sent.
    ours = {*job.upload.files, *before, ".gitattributes"}
    names = {*parent.files, *now.files}
    if before != after or any(parent.files.get(name) != now.files.get(name) for name in names & ours):
        raise Moved(
            f"{parent.repo} changed while this run was working, so nothing was committed to it.",
            remedy="Run it again: what was uploaded is kept.",
        )
    text = (
        f"{parent.repo} changed while this run was working, in nothing that this merge touches; it goes on from there."
    )
    job.emit(Note(text=text))
    return now


def _change(job: PublishJob, parent: Parent, delete: tuple[str, ...]) -> Change:
    document = job.upload.document
    text = messages.commit_text(document, job.upload.fingerprint)
    from bot.hub import Change

    return Change(
        repo=parent.repo,
        revision=parent.ref,
        parent=parent.sha,
        title=messages.title(document),
        text=text,
        delete=delete,
    )


def _commit(job: PublishJob, change: Change, additions: tuple[Upload | ServerCopy, ...]) -> str:
    """Commit; where that fails, look whether the commit exists all the same: the answer was lost, or another run was faster."""
    return job.hub.commit(change, additions, lambda: _find_commit(job, change.repo, change.revision, change.parent))


def _find_commit(job: PublishJob, repo: str, ref: str, start: str) -> str | None:
    """The commit of this merge among those that came on top of `start`."""
    for sha, message in job.hub.commit_messages(repo, ref, most=RECENT):
        if sha == start:
            return None
        if messages.trailer_in(message) == job.upload.fingerprint:
            return sha
    return None


def holds_a_merge(job: PublishJob, repo: str, ref: str, start: str) -> bool:
    """Whether a run has committed a merge, whichever, to a draft that was opened on `start`, or on what main has now."""
    known = {start, job.hub.head(repo)}
    for sha, message in job.hub.commit_messages(repo, ref, most=RECENT):
        if sha in known:
            return False
        if messages.trailer_in(message) is not None:
            return True
    return False


def _require_arrived(job: PublishJob, repo: str, sha: str, gone: tuple[str, ...]) -> None:
    """Read the committed tree back and hold every file against its proven checksum.

    Where a faster run committed the same merge, its report and card may differ from ours in what was measured on the way,
    such as seconds: what they prove must be the same.
    """
    wrong = differing_files(job.upload, job.hub.target_files(repo, sha), gone)
    texts = [line for line in wrong if line.split()[0] in {CARD, *OWN_FILES}]
    if texts and proves_the_same(job.hub.target_text(repo, sha, REPORT), job.upload.document):
        wrong = [line for line in wrong if line not in texts]
    if wrong:
        raise Outside(
            f"The files that {repo} has at {sha[:8]} are not the ones that were verified: {', '.join(wrong[:3])}.",
            remedy="Do not use that commit; revert it on the Hub and run again.",
            code=ARRIVED_CHANGED,
        )
