"""Refs and history: branches, tags, pull request refs, commits."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from .. import repos, trees
from ..commits import RefUpdate
from ..notices import tell_refs
from ..records import Commit
from .call import Answer, Call, route
from .paging import page


def list_refs(call: Call) -> Answer:
    """GET …/refs."""
    repo = call.repo()

    def shown(prefix: str) -> list[dict[str, str]]:
        refs = repos.refs(call.site.db, repo, prefix)
        return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid} for ref, oid in refs.items()]

    answer: dict[str, Any] = {"branches": shown("refs/heads/"), "converts": [], "tags": shown("refs/tags/")}
    if call.query.get("include_prs"):
        answer["pullRequests"] = shown("refs/pr/")
    return answer


def list_commits(call: Call) -> Answer:
    """GET …/commits/{rev}, 50 a page."""
    repo = call.repo()
    start = repos.resolve(call.site.db, repo, call.params["rev"])
    formatted = "formatted" in call.query.getlist("expand[]") + call.query.getlist("expand")
    commits = list(trees.history(call.site.db.read, repo.id, start.oid))
    items = [_commit_item(commit, formatted) for commit in commits]
    return page(call, items, size=50, by_number=True)


def _commit_item(commit: Commit, formatted: bool) -> dict[str, Any]:
    item: dict[str, Any] = {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.message,
        "authors": [{"user": commit.author, "avatar": ""}],
        "date": commit.date,
    }
    if formatted:
        item["formatted"] = {"title": commit.title, "message": commit.message}
    return item


def create_branch(call: Call) -> Answer:
    """POST …/branch/{name}."""
    repo = call.repo_to_write("create a branch")
    start = repos.resolve(call.site.db, repo, call.json.get("startingPoint") or "main")
    ref = f"refs/heads/{call.params['name']}"
    repos.add_ref(call.site.db, repo, ref, start.oid)
    tell_refs(call.site, call.origin, repo, [RefUpdate(ref=ref, old=None, new=start.oid)])
    return Response("OK", status_code=201)


def delete_branch(call: Call) -> Answer:
    """DELETE …/branch/{name}."""
    return _drop(call, f"refs/heads/{call.params['name']}", "delete a branch")


def create_tag(call: Call) -> Answer:
    """POST …/tag/{rev}; the revision is checked before the tag's name, as on the Hub."""
    repo = call.repo_to_write("create a tag")
    commit = repos.resolve(call.site.db, repo, call.params["rev"])
    body = call.json
    ref = f"refs/tags/{body.get('tag', '')}"
    repos.add_ref(call.site.db, repo, ref, commit.oid, body.get("message"))
    tell_refs(call.site, call.origin, repo, [RefUpdate(ref=ref, old=None, new=commit.oid)])
    return Response("OK", status_code=201)


def delete_tag(call: Call) -> Answer:
    """DELETE …/tag/{tag}."""
    return _drop(call, f"refs/tags/{call.params['rev']}", "delete a tag")


def _drop(call: Call, ref: str, what: str) -> Answer:
    repo = call.repo_to_write(what)
    old = repos.drop_ref(call.site.db, repo, ref)
    tell_refs(call.site, call.origin, repo, [RefUpdate(ref=ref, old=old, new=None)])
    return Response("OK")


ROUTES: list[BaseRoute] = [
    route("/api/{kind:kind}/{repo:repo}/refs", list_refs),
    route("/api/{kind:kind}/{repo:repo}/commits/{rev}", list_commits),
    route("/api/{kind:kind}/{repo:repo}/branch/{name}", create_branch, "POST"),
    route("/api/{kind:kind}/{repo:repo}/branch/{name}", delete_branch, "DELETE"),
    route("/api/{kind:kind}/{repo:repo}/tag/{rev}", create_tag, "POST"),
    route("/api/{kind:kind}/{repo:repo}/tag/{rev}", delete_tag, "DELETE"),
]
