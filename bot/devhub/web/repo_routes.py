"""Repos: create, delete, move, settings, what they are, their refs and history."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from bot.devhub import access, derived, discussions, repos, trees

from ..errors import bad_request, repo_not_found
from ..notices import tell
from ..records import Commit, Entry, Repo, RepoKind
from .call import KINDS, Answer, Call, route
from .paging import page

BASIC = ("author", "gated", "lastModified", "private", "createdAt", "tags", "library_name", "pipeline_tag", "sha")


def create(call: Call) -> Answer:
    """POST /api/repos/create."""
    body = call.json
    namespace = body.get("organization") or call.user
    kind = _kind(body)
    name = f"{namespace}/{body.get('name', '')}"
    existing = repos.find(call.site.db, kind, name)
    if existing is not None and access.may_see(call.site.db, call.viewer, existing):
        access.require_namespace(call.viewer, namespace, kind, str(body.get("name")))
        return _created(call, existing, 409)
    access.require_namespace(call.viewer, namespace, kind, str(body.get("name")))
    private = body.get("visibility") == "private" or bool(body.get("private"))
    repo = repos.create(call.site.db, call.site.objects, kind=kind, name=name, private=private, author=call.user)
    tell(call.site, call.origin, repo, "create", "repo")
    return _created(call, repo, 200)


def _kind(body: dict[str, Any]) -> RepoKind:
    kind = body.get("type") or "model"
    if f"{kind}s" not in KINDS:
        raise bad_request(f"Invalid repo type: {kind}")
    return KINDS[f"{kind}s"]


def _created(call: Call, repo: Repo, status: int) -> Response:
    """The 409 has the same body: create_repo(exist_ok=True) reads the url from it."""
    body: dict[str, Any] = {"url": f"{call.public}/{repo.web_path}", "name": repo.name, "id": f"{repo.id:024x}"}
    if status == 409:
        body["error"] = f"You already created this {repo.kind} repo: {repo.name}"
    return JSONResponse(body, status_code=status)


def delete(call: Call) -> Answer:
    """DELETE /api/repos/delete."""
    body = call.json
    name = f"{body.get('organization') or call.user}/{body.get('name', '')}"
    repo = repos.get(call.site.db, call.viewer, _kind(body), name)
    access.require_write(call.site.db, call.viewer, repo, "delete it")
    tell(call.site, call.origin, repo, "delete", "repo")
    repos.delete(call.site.db, repo)
    return Response("OK")


def move(call: Call) -> Answer:
    """POST /api/repos/move."""
    body = call.json
    repo = repos.get(call.site.db, call.viewer, _kind(body), str(body.get("fromRepo")))
    access.require_write(call.site.db, call.viewer, repo, "move it")
    namespace, _, short = str(body.get("toRepo")).partition("/")
    access.require_namespace(call.viewer, namespace, repo.kind, short)
    repos.move(call.site.db, repo, f"{namespace}/{short}")
    moved_to = {"name": f"{namespace}/{short}", "owner": {"id": namespace}}
    tell(call.site, call.origin, repo, "move", "repo", movedTo=moved_to)
    return Response("OK")


def settings(call: Call) -> Answer:
    """PUT …/settings."""
    repo = call.repo_to_write("change its settings")
    body = call.json
    private = body.get("private")
    if "visibility" in body:
        if body["visibility"] not in ("public", "private"):
            raise bad_request(f"Invalid visibility: {body['visibility']}")
        private = body["visibility"] == "private"
    gate = body.get("gated")
    if gate not in (None, False, "auto", "manual"):
        raise bad_request(f"Invalid gated status: {gate}")
    repos.change_settings(call.site.db, repo, private=private, gate=gate)
    if "discussionsDisabled" in body:
        discussions.switch(call.site.db, repo, on=not body["discussionsDisabled"])
    tell(call.site, call.origin, repo, "update", "repo.config")
    return {"private": repo.private if private is None else private, "gated": repo.gate if gate is None else gate}


def auth_check(call: Call) -> Answer:
    """GET …/auth-check."""
    call.repo_to_open()
    return Response("OK")


def auth_check_write(call: Call) -> Answer:
    """GET …/auth-check/write."""
    call.repo_to_write("write to it")
    return Response("OK")


def show(call: Call) -> Answer:
    """GET /api/{kind}/{id}[/revision/{rev}]; works without access to a gated repo."""
    repo = call.repo()
    commit = repos.resolve(call.site.db, repo, call.params.get("rev", "main"))
    full = describe(call, repo, commit)
    expand = call.query.getlist("expand") + call.query.getlist("expand[]")
    if expand:
        return {key: full[key] for key in ("_id", "id", *expand) if key in full}
    return full


def describe(call: Call, repo: Repo, commit: Commit) -> dict[str, Any]:
    """Everything the Hub says about a repo at a commit."""
    files = trees.entries(call.site.db.read, commit.tree)
    readme = files.get("README.md")
    small = readme is not None and readme.size <= derived.CARD_LIMIT
    text = call.site.objects.read(readme.sha256).decode("utf-8", "replace") if readme and small else ""
    content = derived.metadata(text)
    config = derived.config(call.site.objects, files)
    info: dict[str, Any] = {
        "_id": f"{repo.id:024x}",
        "id": repo.name,
        "modelId": repo.name,
        "author": repo.owner,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": repo.created,
        "private": repo.private,
        "gated": repo.gate,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": derived.tags(content, files),
        "siblings": [_sibling(entry, blobs=bool(call.query.get("blobs"))) for entry in files.values()],
        "spaces": [],
        "usedStorage": sum({e.sha256: e.size for e in files.values() if e.lfs}.values()),
    }
    optional = {
        "cardData": content,
        "library_name": content.get("library_name") or ("peft" if "peft" in (config or {}) else None),
        "pipeline_tag": content.get("pipeline_tag"),
        "config": config,
        "safetensors": derived.parameters(call.site.objects, files) if repo.kind == "model" else None,
        "baseModels": derived.strings(content.get("base_model")),
    }
    if call.query.get("securityStatus"):
        info["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
    return info | {key: value for key, value in optional.items() if value}


def _sibling(entry: Entry, *, blobs: bool) -> dict[str, Any]:
    item: dict[str, Any] = {"rfilename": entry.path}
    if blobs:
        item |= {"size": entry.size, "blobId": entry.blob}
        if entry.lfs:
            item["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return item


def list_repos(call: Call) -> Answer:
    """GET /api/{kind}: public repos and the viewer's own, filtered, latest changed first."""
    visible = [r for r in repos.every(call.site.db, call.kind) if access.may_see(call.site.db, call.viewer, r)]
    author, search = call.query.get("author"), call.query.get("search", "").lower()
    if author:
        visible = [r for r in visible if r.owner.lower() == author.lower()]
    visible = [r for r in visible if search in r.name.lower()]
    shown = [describe(call, r, repos.resolve(call.site.db, r, "main")) for r in visible]
    wanted = {tag for value in call.query.getlist("filter") for tag in value.split(",")}
    shown = [item for item in shown if wanted <= {*item["tags"]}]
    if call.query.get("pipeline_tag"):
        shown = [item for item in shown if item.get("pipeline_tag") == call.query["pipeline_tag"]]
    if call.query.get("sort") == "createdAt":
        shown.sort(key=lambda item: item["createdAt"], reverse=True)
    return page(call, [_short(call, item) for item in shown], size=max(1, call.number("limit", 1000)))


