"""Accounts, organizations and tokens, and whom a request comes from."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from dataclasses import asdict
from typing import Any

from .database import Database, now
from .errors import bad_token, forbidden
from .records import Scope, TokenRole, Viewer

NOBODY = Viewer()


def add_account(db: Database, name: str, *, is_org: bool = False) -> None:
    """Create a user or an organization, unless it exists."""
    with db.write() as rows:
        rows.execute("INSERT OR IGNORE INTO account VALUES (?, ?, ?)", (name, is_org, now()))


def add_member(db: Database, org: str, user: str, role: str) -> None:
    """Make a user a member of an organization (roles as on the Hub: read, contributor, write, admin)."""
    with db.write() as rows:
        rows.execute("INSERT OR REPLACE INTO member VALUES (?, ?, ?)", (org, user, role))


def account_exists(db: Database, name: str) -> bool:
    """Whether a user or organization has this name."""
    return db.read.execute("SELECT 1 FROM account WHERE name = ?", (name,)).fetchone() is not None


def account_id(name: str) -> str:
    """The id that stands for a user or an organization in events, which do not tell its name."""
    return hashlib.sha1(name.lower().encode()).hexdigest()[:24]


def is_org(db: Database, name: str) -> bool:
    """Whether this is an organization."""
    row = db.read.execute("SELECT is_org FROM account WHERE name = ?", (name,)).fetchone()
    return row is not None and bool(row["is_org"])


def members(db: Database, org: str) -> dict[str, str]:
    """The members of an organization, and their roles."""
    rows = db.read.execute("SELECT user, role FROM member WHERE org = ? ORDER BY user", (org,)).fetchall()
    return {row["user"]: row["role"] for row in rows}


def issue_token(
    db: Database, user: str, *, role: TokenRole, scope: Scope, name: str = "", token: str | None = None
) -> str:
    """A new token. Only its digest is kept, so that a copy of the folder is not a copy of the keys."""
    token = token or f"hf_{secrets.token_hex(17)}"
    with db.write() as rows:
        rows.execute(
            "INSERT OR REPLACE INTO token VALUES (?, ?, ?, ?, ?, ?)",
            (_digest(token), user, role, json.dumps(asdict(scope)), name or role, now()),
        )
    return token


def revoke_token(db: Database, token: str) -> None:
    """Forget a token: it is answered like one that never was."""
    with db.write() as rows:
        rows.execute("DELETE FROM token WHERE digest = ?", (_digest(token),))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def viewer_of(db: Database, authorization: str | None) -> Viewer:
    """The viewer that an `Authorization` header names; refuses a token that this hub does not know."""
    if not authorization:
        return NOBODY
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise bad_token()
    row = db.read.execute("SELECT * FROM token WHERE digest = ?", (_digest(token.strip()),)).fetchone()
    scope = _scope(row["repos"]) if row is not None else Scope()
    if row is None or (scope.until is not None and scope.until <= time.time()):
        raise bad_token()
    orgs = db.read.execute(
        "SELECT org FROM member WHERE user = ? AND role != 'read' ORDER BY org", (row["user"],)
    ).fetchall()
    return Viewer(
        user=row["user"],
        orgs=tuple(r["org"] for r in orgs),
        role=row["role"],
        token_name=row["name"],
        scope=scope,
    )


def _scope(stored: str | None) -> Scope:
    """A token's limits as they are stored; folders of older versions hold the repos alone."""
    fields = json.loads(stored or "null")
    if not isinstance(fields, dict):
        return Scope(repos=None if fields is None else tuple(fields))
    limits: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Scope(**limits)


def whoami(db: Database, viewer: Viewer) -> dict[str, Any]:
    """The answer of `/api/whoami-v2`. Refuses a token that belongs to a job and not to a person."""
    if viewer.scope.identity:
        raise forbidden("This token was issued to a trusted publisher; it has no account to tell of.")
    orgs = db.read.execute("SELECT org, role FROM member WHERE user = ? ORDER BY org", (viewer.user,)).fetchall()
    token: dict[str, Any] = {"displayName": viewer.token_name, "role": viewer.role}
    if viewer.role == "fine-grained":
        scope = viewer.scope
        scoped = [{"entity": _entity(db, name), "permissions": [*scope.permissions]} for name in scope.repos or ()]
        fine = {"canReadGatedRepos": scope.gated, "global": [*scope.everywhere], "scoped": scoped}
        token |= {"role": "fineGrained", "fineGrained": fine}
    return {
        "type": "user",
        "id": account_id(viewer.user or ""),
        "name": viewer.user,
        "fullname": viewer.user,
        "email": f"{viewer.user}@localhost",
        "emailVerified": True,
        "isPro": False,
        "orgs": [{"type": "org", "name": r["org"], "fullname": r["org"], "roleInOrg": r["role"]} for r in orgs],
        "auth": {"type": "access_token", "accessToken": token},
    }


def _entity(db: Database, name: str) -> dict[str, str]:
    """What a permission is on: a namespace for `owner/*`, else one model."""
    owner, _, short = name.partition("/")
    if short != "*":
        return {"type": "model", "name": name}
    row = db.read.execute("SELECT is_org FROM account WHERE name = ?", (owner,)).fetchone()
    return {"type": "org" if row is not None and row["is_org"] else "user", "name": owner}
