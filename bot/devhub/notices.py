"""Events told to webhooks: the v3 payloads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import repos, webhooks
from .access import user_may_see
from .accounts import account_id
from .commits import RefUpdate
from .discussions import pr_ref
from .records import Discussion, DiscussionEvent, Repo
from .site import Site


def tell(site: Site, origin: str, repo: Repo, action: str, scope: str, **more: Any) -> None:
    """Queue one event for every webhook that watches."""
    listeners = [w for w in webhooks.watching(site.db, repo, scope) if user_may_see(site.db, w.user, repo)]
    if not listeners:
        return
    head = repos.head(site.db.read, repo.id, repos.MAIN)
    payload: dict[str, Any] = {
        "event": {"action": action, "scope": scope},
        "repo": {
            "type": repo.kind,
            "name": repo.name,
            "id": f"{repo.id:024x}",
            "private": repo.private,
            "url": {"web": f"{origin}/{repo.web_path}", "api": f"{origin}/{repo.api_path}"},
            "owner": {"id": account_id(repo.owner)},
            **({"headSha": head} if head else {}),
        },
        **more,
    }
    for webhook in listeners:
        site.deliveries.put(webhook, payload)


def tell_refs(site: Site, origin: str, repo: Repo, updates: Iterable[RefUpdate]) -> None:
    """Queue a content event for refs that changed."""
    updated = [{"ref": u.ref, "oldSha": u.old, "newSha": u.new} for u in updates]
    tell(site, origin, repo, "update", "repo.content", updatedRefs=updated)


def tell_discussion(
    site: Site, origin: str, repo: Repo, discussion: Discussion, action: str, comment: DiscussionEvent | None = None
) -> None:
    """Queue an event about a discussion, or about a comment in it."""
    scope = "discussion" if comment is None else "discussion.comment"
    about = _about(origin, repo, discussion)
    if comment is None:
        return tell(site, origin, repo, action, scope, discussion=about)
    message = {
        "id": comment.id,
        "author": {"id": account_id(comment.author)},
        "content": comment.content["latest"]["raw"],
        "hidden": comment.content["hidden"],
        "url": {"web": f"{about['url']['web']}#{comment.id}"},
    }
    return tell(site, origin, repo, action, scope, discussion=about, comment=message)


def _about(origin: str, repo: Repo, discussion: Discussion) -> dict[str, Any]:
    about: dict[str, Any] = {
        "id": f"{repo.id:012x}{discussion.num:012x}",
        "num": discussion.num,
        "title": discussion.title,
        "status": discussion.status,
        "isPullRequest": discussion.is_pull_request,
        "author": {"id": account_id(discussion.author)},
        "url": {
            "web": f"{origin}/{repo.web_path}/discussions/{discussion.num}",
            "api": f"{origin}/{repo.api_path}/discussions/{discussion.num}",
        },
        "pinned": False,
    }
    if discussion.is_pull_request:
        about["changes"] = {"base": repos.MAIN, "mergeCommitId": discussion.merge_commit}
        about["headRef"] = pr_ref(discussion.num)
    return about