def _short(call: Call, item: dict[str, Any]) -> dict[str, Any]:
    keys = ["_id", "id", "modelId", *BASIC, "downloads", "likes"]
    keys += call.query.getlist("expand")
    keys += ["siblings"] if call.query.get("full") else []
    keys += ["cardData"] if call.query.get("cardData") else []
    keys += ["config"] if call.query.get("config") else []
    return {key: item[key] for key in keys if key in item}


def safetensors_headers(call: Call) -> Answer:
    """GET …/safetensors-metadata/{index}: every shard's header in one answer."""
    repo = call.repo_to_open()
    files = trees.entries(call.site.db.read, repos.resolve(call.site.db, repo, "main").tree)
    index = derived.load_json(call.site.objects, files.get(call.params["path"]))
    if index is None:
        raise repo_not_found(call.viewer.signed_in)
    shards = sorted(set(index.get("weight_map", {}).values()) & files.keys())
    headers = {name: derived.safetensors_header(str(call.site.objects.path(files[name].sha256))) for name in shards}
    return {"index": {"metadata": index.get("metadata")}, "headers": headers}


ROUTES: list[BaseRoute] = [
    route("/api/repos/create", create, "POST"),
    route("/api/repos/delete", delete, "DELETE"),
    route("/api/repos/move", move, "POST"),
    route("/api/{kind:kind}/{repo:repo}/settings", settings, "PUT"),
    route("/api/{kind:kind}/{repo:repo}/auth-check", auth_check),
    route("/api/{kind:kind}/{repo:repo}/auth-check/write", auth_check_write),
    route("/api/{kind:kind}/{repo:repo}/safetensors-metadata/{path:path}", safetensors_headers),
    route("/api/{kind:kind}/{repo:repo}/revision/{rev}", show),
    route("/api/{kind:kind}/{repo:repo}", show),
    route("/api/{kind:kind}", list_repos),
]
