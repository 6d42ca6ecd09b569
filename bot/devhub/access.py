"""Who may do what: accounts, tokens, privacy and gates."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import secrets
from collections.abc import Sequence
from typing import Any

from .database import Database, now
from .errors import Refused, bad_token, forbidden, gated, repo_not_found
from .records import Repo, TokenRole, Viewer

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


def issue_token(
    db: Database, user: str, *, role: TokenRole, repos: Sequence[str] | None, name: str = "", token: str | None = None
) -> str:
    """A new token. Only its digest is kept, so that a copy of the folder is not a copy of the keys."""
    token = token or f"hf_{secrets.token_hex(17)}"
    scope = None if repos is None else json.dumps(list(repos))
    with db.write() as rows:
        rows.execute(
            "INSERT OR REPLACE INTO token VALUES (?, ?, ?, ?, ?, ?)",
            (_digest(token), user, role, scope, name or role, now()),
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
    if row is None:
        raise bad_token()
    orgs = db.read.execute(
        "SELECT org FROM member WHERE user = ? AND role != 'read' ORDER BY org", (row["user"],)
    ).fetchall()
    return Viewer(
        user=row["user"],
        orgs=tuple(r["org"] for r in orgs),
        role=row["role"],
        token_name=row["name"],
        repos=None if row["repos"] is None else tuple(json.loads(row["repos"])),
    )


def whoami(db: Database, viewer: Viewer) -> dict[str, Any]:
    """The answer of `/api/whoami-v2`."""
    orgs = db.read.execute("SELECT org, role FROM member WHERE user = ? ORDER BY org", (viewer.user,)).fetchall()
    token: dict[str, Any] = {"displayName": viewer.token_name, "role": viewer.role}
    if viewer.role == "fine-grained":
        scoped = [
            {"entity": {"type": "model", "name": name}, "permissions": ["repo.content.read", "repo.write"]}
            for name in viewer.repos or ()
        ]
        token |= {"role": "fineGrained", "fineGrained": {"scoped": scoped, "global": []}}
    return {
        "type": "user",
        "id": hashlib.sha1((viewer.user or "").encode()).hexdigest()[:24],
        "name": viewer.user,
        "fullname": viewer.user,
        "email": f"{viewer.user}@localhost",
        "emailVerified": True,
        "isPro": False,
        "orgs": [{"type": "org", "name": r["org"], "fullname": r["org"], "roleInOrg": r["role"]} for r in orgs],
        "auth": {"type": "access_token", "accessToken": token},
    }


def _in_scope(viewer: Viewer, name: str) -> bool:
    """Whether a token restricted to some repos covers this one (`owner/*` covers a namespace)."""
    if viewer.repos is None:
        return True
    return any(fnmatch.fnmatchcase(name.lower(), scope.lower()) for scope in viewer.repos)


def _belongs(db: Database, viewer: Viewer, namespace: str) -> bool:
    """Whether the namespace is the viewer's own, or an organization's that they are in (any role)."""
    if viewer.user is None:
        return False
    if namespace.lower() == viewer.user.lower():
        return True
    query = "SELECT 1 FROM member WHERE org = ? AND user = ?"
    return db.read.execute(query, (namespace, viewer.user)).fetchone() is not None


def may_see(db: Database, viewer: Viewer, repo: Repo) -> bool:
    """Whether the repo exists for this viewer."""
    return not repo.private or (_belongs(db, viewer, repo.owner) and _in_scope(viewer, repo.name))


def user_may_see(db: Database, user: str, repo: Repo) -> bool:
    """Whether the repo exists for a user, whatever token they hold."""
    return may_see(db, Viewer(user=user), repo)


def may_write(viewer: Viewer, repo: Repo) -> bool:
    """Whether the viewer's token may change the repo."""
    if viewer.user is None or viewer.role == "read" or not _in_scope(viewer, repo.name):
        return False
    return repo.owner.lower() in {viewer.user.lower(), *(org.lower() for org in viewer.orgs)}


def may_open_files(db: Database, viewer: Viewer, repo: Repo) -> bool:
    """Whether the viewer is past the repo's gate."""
    if not repo.gate:
        return True
    if viewer.user is None or not _in_scope(viewer, repo.name):
        return False
    if _belongs(db, viewer, repo.owner):
        return True
    query = "SELECT 1 FROM access WHERE repo = ? AND user = ? AND status = 'accepted'"
    return db.read.execute(query, (repo.id, viewer.user)).fetchone() is not None


def set_access(db: Database, repo: Repo, user: str, status: str) -> None:
    """Record what became of a user's request to pass a repo's gate: pending, accepted or rejected."""
    with db.write() as rows:
        rows.execute(
            "INSERT INTO access VALUES (?, ?, ?, ?, ?) ON CONFLICT(repo, user) DO UPDATE SET status = excluded.status",
            (repo.id, user, status, secrets.token_hex(12), now()),
        )


def require_sight(db: Database, viewer: Viewer, repo: Repo) -> None:
    """Refuse as if the repo did not exist, where it does not exist for this viewer."""
    if not may_see(db, viewer, repo):
        raise repo_not_found(viewer.signed_in)


def require_files(db: Database, viewer: Viewer, repo: Repo, origin: str) -> None:
    """Refuse the files of a gated repo to those who were not let in."""
    require_sight(db, viewer, repo)
    if not may_open_files(db, viewer, repo):
        raise gated(repo.kind, repo.name, f"{origin}/{repo.web_path}", viewer.signed_in)


def require_write(db: Database, viewer: Viewer, repo: Repo, what: str) -> None:
    """Refuse a change, saying whether the token's role, its scope or its owner is the obstacle."""
    require_sight(db, viewer, repo)
    if not may_write(viewer, repo):
        raise _why_not(viewer, repo.name, what)


def require_voice(db: Database, viewer: Viewer, repo: Repo, what: str) -> None:
    """Refuse a pull request or comment: any signed-in user with a writing token may make one."""
    require_sight(db, viewer, repo)
    if viewer.user is None or viewer.role == "read" or not _in_scope(viewer, repo.name):
        raise _why_not(viewer, repo.name, what)
    if not may_open_files(db, viewer, repo):
        raise gated(repo.kind, repo.name, "its page", viewer.signed_in)


def require_namespace(viewer: Viewer, namespace: str, kind: str, name: str) -> None:
    """Refuse to create a repo where the viewer's token may not."""
    if viewer.user is None:
        raise Refused(401, "Invalid username or password.")
    own = {viewer.user.lower(), *(org.lower() for org in viewer.orgs)}
    if viewer.role == "read" or namespace.lower() not in own or not _in_scope(viewer, f"{namespace}/{name}"):
        raise forbidden(f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')


def _why_not(viewer: Viewer, name: str, what: str) -> Refused:
    if viewer.user is None:
        return Refused(401, "Invalid username or password.")
    if viewer.role == "read":
        return forbidden(f'This token has the role "read": use a token with write access to {name} to {what}.')
    if not _in_scope(viewer, name):
        return forbidden(f"This token is not for {name}: add the repo to its scope to {what}.")
    return forbidden(f"Authorization error: {viewer.user} has no write access to {name}, which is needed to {what}.")
