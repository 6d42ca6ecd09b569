"""The bot's webhook on the Hub: made, shown and removed. One that sends to a server, or one that starts a Job by itself.

A webhook is ours by where it leads: to the server's address, or to a Job with our command. So one is never made twice.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from bot.dispatch.allow import Allowed
from bot.dispatch.backend_choice import BackendOptions
from bot.dispatch.by_hand import pairs
from bot.dispatch.command import arguments
from bot.dispatch.job_entry import ALLOW, EXPECTED, OPTIONS, TAGS
from bot.dispatch.records import Order, RunRequest
from bot.dispatch.store import Store
from bot.errors import MachineTooSmall, NotFound, Usage
from bot.hub.names import is_repo_id

if TYPE_CHECKING:
    from bot.hub import Hub
    from bot.hub.webhooks import Subscription

COMMAND = ("python", "-m", "bot.dispatch.job_entry")
FLAVOR, TIMEOUT = "cpu-upgrade", "6h"  # of the Jobs, which have to do for whatever adapter comes
LAST = 10  # deliveries that status shows
DAY = 86400.0  # seconds
PATH = "/webhook"  # where serve listens
Action = Literal["create", "update", "enable", "none", "delete"]


@dataclass(frozen=True, kw_only=True)
class JobTemplate:
    """The Job that a webhook without a server starts. `timeout`: seconds; `token`: what it writes with."""

    image: str
    flavor: str
    timeout: int
    namespace: str
    token: str = field(repr=False)
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WantedBot:
    """What is to be installed: `url` of a server, or a `job`. `secret` None: that of a webhook that is there already stays."""

    allowed: Allowed
    url: str | None = None
    job: JobTemplate | None = None
    secret: str | None = field(default=None, repr=False)
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Installation:
    """What was done, or (a dry run) would be. `webhook`: its id, "" before it is made. `secret`: a new one, to be shown once."""

    action: Action
    webhook: str
    url: str | None
    watched: tuple[tuple[str, str], ...]
    domains: tuple[str, ...]
    why: tuple[str, ...] = ()
    secret: str | None = field(default=None, repr=False)


def webhook_url(url: str) -> str:
    """The address of the server's webhook. Raises Usage for what is no address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise Usage(f"--url {url} is no address of a server.", remedy="Write for instance https://merge.example.com.")
    return url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}{PATH}"


def watched_by(hub: Hub, allowed: Allowed) -> tuple[tuple[str, str], ...]:
    """What a webhook has to watch for these patterns: (type, name) each. Raises Usage where the Hub has nothing that would do."""
    from bot.hub.webhooks import kind_of_account

    watched: dict[tuple[str, str], None] = {}
    for pattern in allowed.repos:
        owner, _, name = pattern.partition("/")
        if "*" in owner:
            raise Usage(
                f"No webhook can watch {pattern}: the Hub wants an owner's name.",
                remedy="Name the owners with --allow 'owner/*', each by itself.",
            )
        if "*" not in name and is_repo_id(pattern):
            watched["model", pattern] = None
            continue
        kind = kind_of_account(hub, owner)
        if kind is None:
            raise NotFound(
                f"There is no account {owner} on {hub.address}.", remedy="Check the owner's name in --allow."
            )
        watched[kind, owner] = None
    return tuple(watched)


def is_ours(webhook: Subscription, url: str | None = None) -> bool:
    """Whether it leads to a server of ours (`url`, where that is named), or to our Job."""
    if webhook.url is None:
        return url is None and webhook.command == COMMAND
    return webhook.url == url if url else urlsplit(webhook.url).path == PATH


