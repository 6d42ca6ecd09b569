"""publish: a proven folder becomes one commit on the target, or one pull request; twice asked, still one.

Everything is uploaded before anything is visible; the commit is the last step, on the parent that was looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bot.errors import AdapterMergeError, Moved, Usage
from bot.events import Emit, Note, Stage
from bot.hub import is_repo_id
from bot.publish import visibility
from bot.publish.commit import ARRIVED_CHANGED, PublishJob
from bot.publish.deliver import propose, published_meanwhile, push
from bot.publish.existing import find_existing, pull_to_update
from bot.publish.repo_settings import PublishSettings, apply_settings, apply_visibility, carry_tag, create_target
from bot.publish.stale_files import outdated_weights, stale_files
from bot.publish.upload import SentBefore as SentBefore
from bot.publish.upload import plain_files as plain_files
from bot.publish.upload import verified_upload
from bot.publish.visibility import Visibility, of_sources, require_fit
from bot.records import Publication, Sources
from bot.report_document import Document

if TYPE_CHECKING:
    from bot.hub import Hub, Target

__all__ = [
    "ExpectedResult", "PublishSettings", "SentBefore", "apply_settings", "find_existing", "of_sources", "open_target",
    "publish", "require_fit",
    "require_not_an_input", "require_reach", "warn_of_reach",
]  # fmt: skip

How = Literal["auto", "pr", "push", "none"]
Private = Literal["auto", "true", "false"]


def publish(
    folder: Path,
    document: Document,
    *,
    target: str,
    how: How,
    private: Literal["auto", "true", "false"],
    force: bool,
    tag: str | None,
    hub: Hub,
    emit: Emit,
    dry_run: bool = False,
    before: SentBefore | None = None,
) -> Publication:
    """Publish a folder that `merge` finished. `before`: what of it the Hub has already.

    Raises NotVerified, Refused, Forbidden, Moved; see the module's rule."""
    if how == "none":
        return Publication(status="none", how="none", why="Publishing was not asked for.")
    if not is_repo_id(target) or "/" not in target:
        raise Usage(f"{target!r} is not a Hub repo.", remedy="Name the target as owner/name.")
    emit(Stage(name="publish", title=f"Publishing to {target}"))
    hub.tell(emit)
    upload = verified_upload(folder, document, before)
    repos = tuple(document.inputs.repos)
    require_not_an_input(target, repos, hub)
    settings = PublishSettings(fingerprint=upload.fingerprint, repos=repos, private=private, tag=tag)
    existing = None if force else find_existing(upload.fingerprint, target, hub, emit, how)
    if existing is not None:
        return existing if dry_run else apply_settings(existing, settings, hub, emit)
    now = hub.target(target)
    seen = visibility.decide(repos, private, hub, emit)
    require_fit(seen, private, now)
    pushing = how == "push" or (how == "auto" and (now is None or now.empty))
    job = PublishJob(upload=upload, settings=settings, how=how, force=force, hub=hub, emit=emit)
    if dry_run:
        warn_of_reach(target, how, hub, emit)
        return _dry_run(job, target, now, seen, pushing)
    return _deliver(job, target, now, seen, pushing)


@dataclass(frozen=True, kw_only=True)
class ExpectedResult:
    """What is known of the result before it is made: its card's metadata, the visibility it will have, and the one asked for."""

    card: str
    seen: Visibility
    private: Private

    @classmethod
    def of(cls, sources: Sources, card: str, private: Private, emit: Emit) -> ExpectedResult:
        """From what the Hub said of the inputs when they were pinned."""
        return cls(card=card, seen=of_sources(sources, private, emit), private=private)


def open_target(
    target: str, how: How, private: Private, repos: Iterable[tuple[str, str | None]], hub: Hub, emit: Emit
) -> bool:
    """Have the target there, so that something can be sent to it before anything is visible: a new one is made, empty, with its
    final visibility. Returns whether what is sent will become a pull request."""
    now = hub.target(target)
    if now is None:
        now = create_target(target, visibility.decide(tuple(repos), private, hub, emit), hub, emit)
    return not (how == "push" or (how == "auto" and now.empty))


