"""Where a merge is published: the repo by its name, what is asked for beside the merge itself, and the call of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bot.errors import Usage
from bot.events import Emit
from bot.proof import named_inputs, tag_of
from bot.publish import PublishSettings, SentBefore, publish
from bot.pull import base_of
from bot.records import Plan, Publication, Request, Sources
from bot.report_document import Document

if TYPE_CHECKING:
    from bot.hub import Hub


def publish_target(request: Request) -> str | None:
    """The repo to publish to; None where nothing is published."""
    return None if request.publish == "none" else target_of(request)


def target_of(request: Request) -> str:
    """The repo to publish to: as asked, or `<adapter>-merged`, the folder's name before it where the adapter lies deeper in its
    repo, `-nf4` and so on behind it. Raises Usage when there is no telling."""
    if request.target:
        return request.target
    if request.more:
        raise Usage("Several adapters in one model give it no name.", remedy="Name the target with --to owner/name.")
    if request.adapter.as_repo is None:
        raise Usage(
            "An adapter in a folder has no repo name to add -merged to.", remedy="Name the target with --to owner/name."
        )
    form = request.options.quantize
    return f"{request.adapter.as_repo}-merged" + ("" if form in ("auto", "none") else f"-{form}")


def input_repos(request: Request, sources: Sources, plan: Plan) -> list[tuple[str, str | None]]:
    """(base or adapter, repo) of every input, and the base as it was asked for: another, where its 16-bit parent is merged into."""
    base, *adapters = named_inputs(plan).repos
    return [base, ("base", (request.base or base_of(sources.adapter)).repo), *adapters]


def publish_settings(request: Request, sources: Sources, plan: Plan) -> PublishSettings:
    """What is asked for beside the merge itself."""
    repos = tuple(named_inputs(plan).repos)
    return PublishSettings(fingerprint=plan.fingerprint, repos=repos, private=request.private, tag=tag_of(sources))


def publish_made(
    folder: Path, document: Document, request: Request, hub: Hub, emit: Emit, before: SentBefore | None = None
) -> Publication:
    """Publish a proven folder to the request's target. `document`: its verification.json; `before`: what the Hub has of it."""
    return publish(
        folder,
        document,
        target=target_of(request),
        how=request.publish,
        private=request.private,
        force=request.force,
        tag=document.merge.tag,
        hub=hub,
        emit=emit,
        dry_run=request.dry_run,
        before=before,
    )
