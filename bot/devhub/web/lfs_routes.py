"""Large files: what to send where, the uploads themselves, and copies between repos."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import time
import uuid
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from .. import access, commits, repos
from ..errors import HttpError, bad_request
from ..objects import Mismatch
from ..records import Repo
from .call import Answer, Call, route, streaming_route

URL_SECONDS = 24 * 3600
WRITE_BLOCK = 1 << 20


def batch(call: Call) -> Answer:
    """POST /{id}.git/info/lfs/objects/batch."""
    repo = call.repo()
    access.require_discussion_write(call.site.db, call.viewer, repo, "upload to it")
    body = call.json
    if body.get("operation") != "upload":
        raise bad_request("Only uploads are answered here: download files through /resolve/")
    sizes = (item.get("size", 0) for item in body.get("objects", []))
    access.require_quota(call.site.db, repo, sum(size for size in sizes if isinstance(size, int)))
    multipart = "multipart" in body.get("transfers", [])
    objects = [_upload_action(call, repo, item, multipart) for item in body.get("objects", [])]
    large = multipart and any("chunk_size" in o.get("actions", {}).get("upload", {}).get("header", {}) for o in objects)
    return {"transfer": "multipart" if large else "basic", "objects": objects}


def _upload_action(call: Call, repo: Repo, item: dict[str, Any], multipart: bool) -> dict[str, Any]:
    oid, size = str(item.get("oid", "")), int(item.get("size", -1))
    answer: dict[str, Any] = {"oid": oid, "size": size}
    if len(oid) != 64 or not all(c in "0123456789abcdef" for c in oid) or size < 0:
        return answer | {"error": {"code": 422, "message": "The oid must be a sha256 and the size a number"}}
    query = "SELECT 1 FROM holding WHERE repo = ? AND sha256 = ?"
    if call.site.db.read.execute(query, (repo.id, oid)).fetchone() and call.site.objects.has(oid):
        return answer
    claims: dict[str, str | int] = {"oid": oid, "size": size, "repo": repo.id, "until": int(time.time()) + URL_SECONDS}
    part_size = call.site.part_size
    if multipart and size > part_size:
        claims |= {"upload": uuid.uuid4().hex, "part": part_size}
        header = {"chunk_size": str(part_size)}
        for number in range(1, math.ceil(size / part_size) + 1):
            signature = call.site.sign(put="part", number=number, **claims)
            header[f"{number:05d}"] = f"{call.cdn}/upload?signature={signature}"
        complete = f"{call.origin}/api/complete_multipart?signature={call.site.sign(put='complete', **claims)}"
        return answer | {"actions": {"upload": {"href": complete, "header": header}}}
    upload = {"href": f"{call.cdn}/upload?signature={call.site.sign(put='whole', **claims)}"}
    verify = {"href": f"{call.origin}/{repo.web_path}.git/info/lfs/objects/verify"}
    return answer | {"actions": {"upload": upload, "verify": verify}}


def _claims(call: Call, *kinds: str) -> dict[str, Any]:
    claims = call.site.check(call.query.get("signature", ""))
    if claims is None or claims.get("put") not in kinds:
        raise HttpError(403, "AccessDenied: the signature of this URL is invalid or has expired")
    return dict(claims)


async def upload(call: Call, request: Request) -> Answer:
    """PUT on the second origin: a whole object, or one part of it, straight to disk."""
    claims = _claims(call, "whole", "part")
    if claims["put"] == "whole":
        temporary = call.site.objects.temporary()
        try:
            digest = await _receive(request, temporary, 0, claims["size"])
            await run_in_threadpool(_adopt, call, claims, temporary, digest)
        finally:
            temporary.unlink(missing_ok=True)
        return Response(headers={"ETag": f'"{digest}"'})
    at = (claims["number"] - 1) * claims["part"]
    expected = min(claims["part"], claims["size"] - at)
    digest = await _receive(request, call.site.objects.temporary(claims["upload"]), at, expected)
    return Response(headers={"ETag": f'"{digest}"'})


async def _receive(request: Request, target: Path, at: int, expected: int) -> str:
    """Write a body into a file from offset `at`; its sha256. Parts of one object may arrive side by side."""
    digest, received = hashlib.sha256(), 0
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        block = bytearray()
        async for chunk in request.stream():
            block += chunk
            if len(block) >= WRITE_BLOCK:
                received += await asyncio.to_thread(_write, descriptor, bytes(block), at + received, digest)
                block.clear()
            if received > expected:
                break
        received += await asyncio.to_thread(_write, descriptor, bytes(block), at + received, digest)
    finally:
        os.close(descriptor)
    if received != expected:
        raise bad_request(f"IncompleteBody: expected {expected} bytes, got {received}")
    return digest.hexdigest()


def _write(descriptor: int, block: bytes, at: int, digest: Any) -> int:
    digest.update(block)
    written = 0
    while written < len(block):
        written += os.pwrite(descriptor, block[written:], at + written)
    return len(block)


def _adopt(call: Call, claims: dict[str, Any], temporary: Path, digest: str | None) -> None:
    try:
        call.site.objects.adopt(temporary, claims["oid"], claims["size"], digest)
    except FileNotFoundError as error:
        raise bad_request("NoSuchUpload: no part of this upload has arrived") from error
    except Mismatch as error:
        raise bad_request(f"BadDigest: {error}") from error
    with call.site.db.write() as rows:
        rows.execute("INSERT OR REPLACE INTO holding VALUES (?, ?, ?)", (claims["repo"], claims["oid"], claims["size"]))


def complete(call: Call) -> Answer:
    """POST of the list of parts: the object is checked as a whole before it counts as uploaded."""
    claims = _claims(call, "complete")
    held = "SELECT 1 FROM holding WHERE repo = ? AND sha256 = ?"
    # Asked again after a lost answer: the parts are gone, the object is here.
    if not call.site.db.read.execute(held, (claims["repo"], claims["oid"])).fetchone():
        count = math.ceil(claims["size"] / claims["part"])
        numbers = sorted(int(part.get("partNumber", 0)) for part in call.json.get("parts", []))
        if numbers != list(range(1, count + 1)):
            raise bad_request(f"InvalidPart: expected parts 1 to {count}")
        _adopt(call, claims, call.site.objects.temporary(claims["upload"]), None)
    return {"success": True, "oid": claims["oid"]}


def verify(call: Call) -> Answer:
    """POST …/objects/verify: is the object here, at that size?"""
    repo = call.repo()
    body = call.json
    row = call.site.db.read.execute(
        "SELECT size FROM holding WHERE repo = ? AND sha256 = ?", (repo.id, str(body.get("oid")))
    ).fetchone()
    if row is None or row["size"] != body.get("size"):
        raise HttpError(404, "The object was not uploaded, or has another size")
    return {"success": True}


def duplicate(call: Call) -> Answer:
    """POST …/lfs-files/duplicate: let another repo hold objects of this one."""
    source = call.repo_to_open()
    body = call.json
    target_name = body.get("target", {})
    target = repos.get(call.site.db, call.viewer, target_name.get("type", "model"), str(target_name.get("name")))
    access.require_discussion_write(call.site.db, call.viewer, target, "copy files to it")
    failed = []
    for file in body.get("files", []):
        size = commits.hold(call.site, source, str(file.get("sha256")))
        if size is None:
            failed.append({"sha256": file.get("sha256"), "error": f"{source.name} does not hold this file"})
        else:
            commits.grant(call.site, target, str(file["sha256"]), size)
    return {"failed": failed}


ROUTES: list[BaseRoute] = [
    route("/api/{kind:kind}/{repo:repo}/lfs-files/duplicate", duplicate, "POST"),
    route("/{web:web}{repo:repo}.git/info/lfs/objects/batch", batch, "POST"),
    route("/{web:web}{repo:repo}.git/info/lfs/objects/verify", verify, "POST"),
    route("/api/complete_multipart", complete, "POST"),
]
CDN_ROUTES: list[BaseRoute] = [streaming_route("/upload", upload, "PUT")]
