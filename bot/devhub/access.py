"""Who may do what: privacy, gates, and what a token is for."""

from __future__ import annotations

import fnmatch
import secrets

from .database import Database, now
from .errors import HttpError, forbidden, gated, repo_not_found
from .records import Repo, Viewer


def _in_scope(viewer: Viewer, name: str) -> bool:
    """Whether a token restricted to some repos covers this one (`owner/*` covers a namespace)."""
    if viewer.scope.repos is None:
        return True
    return any(fnmatch.fnmatchcase(name.lower(), scope.lower()) for scope in viewer.scope.repos)


def _permits(viewer: Viewer, permission: str, name: str) -> bool:
    """Whether the token may do this to the repo, whatever its user may. `owner/*` names a namespace."""
    if viewer.role == "read" and permission != "repo.content.read":
        return False
    if viewer.role != "fine-grained":
        return _in_scope(viewer, name)
    return permission in viewer.scope.everywhere or (permission in viewer.scope.permissions and _in_scope(viewer, name))


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
    if not repo.private:
        return True
    if repo.owner in viewer.scope.awaits:
        return False
    return _belongs(db, viewer, repo.owner) and _permits(viewer, "repo.content.read", repo.name)


def user_may_see(db: Database, user: str, repo: Repo) -> bool:
    """Whether the repo exists for a user, whatever token they hold."""
    return may_see(db, Viewer(user=user), repo)


def may_write(viewer: Viewer, repo: Repo) -> bool:
    """Whether the viewer's token may change the repo."""
    if viewer.user is None or repo.owner in viewer.scope.awaits or not _permits(viewer, "repo.write", repo.name):
        return False
    return repo.owner.lower() in {viewer.user.lower(), *(org.lower() for org in viewer.orgs)}


def may_open_files(db: Database, viewer: Viewer, repo: Repo) -> bool:
    """Whether the viewer is past the repo's gate."""
    if not repo.gate:
        return True
    if viewer.user is None or not (viewer.scope.gated and _in_scope(viewer, repo.name)):
        return False
    if _belongs(db, viewer, repo.owner):
        return True
    return _request(db, viewer, repo) == "accepted"


def _request(db: Database, viewer: Viewer, repo: Repo) -> str | None:
    """What became of the viewer's request to pass the repo's gate; None where there is none."""
    query = "SELECT status FROM access WHERE repo = ? AND user = ?"
    row = db.read.execute(query, (repo.id, viewer.user)).fetchone()
    return None if row is None else str(row["status"])


def set_access(db: Database, repo: Repo, user: str, status: str) -> None:
    """Record what became of a user's request to pass a repo's gate: pending, accepted or rejected."""
    with db.write() as rows:
        rows.execute(
            "INSERT INTO access VALUES (?, ?, ?, ?, ?) ON CONFLICT(repo, user) DO UPDATE SET status = excluded.status",
            (repo.id, user, status, secrets.token_hex(12), now()),
        )


def set_quota(db: Database, owner: str, size: int) -> None:
    """Limit the bytes that an account keeps in its private repos."""
    with db.write() as rows:
        rows.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (f"quota {owner.lower()}", str(size)))


def require_quota(db: Database, repo: Repo, adding: int) -> None:
    """Refuse more bytes than the owner's private repos may hold, in the Hub's words."""
    kept = db.read.execute("SELECT value FROM setting WHERE key = ?", (f"quota {repo.owner.lower()}",)).fetchone()
    if not repo.private or kept is None:
        return
    query = (
        "SELECT COALESCE(SUM(size), 0) AS used FROM holding JOIN repo ON repo.id = holding.repo "
        "WHERE repo.private AND repo.name LIKE ?"
    )
    used = db.read.execute(query, (f"{repo.owner}/%",)).fetchone()["used"]
    if used + adding > int(kept["value"]):
        raise forbidden(
            "Private repository storage limit reached, please upgrade your plan to increase your private storage limit"
        )


