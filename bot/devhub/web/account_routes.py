"""Who one is, access requests, and card validation."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from bot.devhub import access, accounts, derived

from ..errors import HttpError, bad_request
from ..records import Repo
from .call import Answer, Call, route
from .paging import page

STATUSES = ("pending", "accepted", "rejected")


def whoami(call: Call) -> Answer:
    """GET /api/whoami-v2."""
    if not call.viewer.signed_in:
        raise HttpError(401, "Invalid username or password.")
    return accounts.whoami(call.site.db, call.viewer)


def overview(call: Call) -> Answer:
    """GET /api/users/{name}/overview and /api/organizations/{name}/overview."""
    name, wants_org = call.params["name"], "/organizations/" in call.path
    if not accounts.account_exists(call.site.db, name) or accounts.is_org(call.site.db, name) != wants_org:
        raise HttpError(404, f"This {'organization' if wants_org else 'user'} does not exist")
    return _overview(name)


def list_members(call: Call) -> Answer:
    """GET /api/organizations/{name}/members; their roles are told to members only."""
    if not accounts.is_org(call.site.db, call.params["name"]):
        raise HttpError(404, "This organization does not exist")
    roles = accounts.members(call.site.db, call.params["name"])
    is_told = call.viewer.user in roles
    listed = [_overview(name) | ({"role": role} if is_told else {}) for name, role in roles.items()]
    return page(call, listed, size=100)


def _overview(name: str) -> dict[str, Any]:
    return {
        "_id": accounts.account_id(name), "user": name, "name": name, "fullname": name, "avatarUrl": "", "type": "user",
        "isPro": False,
    }  # fmt: skip


def validate_yaml(call: Call) -> Answer:
    """POST /api/validate-yaml."""
    errors, warnings = derived.problems(str(call.json.get("content", ""))) if call.site.checks_cards else ([], [])
    answer = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
    return Response(json.dumps(answer), status_code=400 if errors else 200, media_type="application/json")


def ask_access(call: Call) -> Answer:
    """POST /{id}/ask-access: what a person does on the web page of a gated repo."""
    repo = call.repo()
    if not repo.gate:
        raise bad_request("This repository is not gated")
    access.set_access(call.site.db, repo, call.user, "accepted" if repo.gate == "auto" else "pending")
    return Response("OK")


def _gated_repo(call: Call) -> Repo:
    repo = call.repo_to_write("see who asked for access")
    if not repo.gate:
        raise bad_request("This repository is not gated")
    return repo


def list_access(call: Call) -> Answer:
    """GET …/user-access-request/{status}."""
    repo = _gated_repo(call)
    if call.params["status"] not in STATUSES:
        raise bad_request(f"Invalid status: {call.params['status']}")
    rows = call.site.db.read.execute(
        "SELECT * FROM access WHERE repo = ? AND status = ? ORDER BY created", (repo.id, call.params["status"])
    ).fetchall()
    shown = [
        {
            "requestId": row["id"],
            "user": {"user": row["user"], "fullname": row["user"], "email": f"{row['user']}@localhost"},
            "status": row["status"],
            "timestamp": row["created"],
        }
        for row in rows
    ]
    return page(call, shown, size=1000)


def decide_access(call: Call) -> Answer:
    """POST …/user-access-request/handle."""
    repo, body = _gated_repo(call), call.json
    if body.get("status") not in STATUSES:
        raise bad_request(f"Invalid status: {body.get('status')}")
    row = call.site.db.read.execute(
        "SELECT user, status FROM access WHERE repo = ? AND (user = ? OR id = ?)",
        (repo.id, body.get("user"), body.get("requestId")),
    ).fetchone()
    if row is None or row["status"] == body["status"]:
        raise HttpError(404, "No such access request, or it already has this status")
    access.set_access(call.site.db, repo, row["user"], body["status"])
    return {"success": True}


def grant_access(call: Call) -> Answer:
    """POST …/user-access-request/grant."""
    repo, user = _gated_repo(call), str(call.json.get("user"))
    if not accounts.account_exists(call.site.db, user):
        raise HttpError(404, f"User {user} does not exist")
    query = "SELECT 1 FROM access WHERE repo = ? AND user = ? AND status = 'accepted'"
    if call.site.db.read.execute(query, (repo.id, user)).fetchone():
        raise bad_request(f"User {user} already has access")
    access.set_access(call.site.db, repo, user, "accepted")
    return {"success": True}


REQUESTS = "/api/{kind:kind}/{repo:repo}/user-access-request"
ROUTES: list[BaseRoute] = [
    route("/api/whoami-v2", whoami),
    route("/api/users/{name}/overview", overview),
    route("/api/organizations/{name}/overview", overview),
    route("/api/organizations/{name}/members", list_members),
    route("/api/validate-yaml", validate_yaml, "POST"),
    route(REQUESTS + "/handle", decide_access, "POST"),
    route(REQUESTS + "/grant", grant_access, "POST"),
    route(REQUESTS + "/{status}", list_access),
    route("/{web:web}{repo:repo}/ask-access", ask_access, "POST"),
]