def require_reach(target: str, how: How, hub: Hub, result: ExpectedResult | None = None) -> None:
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


def warn_of_reach(target: str, how: How, hub: Hub, emit: Emit, result: ExpectedResult | None = None) -> None:
    """For a dry run: warn of what would stop the publication."""
    try:
        require_reach(target, how, hub, result)
    except AdapterMergeError as error:
        emit(Note(text=f"Publishing would fail: {error}", level="warning"))


def _deliver(job: PublishJob, repo: str, now: Target | None, seen: Visibility, pushing: bool) -> Publication:
    _require_reach(job.hub, now, pushing)
    job.hub.check_card(job.upload.files["README.md"].read_text())
    try:
        target = create_target(repo, seen, job.hub, job.emit) if now is None else now
    except Moved:
        existing = published_meanwhile(job, repo)
        if existing is None:
            raise
        return apply_settings(existing, job.settings, job.hub, job.emit)  # a faster run of the same merge
    try:
        if target.empty:
            apply_visibility(target, seen, job.settings.private, job.hub, job.emit)
        done = _finish(job, target, pushing)
        if pushing and job.settings.private == "false" and target.private and not target.empty:
            return apply_settings(done, job.settings, job.hub, job.emit)  # as the next run would
        return carry_tag(done, job.settings.tag, job.upload.fingerprint, job.hub, job.emit)
    except AdapterMergeError as error:
        if now is None:
            _report_leftover_repo(job, repo, error)
        raise


def _report_leftover_repo(job: PublishJob, repo: str, error: AdapterMergeError) -> None:
    """Say that a new repo is left behind; make it private where it holds other bytes than those that were proven."""
    if error.code == ARRIVED_CHANGED:
        with suppress(AdapterMergeError):
            job.hub.set_private(repo, True)
    error.remedy += f" The new repo {repo} is left; look at it, then delete it or run again."


def _finish(job: PublishJob, target: Target, pushing: bool) -> Publication:
    left = outdated_weights(target.files, job.upload.files)
    if left:
        text = f"{target.repo} keeps {len(left)} weight file(s) that this merge did not make, e.g. {left[0]}."
        job.emit(Note(text=text, level="warning"))
    if pushing:
        return push(job, target)
    return propose(job, target, pull_to_update(job.upload.fingerprint, target, job.hub))


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


def _dry_run(job: PublishJob, repo: str, now: Target | None, seen: Visibility, pushing: bool) -> Publication:
    gone = stale_files(now.files, job.upload.files) if now else ()
    steps = [f"create {repo} ({'private' if seen.private else 'public'})"] if now is None else []
    upload = f"{len(job.upload.files)} files, {job.upload.size:,} bytes"
    steps.append(f"commit {upload} to main" if pushing else f"open a pull request with {upload}")
    if gone:
        steps.append(f"remove {', '.join(gone)}")
    if pushing and now and now.private and job.settings.private == "false":
        steps.append("show it to everyone")
    if job.settings.tag and pushing:
        steps.append(f"tag it {job.settings.tag}")
    return Publication(
        status="dry-run", how="push" if pushing else "pr", repo=repo, why=f"It would {', '.join(steps)}."
    )


def require_not_an_input(target: str, repos: Iterable[tuple[str, str | None]], hub: Hub) -> None:
    """Raises Usage where the target is one of the inputs, however it is spelled and whatever it was called before.

    `repos`: (base or adapter, repo) of every input; None for a folder.
    """
    named = [(role, repo) for role, repo in repos if repo is not None]
    today = hub.target_name(target)
    names = {target.casefold(), (today or target).casefold()}
    for role, repo in named:
        # A repo that does not exist can be no input, so that their new names matter only where the target exists.
        if repo.casefold() in names or (today is not None and hub.current_name(repo, sure=True).casefold() in names):
            what = repo if repo.casefold() == target.casefold() else f"{repo}, which {target} is another name of"
            raise Usage(
                f"The target is the {role} of this merge ({what}), whose files the result would replace.",
                remedy="Name another target: a repo of its own for the merged model.",
            )
