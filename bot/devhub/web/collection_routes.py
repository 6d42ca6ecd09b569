"""Collections over HTTP."""

from __future__ import annotations

from typing import Any

from starlette.routing import BaseRoute

from .. import access, collections, repos
from ..collections import RepoCollection
from ..errors import HttpError, bad_request
from .call import KINDS, Answer, Call, route


def create(call: Call) -> Answer:
    """POST /api/collections."""
    body = call.json
    owner, title = str(body.get("namespace") or call.user), str(body.get("title", "")).strip()
    if not title:
        raise bad_request("A collection needs a title")
    access.require_namespace(call.viewer, owner, "model", "")
    return _shown(call, collections.create(call.site.db, owner=owner, title=title, private=bool(body.get("private"))))


def show(call: Call) -> Answer:
    """GET /api/collections/{slug}: a private collection for its owner only."""
    return _shown(call, _visible(call))


def add(call: Call) -> Answer:
    """POST /api/collections/{slug}/items."""
    before = _visible(call)
    access.require_namespace(call.viewer, before.owner, "model", "")
    item: dict[str, Any] = call.json.get("item") or {}
    kind, name = str(item.get("type")), str(item.get("id"))
    if f"{kind}s" not in KINDS:
        raise bad_request(f"Invalid item type: {kind}")
    repo = repos.get(call.site.db, call.viewer, KINDS[f"{kind}s"], name)
    return _shown(call, collections.add(call.site.db, before.slug, kind, repo.name))


def _visible(call: Call) -> RepoCollection:
    collection = collections.get(call.site.db, call.params["slug"])
    if collection.private and (call.viewer.user or "").lower() != collection.owner.lower():
        raise HttpError(404, "Collection not found")
    return collection


def _shown(call: Call, collection: RepoCollection) -> dict[str, Any]:
    """As the Hub shows it; what the viewer may not see is left out."""
    items = []
    for position, (id, kind, name) in enumerate(collection.items):
        repo = repos.find(call.site.db, KINDS[f"{kind}s"], name)
        if repo is not None and access.may_see(call.site.db, call.viewer, repo):
            items.append({"_id": id, "id": repo.name, "type": kind, "position": position, "repoType": kind})
    return {
        "slug": collection.slug,
        "title": collection.title,
        "owner": {"name": collection.owner},
        "items": items,
        "lastUpdated": collection.modified,
        "position": 0,
        "private": collection.private,
        "theme": "indigo",
        "upvotes": 0,
        "url": f"{call.public}/collections/{collection.slug}",
    }


ROUTES: list[BaseRoute] = [
    route("/api/collections", create, "POST"),
    route("/api/collections/{slug:repo}/items", add, "POST"),
    route("/api/collections/{slug:repo}", show),
]
