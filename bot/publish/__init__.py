"""publish: a proven folder becomes one commit on the target, or one pull request; twice asked, still one.

Everything is uploaded before anything is visible; the commit is the last step, on the parent that was looked at.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bot.errors import AdapterMergeError, Moved, Usage
from bot.events import Emit, Note, Stage
from bot.hub import is_repo_id
from bot.publish import visibility
from bot.publish.commit import ARRIVED_CHANGED, Job
from bot.publish.deliver import meanwhile, propose, push
from bot.publish.existing import already, pull_to_update
from bot.publish.never_an_input import require_apart
from bot.publish.repo_settings import Asked, carry_tag, make_room, put_right, settle
from bot.publish.stale_files import outdated, stale
from bot.publish.upload import pack
from bot.publish.upload import plain_files as plain_files
from bot.publish.visibility import of_sources, require_fit
from bot.records import Json, Publication, Sources

if TYPE_CHECKING:
    from bot.hub import Hub, Target

__all__ = [
    "Asked", "Foreseen", "already", "of_sources", "publish", "put_right", "require_apart", "require_fit", "require_reach",
    "warn_of_reach",
]  # fmt: skip

How = Literal["auto", "pr", "push", "none"]
Private = Literal["auto", "true", "false"]


def publish(
    folder: Path,
    document: Json,
    *,
    target: str,
    how: How,
    private: Literal["auto", "true", "false"],
    force: bool,
    tag: str | None,
    hub: Hub,
    emit: Emit,
    dry_run: bool = False,
) -> Publication:
    """Publish a folder that `merge` finished. Raises NotVerified, Refused, Forbidden, Moved; see the module's rule."""
    if how == "none":
        return Publication(status="none", how="none", why="Publishing was not asked for.")
    if not is_repo_id(target) or "/" not in target:
        raise Usage(f"{target!r} is not a Hub repo.", remedy="Name the target as owner/name.")
    emit(Stage(name="publish", title=f"Publishing to {target}"))
    hub.tell(emit)
    parcel = pack(folder, document)
    inputs = document.get("inputs") or {}
    require_apart(target, inputs, hub)
    asked = Asked(fingerprint=parcel.fingerprint, inputs=inputs, private=private, tag=tag)
    found = None if force else already(parcel.fingerprint, target, hub, emit, how)
    if found is not None:
        return found if dry_run else put_right(found, asked, hub, emit)
    now = hub.target(target)
    seen = visibility.decide(document, private, hub, emit)
    require_fit(seen, private, now)
    pushing = how == "push" or (how == "auto" and (now is None or now.empty))
    job = Job(parcel=parcel, tag=tag, how=how, force=force, hub=hub, emit=emit)
    if dry_run:
        warn_of_reach(target, how, hub, emit)
        return _dry_run(job, target, now, seen, asked, pushing)
    return _deliver(job, target, now, seen, asked, pushing)


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """What is known of the result before it is made: its card's metadata, and how it is to be `seen` and was asked to be."""

    card: str
    seen: visibility.Visibility
    private: Private

    @classmethod
    def of(cls, sources: Sources, card: str, private: Private, emit: Emit) -> Foreseen:
        """By what was said of the inputs when they were pinned."""
        return cls(card=card, seen=of_sources(sources, private, emit), private=private)


def require_reach(target: str, how: How, hub: Hub, result: Foreseen | None = None) -> None:
    """Raise now where publishing would fail after hours of work: Forbidden or NotFound for want of rights; and, where the
    `result` is foreseen, Refused where an existing repo shows what was to stay hidden, and Outside where the Hub would refuse
    its card's metadata."""
    now = hub.target(target)
    if result is not None:
        require_fit(result.seen, result.private, now)
    if now is None:
        hub.require_create(target)
    else:
        _require_reach(hub, now, how == "push" or (how == "auto" and now.empty))
    if result is not None:
        hub.check_card(result.card)


def warn_of_reach(target: str, how: How, hub: Hub, emit: Emit, result: Foreseen | None = None) -> None:
    """Of a dry run: say what would stand in the way, and nothing more."""
    try:
        require_reach(target, how, hub, result)
    except AdapterMergeError as error:
        emit(Note(text=f"Publishing would fail: {error}", level="warning"))


def _deliver(
    job: Job, repo: str, now: Target | None, seen: visibility.Visibility, asked: Asked, pushing: bool
) -> Publication:
    _require_reach(job.hub, now, pushing)
    job.hub.check_card(job.parcel.files["README.md"].read_text())
    try:
        target = make_room(repo, seen, job.hub, job.emit) if now is None else now
    except Moved:
        found = meanwhile(job, repo)
        if found is None:
            raise
        return put_right(found, asked, job.hub, job.emit)  # a faster run of the same merge
    try:
        if target.empty:
            settle(target, seen, asked.private, job.hub, job.emit)
        done = _finish(job, target, pushing)
        if pushing and asked.private == "false" and target.private and not target.empty:
            return put_right(done, asked, job.hub, job.emit)  # as the next run would
        return carry_tag(done, job.tag, asked.fingerprint, job.hub, job.emit)
    except AdapterMergeError as error:
        if now is None:
            _leave(job, repo, error)
        raise


def _leave(job: Job, repo: str, error: AdapterMergeError) -> None:
    """Say that a new repo is left; where other bytes are in it than those that were proven, out of everybody's sight."""
    if error.code == ARRIVED_CHANGED:
        with suppress(AdapterMergeError):
            job.hub.set_private(repo, True)
    error.remedy += f" The new repo {repo} is left; look at it, then delete it or run again."


def _finish(job: Job, target: Target, pushing: bool) -> Publication:
    left = outdated(target.files, job.parcel.files)
    if left:
        text = f"{target.repo} keeps {len(left)} weight file(s) that this merge did not make, e.g. {left[0]}."
        job.emit(Note(text=text, level="warning"))
    if pushing:
        return push(job, target)
    return propose(job, target, pull_to_update(job.parcel.fingerprint, target, job.hub))


def _require_reach(hub: Hub, now: Target | None, pushing: bool) -> None:
    """Fail before the upload, not after it."""
    if now is None:
        if not pushing:
            hub.require_known()
        return
    if pushing:
        hub.require_write(now.repo)
        return
    hub.require_pulls(now.repo)


def _dry_run(
    job: Job, repo: str, now: Target | None, seen: visibility.Visibility, asked: Asked, pushing: bool
) -> Publication:
    gone = stale(now.files, job.parcel.files) if now else ()
    steps = [f"create {repo} ({'private' if seen.private else 'public'})"] if now is None else []
    upload = f"{len(job.parcel.files)} files, {job.parcel.size:,} bytes"
    steps.append(f"commit {upload} to main" if pushing else f"open a pull request with {upload}")
    if gone:
        steps.append(f"remove {', '.join(gone)}")
    if pushing and now and now.private and asked.private == "false":
        steps.append("show it to everyone")
    if job.tag and pushing:
        steps.append(f"tag it {job.tag}")
    return Publication(
        status="dry-run", how="push" if pushing else "pr", repo=repo, why=f"It would {', '.join(steps)}."
    )