def install(hub: Hub, wanted: WantedBot, *, dry_run: bool) -> Installation:
    """Make the webhook, or make the one there is as it should be; one that the Hub has suspended hears again."""
    from bot.hub.webhooks import (
        WantedSubscription,
        change_subscription,
        create_subscription,
        enable_subscription,
        list_subscriptions,
    )  # fmt: skip

    watched = watched_by(hub, wanted.allowed)
    # Each event of a watched repo starts a Job that costs something: none for discussions, where no Job listens.
    domains = ("repo",) if wanted.job else ("repo", "discussion")
    ours = [each for each in list_subscriptions(hub) if is_ours(each, wanted.url)]
    if wanted.job:
        ours = [each for each in ours if each.url is None]
    existing = ours[0] if ours else None
    secret = wanted.secret or (None if existing and not wanted.force else secrets.token_urlsafe(32))
    why = _differences(existing, wanted, watched, domains)
    action: Action = "create" if existing is None else "update" if why else "none"
    done = Installation(
        action=action, webhook=existing.id if existing else "", url=wanted.url, watched=watched, domains=domains, why=why,
        secret=secret if secret != wanted.secret else None,
    )  # fmt: skip
    if dry_run or action == "none":
        return replace(done, secret=None)
    if wanted.job and secret is None:
        secret = secrets.token_urlsafe(32)  # a changed Job takes its secrets anew, and this is among them
    target = WantedSubscription(
        url=wanted.url, watched=watched, domains=domains, secret=secret,
        job=_source(hub, wanted.job, wanted.allowed) if wanted.job else None,
        secrets={"HF_TOKEN": wanted.job.token, EXPECTED: secret or ""} if wanted.job else None,
    )  # fmt: skip
    if existing is None:
        return replace(done, webhook=create_subscription(hub, target).id, secret=None if wanted.job else done.secret)
    change_subscription(hub, existing.id, target)
    if existing.disabled:
        enable_subscription(hub, existing.id)
    return replace(done, secret=None if wanted.job else done.secret)


def _differences(
    existing: Subscription | None, wanted: WantedBot, watched: tuple[tuple[str, str], ...], domains: tuple[str, ...]
) -> tuple[str, ...]:
    """What is to be changed, in words; () where nothing is."""
    if existing is None:
        return ()
    job = wanted.job
    differences = {
        "it watches other repos": sorted(existing.watched) != sorted(watched),
        "it hears of other events": sorted(existing.domains) != sorted(domains),
        "the Hub or its owner has disabled it": existing.disabled,
        "its Job has other settings": job is not None
        and (existing.image, existing.flavor, _ours(existing.environment))
        != (job.image, job.flavor, job_environment(job, wanted.allowed)),
        "a secret was given": wanted.secret is not None and job is None,
        "--force": wanted.force,
    }
    return tuple(words for words, differs in differences.items() if differs)


def _ours(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name in (ALLOW, TAGS, OPTIONS)}


def job_environment(job: JobTemplate, allowed: Allowed) -> dict[str, str]:
    """What the Job is told of whom to obey."""
    settings = {ALLOW: allowed.repos, TAGS: allowed.tags, OPTIONS: job.options}
    return {name: "\n".join(values) for name, values in settings.items() if values}


def _source(hub: Hub, job: JobTemplate, allowed: Allowed) -> str:
    """A Job for the webhook to repeat; it ends at once, as it gets no event."""
    from bot.hub.jobs import JobOrder, start_job

    order = JobOrder(
        image=job.image, command=COMMAND, flavor=job.flavor, timeout=job.timeout, namespace=job.namespace,
        environment=job_environment(job, allowed), labels={"adapter-merge": "webhook", "name": "adapter-merge-webhook"},
    )  # fmt: skip
    return start_job(hub, order).id


def uninstall(hub: Hub, url: str | None, *, jobs: bool, dry_run: bool) -> list[Subscription]:
    """Remove our webhook. Raises NotFound where there is none, Usage where several are and none was named."""
    from bot.hub.webhooks import delete_subscription, list_subscriptions

    ours = [each for each in list_subscriptions(hub) if is_ours(each, url) and (each.url is None or not jobs)]
    if not ours:
        raise NotFound(
            "This account has no webhook of the bot.", remedy="Use the token of the account that installed it."
        )
    if len(ours) > 1 and url is None and not jobs:
        raise Usage(
            f"This account has several webhooks of the bot: {', '.join(each.url or 'a Job' for each in ours)}.",
            remedy="Name one with --url, or --jobs.",
        )
    for webhook in () if dry_run else ours:
        delete_subscription(hub, webhook.id)
    return ours


def our_webhooks(hub: Hub, url: str | None) -> list[Subscription]:
    """Those of the account, for status."""
    from bot.hub.webhooks import list_subscriptions

    return [each for each in list_subscriptions(hub) if is_ours(each, url)]


def kept_secret(file: Path, *, dry_run: bool) -> tuple[str | None, bool]:
    """(the secret in the file, whether it was made just now): an existing file's own, else a new one, for its owner only. Raises
    MachineTooSmall where that cannot be written, Usage for an empty file."""
    try:
        if file.exists():
            secret = file.read_text(encoding="utf-8").strip()
            if not secret:
                raise Usage(f"{file} is empty.", remedy="Remove it, or write the webhook's secret into it.")
            return secret, False
        if dry_run:
            return None, True
        secret = secrets.token_urlsafe(32)
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
            opened.write(f"{secret}\n")
        return secret, True
    except OSError as error:
        raise MachineTooSmall(
            f"The secret cannot be kept in {file}: {error.strerror}.", remedy="Name another file with --secret-file."
        ) from error


