"""The two ways to deliver a parcel: one commit on main, or one commit on a pull request's own ref."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bot.errors import AdapterMergeError, Moved, Outside
from bot.events import Emit, Note, beating
from bot.events import Moved as BytesMoved
from bot.publish import words
from bot.publish.parcel import CARD, REPORT, Parcel, proves_the_same, require_proven, unlike
from bot.publish.stale import stale
from bot.publish.standing import already, held
from bot.records import Publication

if TYPE_CHECKING:
    from bot.hub import Blob, Change, Hub, Pull, Target, Upload

STAGE = "publish"
ARRIVED_CHANGED = "arrived-changed"
ROUNDS = 5  # times that a commit is made anew on what others have put beside it meanwhile
RECENT = 10  # commits on top of the one that was looked at, among which ours may be


@dataclass(frozen=True, kw_only=True)
class Job:
    """A parcel on its way. `how`: as it was asked for, auto, pr or push."""

    parcel: Parcel
    tag: str | None
    how: str
    force: bool
    hub: Hub
    emit: Emit


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What the commit is to stand on: a ref, the commit that it had when it was looked at, and the files there."""

    repo: str
    ref: str
    sha: str
    files: dict[str, Blob]


def push(job: Job, target: Target) -> Publication:
    """One commit on main, whose checksums are then read back. Raises Moved where main changed in what is ours."""
    additions = _upload(job, target.repo, "main", pull_request=False)
    found = meanwhile(job, target.repo)
    if found is not None:
        return found
    sha, _ = _land(job, Ground(repo=target.repo, ref="main", sha=target.sha, files=target.files), additions)
    if job.how == "push" and not target.empty:
        _supersede(job, target.repo, sha)
    url = f"{job.hub.address}/{target.repo}/tree/{sha}"
    return Publication(status="published", how="push", repo=target.repo, revision=sha, url=url)


def propose(job: Job, target: Target, pull: Pull | None) -> Publication:
    """One commit on a pull request: `pull`, where ours is still open, else a new draft, opened when it is proven."""
    if pull is not None:
        return _update(job, target, pull)
    additions = _upload(job, target.repo, "main", pull_request=True)
    found = meanwhile(job, target.repo)
    if found is not None:
        return found
    ground = _later(job, Ground(repo=target.repo, ref="main", sha=target.sha, files=target.files))
    text = _text(job, target, stale(ground.files, job.parcel.files))
    draft = job.hub.open_draft(target.repo, words.title(job.parcel.document), text)
    try:
        found = _raced(job, target.repo, draft)
        if found is not None:
            return found
        sha, _ = _land(job, replace(ground, ref=draft.ref), additions)
    except AdapterMergeError as error:
        _abandon(job, target.repo, draft, error.what)
        raise
    job.hub.set_status(target.repo, draft.num, "open")
    return _proposed(target.repo, draft, sha)


def _raced(job: Job, repo: str, draft: Pull) -> Publication | None:
    """Another run of ours may have opened its draft of the same merge a moment earlier: the lower number stays."""
    for other in job.hub.open_pulls(repo):
        if words.mark_in(other.text) == job.parcel.fingerprint and other.num < draft.num:
            _abandon(job, repo, draft, f"pull request {other.num} already proposes this merge.")
            why = f"Pull request {other.num} already proposes this merge."
            return replace(_proposed(repo, other, None), status="unchanged", why=why)
    return None


def _update(job: Job, target: Target, pull: Pull) -> Publication:
    """A new commit on our open pull request (or on a draft that an earlier run left), told in a comment."""
    hub, repo = job.hub, target.repo
    head = hub.head(repo, pull.ref)
    ground = Ground(repo=repo, ref=pull.ref, sha=head, files=hub.target_files(repo, head))
    additions = _upload(job, repo, pull.ref, pull_request=False)
    found = meanwhile(job, repo)
    if found is not None:
        return found
    sha, gone = _land(job, ground, additions)
    if pull.status == "open":
        hub.comment(repo, pull.num, words.updated_text(job.parcel.document))
    hub.rename(repo, pull, words.title(job.parcel.document))
    hub.rewrite(
        repo, pull, _text(job, target, gone)
    )  # with its mark, by which the next run knows that all this is done
    if pull.status == "draft":
        hub.set_status(repo, pull.num, "open")
    return _proposed(repo, pull, sha)


def _supersede(job: Job, repo: str, sha: str) -> None:
    """Say what becomes of our own pull requests now that main was pushed to: the one of this merge is done with."""
    from bot.hub import NoDiscussions

    try:
        for pull in job.hub.open_pulls(repo):
            mark = words.mark_in(pull.text)
            if mark == job.parcel.fingerprint:
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


def _upload(job: Job, repo: str, revision: str, *, pull_request: bool) -> tuple[Upload, ...]:
    total, done = job.parcel.size, 0

    def sent(amount: int) -> None:
        nonlocal done
        done += amount
        told(BytesMoved(stage=STAGE, done=done, total=total))

    with beating(job.emit, STAGE) as told:
        sent(0)
        uploads = job.hub.upload(repo, revision, job.parcel.files, pull_request=pull_request, sent=sent)
    require_proven(job.parcel, {one.path_in_repo: one.upload_info.sha256.hex() for one in uploads})
    return uploads


def meanwhile(job: Job, repo: str) -> Publication | None:
    """The last look before the commit: another run may have been faster."""
    return None if job.force else already(job.parcel.fingerprint, repo, job.hub, how=job.how)


def _land(job: Job, ground: Ground, additions: tuple[Upload, ...]) -> tuple[str, tuple[str, ...]]:
    """Commit and read back: the commit, and the files that it deleted. Raises Moved where the ground changed in what is ours,
    or goes on changing."""
    for rounds in range(ROUNDS, 0, -1):
        ground = _later(job, ground)
        gone = stale(ground.files, job.parcel.files)
        try:
            sha = _commit(job, _change(job, ground, gone), additions)
        except Moved:
            if rounds == 1:
                raise
            continue
        _require_arrived(job, ground.repo, sha, gone)
        return sha, gone
    raise AssertionError("unreachable")


def _later(job: Job, ground: Ground) -> Ground:
    """The ground as it is now. Raises Moved where what came since touches a file that our commit adds, changes or deletes, or
    would have it delete another: then it is not what was looked at."""
    sha = job.hub.head(ground.repo, ground.ref)
    if sha == ground.sha:
        return ground
    now = replace(ground, sha=sha, files=job.hub.target_files(ground.repo, sha))
    before, after = (stale(one.files, job.parcel.files) for one in (ground, now))
    # .gitattributes decides which files are large, as they were when ours were sent.
    ours = {*job.parcel.files, *before, ".gitattributes"}
    names = {*ground.files, *now.files}
    if before != after or any(ground.files.get(name) != now.files.get(name) for name in names & ours):
        raise Moved(
            f"{ground.repo} changed while this run was working, so nothing was committed to it.",
            remedy="Run it again: what was uploaded is kept.",
        )
    text = (
        f"{ground.repo} changed while this run was working, in nothing that this merge touches; it goes on from there."
    )
    job.emit(Note(text=text))
    return now


def _change(job: Job, ground: Ground, delete: tuple[str, ...]) -> Change:
    document = job.parcel.document
    text = words.commit_text(document, job.parcel.fingerprint)
    from bot.hub import Change

    return Change(
        repo=ground.repo, revision=ground.ref, parent=ground.sha, title=words.title(document), text=text, delete=delete
    )


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
            code=ARRIVED_CHANGED,
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
