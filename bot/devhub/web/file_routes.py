"""Reading files: the tree, file by file, and downloads."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute

from .. import access, repos, trees
from ..errors import HttpError, entry_not_found
from ..records import Commit, Entry, Repo, lfs_pointer
from .call import KINDS, Answer, Call, route
from .paging import page

PAGE, EXPANDED_PAGE = 1000, 50
PATHS_LIMIT = 2000
URL_SECONDS = 3600


class File(FileResponse):
    """A file with ranges, in blocks large enough for weights."""

    chunk_size = 1 << 20


def tree(call: Call) -> Answer:
    """GET …/tree/{rev}[/{path}]."""
    repo = call.repo()
    commit = repos.resolve(call.site.db, repo, call.params["rev"])
    folder = call.params.get("path", "").strip("/")
    files = trees.entries(call.site.db.read, commit.tree)
    folders = trees.folders(files)
    if folder and folder not in folders:
        raise entry_not_found(folder, commit.oid)
    prefix = f"{folder}/" if folder else ""
    recursive = _true(call.query.get("recursive"))
    paths = [p for p in (*folders, *files) if p.startswith(prefix) and (recursive or "/" not in p[len(prefix) :])]
    # Folders first, as the Hub lists them.
    paths.sort(key=lambda path: (path in files, path))
    expand = _true(call.query.get("expand"))
    size = min(call.number("limit", PAGE), EXPANDED_PAGE if expand else PAGE)
    items = [_item(call, files, folders, path) for path in paths]
    if expand:
        _expand(call, repo, commit, items)
    return page(call, items, size=size)


def _true(value: str | None) -> bool:
    return (value or "").lower() in ("true", "1")


def _item(call: Call, files: dict[str, Entry], folders: dict[str, str], path: str) -> dict[str, Any]:
    if path not in files:
        return trees.folder_item(path, folders[path])
    return trees.file_item(files[path], xet_hash(call, files[path]))


def xet_hash(call: Call, entry: Entry) -> str | None:
    """The Xet hash of a large file, where this hub serves Xet."""
    if call.site.xet is None or not entry.lfs:
        return None
    return call.site.xet.hash_of(entry.sha256, call.site.db)


def _expand(call: Call, repo: Repo, commit: Commit, items: list[dict[str, Any]]) -> None:
    """Add the last commit and a scan verdict to every item."""
    changed = trees.last_changes(call.site.db.read, repo.id, commit, [item["path"] for item in items])
    for item in items:
        last = changed.get(item["path"], commit)
        item["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
        if item["type"] == "file":
            scan = {"status": "unscanned"}
            item["securityFileStatus"] = {"status": "unscanned", "avScan": scan, "pickleImportScan": scan}


def show_paths(call: Call) -> Answer:
    """POST …/paths-info/{rev}; paths that do not exist are left out."""
    repo = call.repo()
    commit = repos.resolve(call.site.db, repo, call.params["rev"])
    fields = call.fields
    paths = fields.get("paths", [])
    if len(paths) > PATHS_LIMIT:
        raise HttpError(413, "too many parameters")
    files = trees.entries(call.site.db.read, commit.tree)
    folders = trees.folders(files)
    wanted = [path.strip("/") for path in paths]
    items = [_item(call, files, folders, path) for path in wanted if path in files or path in folders]
    for item in items:
        if call.site.xet is None and "lfs" in item:
            # copy_files between repos refuses a source without a Xet hash, and asks only here; the listing, by
            # which downloads choose their way, shows none. The hub copies by sha256.
            item["xetHash"] = item["lfs"]["oid"]
    if _true(next(iter(fields.get("expand", [])), None)):
        _expand(call, repo, commit, items)
    return items


def _locate(call: Call, *, path: str) -> tuple[Repo, Commit, Entry]:
    repo = call.repo_to_open()
    commit = repos.resolve(call.site.db, repo, call.params["rev"])
    entry = trees.entry(call.site.db.read, commit.tree, path)
    if entry is None:
        raise entry_not_found(path, commit.oid)
    return repo, commit, entry


def resolve(call: Call) -> Answer:
    """GET/HEAD /{id}/resolve/{rev}/{path}: small files on this origin, large ones by a signed URL on the other."""
    repo, commit, entry = _locate(call, path=call.params["path"])
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if not entry.lfs:
        kind = next(key for key, value in KINDS.items() if value == repo.kind)
        # Relative, as on the Hub. The path alone names the blob: clients drop the query of a relative redirect.
        target = f"{call.site.prefix}/api/resolve-cache/{kind}/{repo.name}/{commit.oid}/{quote(entry.path)}"
        return Response(status_code=307, headers=headers | {"Location": target, "ETag": f'"{entry.blob}"'})
    headers |= {
        "Location": _signed(call, entry),
        "ETag": f'"{entry.blob}"',
        "X-Linked-ETag": f'"{entry.sha256}"',
        "X-Linked-Size": str(entry.size),
    }
    known_hash = xet_hash(call, entry)
    if known_hash:
        headers["X-Xet-Hash"] = known_hash
        token = f"{call.origin}/{repo.api_path}/xet-read-token/{commit.oid}"
        auth = f'<{token}>; rel="xet-auth"'
        headers["Link"] = f'{auth}, <{call.origin}/xet/reconstruction/{known_hash}>; rel="xet-reconstruction-info"'
    return Response(status_code=302, headers=headers)


def _signed(call: Call, entry: Entry) -> str:
    claims = call.site.sign(get=entry.sha256, name=entry.path.rpartition("/")[2], until=int(time.time()) + URL_SECONDS)
    return f"{call.cdn}/{entry.sha256}?signature={claims}"


def resolve_cache(call: Call) -> Answer:
    """GET/HEAD of a small file, by commit."""
    _, commit, entry = _locate(call, path=call.params["path"])
    if entry.lfs:
        raise entry_not_found(entry.path, commit.oid)
    return _file(call, entry, commit)


def _file(call: Call, entry: Entry, commit: Commit) -> Response:
    headers = {
        "X-Repo-Commit": commit.oid,
        "ETag": f'"{entry.blob}"',
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(entry.path.rpartition('/')[2])}",
        "X-Content-Type-Options": "nosniff",
        # A README must never run as a page of this origin.
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    path = call.site.objects.path(entry.sha256)
    return File(path, headers=headers, media_type="text/plain; charset=utf-8", stat_result=path.stat())


def raw(call: Call) -> Answer:
    """GET /{id}/raw/{rev}/{path}: what git holds, so a pointer for large files."""
    _, commit, entry = _locate(call, path=call.params["path"])
    if entry.lfs:
        pointer = lfs_pointer(entry.sha256, entry.size)
        return Response(pointer, media_type="text/plain", headers={"X-Repo-Commit": commit.oid})
    return _file(call, entry, commit)


def large_file(call: Call) -> Answer:
    """GET/HEAD on the second origin: the URL's signature is the only key."""
    sha256 = call.params["sha256"]
    claims = call.site.check(call.query.get("signature", ""))
    if claims is None or claims.get("get") != sha256:
        raise HttpError(403, "AccessDenied: the signature of this URL is invalid or has expired")
    path = call.site.objects.path(sha256)
    if not path.is_file():
        raise HttpError(404, "NoSuchKey: the object does not exist")
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "public, max-age=31536000, immutable"}
    return File(path, headers=headers, media_type="application/octet-stream", filename=str(claims["name"]),
                stat_result=path.stat())  # fmt: skip