def to_be_added(backend: str, github_repo: str | None, patterns: Iterable[str], secret_file: Path | None) -> list[str]:
    """What is still to be done by hand, for a webhook that leads to a server: line by line."""
    allow = " ".join(f"--allow '{pattern}'" for pattern in patterns)
    secret = f"--secret-file {secret_file}" if secret_file else "with ADAPTER_MERGE_WEBHOOK_SECRET set to that secret"
    where = f" --backend {backend}" + (f" --github-repo {github_repo}" if github_repo else "")
    lines = [f"Run the server there: adapter-merge serve {allow}{where} {secret}"]
    if backend == "github":
        repo = github_repo or "OWNER/NAME"
        lines += [
            f"On GitHub, in {repo}:",
            "  .github/workflows/merge.yml   the workflow that merges (docs/hub-triggered.md has it)",
            f"  gh secret set HF_TOKEN --repo {repo}   a Hub token that may write to the merged repos",
            "For the server: GITHUB_TOKEN, a fine-grained token of that repo with Actions: read and write.",
        ]
    elif backend == "jobs":
        lines.append(
            "For the server: ADAPTER_MERGE_HUB_TOKEN, a Hub token that may start Jobs and write to the merged repos."
        )
    else:
        lines.append("For the server: ADAPTER_MERGE_HUB_TOKEN, a Hub token that may write to the merged repos.")
    return lines


@dataclass(frozen=True, kw_only=True)
class StateSeen:
    """What the state file says, in lines for a person. `counts`: how many requests are in which state."""

    counts: Mapping[str, int]
    deliveries: tuple[str, ...]
    stuck: tuple[str, ...]


def look_at_state(path: Path) -> StateSeen | None:
    """The last deliveries, and the requests that failed or do not get on; None where there is no state file."""
    if not path.exists():
        return None
    store = Store(path)
    try:
        deliveries, requests, counts = store.deliveries(LAST), store.requests(), store.counts()
        now = store.clock()
    finally:
        store.close()
    return StateSeen(
        counts=counts,
        deliveries=tuple(f"{_when(each.received)} {each.event} {each.repo}: {each.verdict}" for each in deliveries),
        stuck=tuple(_stuck(request, now) for request in requests if is_stuck(request, now)),
    )


def is_stuck(request: RunRequest, now: float) -> bool:
    """Whether it was given up, was tried more than once, or has not changed for a day."""
    if request.state in ("done", "dropped"):
        return False
    return request.state == "failed" or request.attempts > 1 or now - request.changed > DAY


def _stuck(request: RunRequest, now: float) -> str:
    tag = f"@{request.order.revision}" if request.order.revision else ""
    hours = (now - request.changed) / 3600
    words = " ".join(filter(None, (request.reason, request.remedy))) or f"nothing has changed for {hours:.0f} hours."
    return f"{request.order.adapter}{tag} is {request.state} (request {request.id}): {words}"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def template(hub: Hub, options: BackendOptions, wanted: Iterable[str], environment: Mapping[str, str]) -> JobTemplate:
    """The Job of a webhook without a server, from the options of the backend jobs. Raises Usage, and Forbidden for want of rights."""
    from bot.dispatch.backends.jobs import TOKEN, image_on, seconds_in
    from bot.hub import Hub
    from bot.hub.jobs import job_machines, require_jobs

    token = environment.get(TOKEN, "")
    if not token:
        raise Usage(
            f"The Jobs need a token: {TOKEN} is not set.",
            remedy="Set it to a token that may write to the merged repos; each Job gets it.",
        )
    wanted = tuple(wanted)
    probe = Order(key="", adapter="owner/name", revision=None, sha=None, origin="webhook", options=pairs(wanted))
    arguments(probe)  # raises Usage for an option that is none
    flavor = options.flavor or FLAVOR
    known = {machine.flavor: machine for machine in job_machines(hub)}
    if flavor not in known:
        raise Usage(f"--flavor {flavor} is no machine for Jobs.", remedy=f"There are {', '.join(known)}.")
    assert Hub(endpoint=hub.endpoint, write_token=token).whoami()  # raises Forbidden for a token that is none
    return JobTemplate(
        image=options.image or image_on(known[flavor]), flavor=flavor, timeout=seconds_in(options.timeout or TIMEOUT),
        namespace=require_jobs(hub, options.namespace), token=token, options=wanted,
    )  # fmt: skip
