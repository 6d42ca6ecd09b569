"""The account's webhooks: whom the Hub tells of what happens in repos.

Source: https://huggingface.co/docs/hub/webhooks
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bot.errors import NotFound
from bot.hub.errors import Unserved

if TYPE_CHECKING:
    from bot.hub.client import Hub

Domain = str  # "repo" | "discussion"


@dataclass(frozen=True, kw_only=True)
class Subscription:
    """A webhook as the Hub has it: it sends to `url`, or (None) starts a Job with this command and environment in this image.
    `watched`: (type, name) of users, organizations and repos. `disabled`: switched off, by its owner or by the Hub."""

    id: str
    url: str | None
    watched: tuple[tuple[str, str], ...]
    domains: tuple[Domain, ...]
    disabled: bool
    image: str = ""
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    flavor: str = ""


@dataclass(frozen=True, kw_only=True)
class WantedSubscription:
    """What a webhook is to be: `url` or `job` (the id of the source Job). `secret`: sent along with each event; None: as it is.
    `secrets`: what its Jobs get beside it."""

    url: str | None = None
    job: str | None = None
    watched: tuple[tuple[str, str], ...]
    domains: tuple[Domain, ...]
    secret: str | None = field(default=None, repr=False)
    secrets: Mapping[str, str] | None = field(default=None, repr=False)


def list_subscriptions(hub: Hub) -> list[Subscription]:
    """All webhooks of the token's account."""
    where = hub.where_writing("list the account's webhooks")
    return hub.patiently(where, lambda: [_subscription(info) for info in hub.outputs.list_webhooks()])


def create_subscription(hub: Hub, wanted: WantedSubscription) -> Subscription:
    """A new one. Where an answer is lost, the one that was made meanwhile is taken."""
    where = hub.where_writing("create a webhook")
    before = {each.id for each in list_subscriptions(hub)}

    def create() -> Subscription:
        return _subscription(
            hub.outputs.create_webhook(
                url=wanted.url, job_id=wanted.job, watched=_watched(wanted), domains=_domains(wanted.domains),
                secret=wanted.secret, secrets=_secrets(wanted),
            )
        )  # fmt: skip

    def landed() -> Subscription | None:
        new = (each for each in list_subscriptions(hub) if each.id not in before and each.watched == wanted.watched)
        return next((each for each in new if each.url == wanted.url), None)

    return hub.patiently(where, create, landed)


def change_subscription(hub: Hub, webhook: str, wanted: WantedSubscription) -> Subscription:
    """Make an existing one so."""
    where = hub.where_writing(f"change the webhook {webhook}")

    def change() -> Subscription:
        return _subscription(
            hub.outputs.update_webhook(
                webhook, url=wanted.url, job_id=wanted.job, watched=_watched(wanted), domains=_domains(wanted.domains),
                secret=wanted.secret, secrets=_secrets(wanted),
            )
        )  # fmt: skip

    return hub.patiently(where, change)


def enable_subscription(hub: Hub, webhook: str) -> Subscription:
    """Let it hear again."""
    where = hub.where_writing(f"enable the webhook {webhook}")
    return hub.patiently(where, lambda: _subscription(hub.outputs.enable_webhook(webhook)))


def delete_subscription(hub: Hub, webhook: str) -> None:
    """Remove it; harmless where that is done already."""
    where = hub.where_writing(f"delete the webhook {webhook}")

    def landed() -> bool | None:
        return None if any(each.id == webhook for each in list_subscriptions(hub)) else True

    def delete() -> bool:
        hub.outputs.delete_webhook(webhook)
        return True

    hub.patiently(where, delete, landed)


def _watched(wanted: WantedSubscription) -> list[Any]:
    return [{"type": kind, "name": name} for kind, name in wanted.watched]


def _domains(domains: Sequence[Domain]) -> list[Any]:
    return list(domains)


def _secrets(wanted: WantedSubscription) -> dict[str, str] | None:
    return dict(wanted.secrets) if wanted.secrets is not None else None


def _subscription(info: Any) -> Subscription:
    job = info.job
    return Subscription(
        id=str(info.id),
        url=str(info.url) if info.url else None,
        watched=tuple((str(item.type), str(item.name)) for item in info.watched),
        domains=tuple(map(str, info.domains)),
        disabled=bool(info.disabled),
        image=str(job.docker_image or "") if job else "",
        command=tuple(map(str, job.command or ())) if job else (),
        environment={str(name): str(value) for name, value in (job.environment or {}).items()} if job else {},
        flavor=str(getattr(job.flavor, "value", job.flavor) or "") if job else "",
    )


def kind_of_account(hub: Hub, name: str) -> str | None:
    """`user` or `org`, as a webhook names what it watches; None where there is no such account."""
    where = hub.where_writing(f"look up the account {name}")
    for kind, ask in (("org", hub.outputs.get_organization_overview), ("user", hub.outputs.get_user_overview)):
        with suppress(Unserved, NotFound):
            hub.patiently(where, functools.partial(ask, name))
            return kind
    return None