def xet_token(call: Call) -> Answer:
    """GET …/xet-read-token/{rev} and …/xet-write-token/{rev}: a view of the local Xet store, in body and headers."""
    if call.site.xet is None:
        raise HttpError(404, "This hub does not serve Xet: set HF_HUB_DISABLE_XET=1")
    repo = call.repo_to_open()
    if call.path.rpartition("/")[0].endswith("write-token"):
        # Whoever may open a pull request may upload for it; the commit checks the rest.
        access.require_discussion_write(call.site.db, call.viewer, repo, "upload")
        if not call.query.get("create_pr") and not call.params["rev"].startswith("refs/pr/"):
            access.require_write(call.site.db, call.viewer, repo, "upload to it")
    view, token, expiry = call.site.xet.open_view(), "local", int(time.time()) + 24 * 3600
    body = f'{{"casUrl": "{view}", "accessToken": "{token}", "exp": {expiry}}}'
    headers = {"X-Xet-Cas-Url": view, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expiry)}
    return Response(body, media_type="application/json", headers=headers)


ROUTES: list[BaseRoute] = [
    route("/api/{kind:kind}/{repo:repo}/tree/{rev}", tree),
    route("/api/{kind:kind}/{repo:repo}/tree/{rev}/{path:path}", tree),
    route("/api/{kind:kind}/{repo:repo}/paths-info/{rev}", show_paths, "POST"),
    route("/api/{kind:kind}/{repo:repo}/xet-read-token/{rev}", xet_token),
    route("/api/{kind:kind}/{repo:repo}/xet-write-token/{rev}", xet_token),
    route("/api/resolve-cache/{kind:kind}/{repo:repo}/{rev}/{path:path}", resolve_cache),
    route("/{web:web}{repo:repo}/resolve/{rev}/{path:path}", resolve),
    route("/{web:web}{repo:repo}/raw/{rev}/{path:path}", raw),
    route("/{web:web}{repo:repo}/blob/{rev}/{path:path}", resolve),  # a page on the Hub; here the file itself
]
CDN_ROUTES: list[BaseRoute] = [route("/{sha256}", large_file)]
