"""What a token may do, as far as the Hub tells whose it is: its role, the permissions of a fine-grained one, its owner's roles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bot.errors import Forbidden
from bot.hub.sentences import TOKENS

WRITE, DISCUSS = "repo.write", "discussion.write"  # as the Hub names its permissions
POWERLESS = ("read", "no_access")  # roles in an organization that may not create or change its repos
# What a fine-grained token's permissions may be on, as far as it is known which models that reaches.
ENTITIES = ("user", "org", "model", "dataset", "space")


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What a fine-grained token may do to `on`: a repo, all repos of an account, or (empty) anything on the Hub."""

    on: str
    permissions: tuple[str, ...]

    def reaches(self, *names: str) -> bool:
        """Whether it is about one of these repos or accounts."""
        return not self.on or self.on.casefold() in {name.casefold() for name in names}


@dataclass(frozen=True, kw_only=True)
class Who:
    """Whom a token belongs to, and what it may do; `role` is read, write, fineGrained …

    `grants`: None where the token is not limited to any, or to something that may hold any repo, such as a resource group: then
    the Hub alone knows. `roles`: the account's role in each organization.
    """

    name: str
    role: str
    orgs: tuple[str, ...]
    scopes: tuple[str, ...]  # what a fine-grained token is limited to, e.g. "acme/model: repo.write"
    grants: tuple[Grant, ...] | None = None
    roles: Mapping[str, str] = field(default_factory=dict)

    def lacks(self, permissions: tuple[str, ...], *names: str) -> bool:
        """Whether the token is fine-grained, and has none of these permissions on these repos or accounts."""
        reaching = [grant for grant in self.grants or () if grant.reaches(*names)]
        return self.grants is not None and not any(
            permission in grant.permissions for grant in reaching for permission in permissions
        )

    def is_in(self, owner: str) -> bool:
        """Whether this is the account itself, or an organization that it is in. One that the token may write to counts, though the
        Hub does not list it; for an application's token, which is no access token, the Hub need not list any."""
        named = {name.casefold() for name in (self.name, *self.orgs)}
        granted = any(
            WRITE in grant.permissions and grant.on.casefold() == owner.casefold() for grant in self.grants or ()
        )
        return owner.casefold() in named or granted or (self.role == "unknown" and not self.orgs)

    @property
    def held(self) -> str:
        """What a fine-grained token has, in words."""
        return "; ".join(self.scopes) or "no permission on any repo"


def who_of(answer: dict[str, Any]) -> Who:
    """The Hub's answer, which `CheckedApi` has looked at. Raises ValueError, TypeError and so on for another shape."""
    token = (answer.get("auth") or {}).get("accessToken") or {}
    fine = token.get("fineGrained")
    orgs = answer.get("orgs") or []
    grants: tuple[Grant, ...] = ()
    judged = isinstance(fine, dict)
    if isinstance(fine, dict):
        entries = [(entry.get("entity") or {}, entry.get("permissions")) for entry in fine.get("scoped") or []]
        scoped = [(entity.get("name"), may) for entity, may in entries]
        everywhere = [("", fine["global"])] if fine.get("global") else []
        grants = tuple(
            Grant(on=str(name), permissions=tuple(map(str, may or ()))) for name, may in (*scoped, *everywhere)
        )
        judged = all(entity.get("type") in ENTITIES for entity, _ in entries)
    return Who(
        name=answer["name"],
        role=str(token.get("role", "unknown")),
        orgs=tuple(org["name"] for org in orgs),
        scopes=tuple(f"{grant.on or 'everywhere'}: {', '.join(grant.permissions)}" for grant in grants),
        grants=grants if judged else None,
        roles={org["name"]: str(org.get("roleInOrg")) for org in orgs if not org.get("resourceGroups")},
    )


def _role_in(who: Who, owner: str) -> str | None:
    return next((role for org, role in who.roles.items() if org.casefold() == owner.casefold()), None)


def require_create(who: Who, repo: str) -> None:
    """Raise Forbidden where the token's owner cannot have a repo of this name, or the token cannot create one."""
    owner = repo.partition("/")[0]
    if not who.is_in(owner):
        raise Forbidden(
            f"{repo} does not exist, and the token's owner {who.name} is not in {owner}.",
            remedy=f"Name a target of {who.name} or of an organization that this account is in.",
        )
    if who.role == "read":
        raise Forbidden(
            f"{repo} does not exist, and the token can only read.", remedy="Use a token of role write as HF_TOKEN."
        )
    if who.lacks((WRITE,), owner):
        raise Forbidden(
            f"{repo} does not exist, and this fine-grained token may not create it: it lacks {WRITE} on {owner} "
            f"(it has {who.held}).",
            remedy=f"Let the token write to all repos of {owner} ({TOKENS}); or create {repo} by hand, and let it write to that.",
        )
    role = _role_in(who, owner)
    if role in POWERLESS:
        raise Forbidden(
            f"{repo} does not exist, and {who.name}'s role in {owner} is {role}, which may not create a repo.",
            remedy=f"Ask an administrator of {owner} for the role contributor or write, or name another target.",
        )


def require_write(who: Who, repo: str) -> None:
    """Raise Forbidden where a fine-grained token cannot write to this repo, whatever its owner may."""
    if who.lacks((WRITE,), repo, repo.partition("/")[0]):
        raise Forbidden(
            f"This fine-grained token may not write to {repo}: it lacks {WRITE} there (it has {who.held}).",
            remedy=f"Let the token write to {repo} ({TOKENS}), or open a pull request (--publish pr).",
        )


def require_pulls(who: Who, repo: str) -> None:
    """Raise Forbidden where the token cannot open a pull request."""
    if who.role == "read":
        raise Forbidden(
            "The token can only read, so it cannot open a pull request.",
            remedy="Use a token of role write (or fine-grained, with discussions) as HF_TOKEN.",
        )
    if who.lacks((DISCUSS, WRITE), repo, repo.partition("/")[0]):
        raise Forbidden(
            f"This fine-grained token may not open a pull request on {repo}: it lacks {DISCUSS} (it has {who.held}).",
            remedy=f"Let the token interact with discussions and open pull requests ({TOKENS}).",
        )


def remedy_for(who: Who, repo: str) -> str | None:
    """What to do where the Hub said that the token may not write to a repo; None where its owner's rights say nothing."""
    owner = repo.partition("/")[0]
    role = _role_in(who, owner)
    if who.role == "read":
        return None
    if not who.is_in(owner):
        return f"{who.name} is not in {owner}: open a pull request there (--publish pr), or use a member's token."
    if role in (*POWERLESS, "contributor"):
        return f"{who.name}'s role in {owner} is {role}: ask an administrator for the role write, or pass --publish pr."
    return None