def require_visible(db: Database, viewer: Viewer, repo: Repo) -> None:
    """Refuse as if the repo did not exist, where it does not exist for this viewer."""
    if not may_see(db, viewer, repo):
        raise repo_not_found(viewer.signed_in)


def require_files(db: Database, viewer: Viewer, repo: Repo, origin: str) -> None:
    """Refuse the files of a gated repo to those who were not let in."""
    require_visible(db, viewer, repo)
    if not may_open_files(db, viewer, repo):
        status = _request(db, viewer, repo)
        if not viewer.scope.gated and (status == "accepted" or _belongs(db, viewer, repo.owner)):
            text = "Please enable access to public gated repositories in your fine-grained token settings to view this repository."
            raise forbidden(text)
        raise gated(repo.kind, repo.name, f"{origin}/{repo.web_path}", viewer.signed_in, status)


def require_write(db: Database, viewer: Viewer, repo: Repo, what: str) -> None:
    """Refuse a change, saying whether the token's role, its scope or its owner is the obstacle."""
    require_visible(db, viewer, repo)
    if not may_write(viewer, repo):
        raise _why_not(viewer, repo.name, what)


def require_discussion_write(db: Database, viewer: Viewer, repo: Repo, what: str) -> None:
    """Refuse a pull request or comment: any signed-in user with a writing token may make one."""
    require_visible(db, viewer, repo)
    may = any(_permits(viewer, permission, repo.name) for permission in ("discussion.write", "repo.write"))
    if viewer.user is None or not may:
        raise _why_not(viewer, repo.name, what)
    if not may_open_files(db, viewer, repo):
        raise gated(repo.kind, repo.name, "its page", viewer.signed_in)


def require_namespace(viewer: Viewer, namespace: str, kind: str, name: str) -> None:
    """Refuse to create a repo where the viewer's token may not."""
    if viewer.user is None:
        raise HttpError(401, "Invalid username or password.")
    own = {viewer.user.lower(), *(org.lower() for org in viewer.orgs)}
    # A token for one repo cannot make it: the permission has to be on the namespace.
    whole = f"{namespace}/*" if viewer.role == "fine-grained" else f"{namespace}/{name}"
    if namespace in viewer.scope.awaits:
        raise forbidden(f"This token awaits the approval of an administrator of {namespace}.")
    if namespace.lower() not in own or not _permits(viewer, "repo.write", whole):
        raise forbidden(f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')


def require_jobs(viewer: Viewer, namespace: str, what: str, *, write: bool) -> None:
    """Refuse who may not look at an account's Jobs, or may not (`write`) start and cancel them."""
    if viewer.user is None:
        raise HttpError(401, "Invalid username or password.")
    if namespace.lower() not in {viewer.user.lower(), *(org.lower() for org in viewer.orgs)}:
        raise forbidden(f"You don't have the required permissions to {what} in {namespace}.")
    if write and viewer.role == "read":
        raise forbidden(f'This token has the role "read": use a token with write access to {what}.')
    if viewer.role == "fine-grained" and not _permits(viewer, "job.write", f"{namespace}/*"):
        raise forbidden(f"This token lacks the permission job.write on {namespace} to {what}.")


def _why_not(viewer: Viewer, name: str, what: str) -> HttpError:
    if viewer.user is None:
        return HttpError(401, "Invalid username or password.")
    owner = name.partition("/")[0]
    if owner in viewer.scope.awaits:
        return forbidden(f"This token awaits the approval of an administrator of {owner}.")
    if viewer.role == "read":
        return forbidden(f'This token has the role "read": use a token with write access to {name} to {what}.')
    if not _in_scope(viewer, name):
        return forbidden(f"This token is not for {name}: add the repo to its scope to {what}.")
    if not _permits(viewer, "repo.write", name):
        return forbidden(f"This token lacks the permission on {name} that is needed to {what}.")
    return forbidden("You have read access but not the required permissions for this operation")
