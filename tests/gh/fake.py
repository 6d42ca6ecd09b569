"""A GitHub for tests: real HTTP, and every request and every answer held against GitHub's own OpenAPI description."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import re
import socket
import threading
import time
import traceback
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uvicorn
from openapi_core import OpenAPI
from openapi_core.contrib.starlette import StarletteOpenAPIRequest, StarletteOpenAPIResponse
from openapi_core.exceptions import OpenAPIError
from openapi_core.templating.responses.exceptions import ResponseNotFound
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tests.gh.actions import ACTIONS_ROUTES, STARTS, FakeActions

HERE = Path(__file__).parent
SPEC = json.loads((HERE / "openapi.json").read_bytes())
TOKEN = "ghs_aTokenForTests0123456789"
REPO = "/repos/{owner}/{repo}"
REPO_PATH = r"^/repos/[^/]+/[^/]+"
PERMISSIONS = {
    "check-runs": "checks", "issues": "pull-requests", "releases": "contents", "statuses": "statuses", "actions": "actions",
    "dispatches": "contents", "contents": "contents",
}  # fmt: skip


@dataclass
class Kept:
    """What was written to the fake."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    comments: list[dict[str, Any]] = field(default_factory=list)
    releases: list[dict[str, Any]] = field(default_factory=list)
    assets: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    statuses: list[dict[str, Any]] = field(default_factory=list)


@functools.cache
def description() -> OpenAPI:
    """GitHub's description, for any port: to check it takes longer than most tests."""
    servers = [{"url": "http://127.0.0.1:{port}", "variables": {"port": {"default": "80"}}}]
    return OpenAPI.from_dict({**SPEC, "servers": servers})


class FakeGitHub:
    """`with FakeGitHub() as github:`; then `github.url` is a GITHUB_API_URL.

    `denied`: permissions that the token lacks (checks, contents …). `broken`: a status for every answer. `actions`: its workflow.
    `skew`: seconds that its clock is ahead of ours. `violations`: what broke the description, on either side.
    """

    def __init__(self) -> None:
        self.kept = Kept()
        self.denied: set[str] = set()
        self.broken: int | None = None
        self.violations: list[str] = []
        self.actions = FakeActions()
        self.skew = 0.0
        self._blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self._number = 1000

    def __enter__(self) -> FakeGitHub:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            self._serve, interface="asgi3", lifespan="off", log_level="critical", access_log=False, date_header=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        self._openapi = description()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()

    # --- one request ----------------------------------------------------------------------------------------------

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Quoted, so that a tag with a slash stays one part of the path; so does a file's path, which GitHub takes either way.
        path = re.sub(
            f"({REPO_PATH[1:]}/contents/)(.+)", lambda at: at[1] + at[2].replace("/", "%2F"), scope["raw_path"].decode()
        )
        request = Request(scope | {"path": path}, receive)
        body = await request.body()
        starts = request.method == "POST" and re.fullmatch(REPO_PATH + f"({STARTS})", request.url.path)
        if starts and self.actions.slow:
            await asyncio.sleep(self.actions.slow)
        try:
            answer = self._answer(request, body)
        except Exception:
            self.violations.append(traceback.format_exc())
            answer = _refused(500, "The fake is broken.")
        answer.headers["date"] = formatdate(time.time() + self.skew, usegmt=True)
        if starts and self.actions.dropped:
            self.actions.dropped -= 1
            # Shorter than it says to be, so that the server closes the connection in the middle.
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
            await send({"type": "http.response.body", "body": b"{"})
            return
        await answer(scope, receive, send)

    def _answer(self, request: Request, body: bytes) -> Response:
        path = request.url.path
        if path.startswith("/elsewhere/"):
            return self._blob(request)
        if request.headers.get("authorization") not in (f"token {TOKEN}", f"Bearer {TOKEN}"):
            return _refused(401, "Bad credentials")
        if self.broken is not None:
            return _refused(self.broken, "Server Error")
        if {permission for part, permission in PERMISSIONS.items() if path.split("/")[4:5] == [part]} & self.denied:
            return _refused(403, "Resource not accessible by integration")
        for index, (verb, pattern, status, headers, message) in enumerate(self.actions.refused):
            if verb == request.method and re.fullmatch(REPO_PATH + pattern, path):
                del self.actions.refused[index]
                return JSONResponse({"message": message}, status_code=status, headers=headers)
        if self.actions.renamed and not path.startswith(f"/repos/{self.actions.renamed}"):
            moved = f"{self.url}/repos/{self.actions.renamed}{re.sub(REPO_PATH, '', path)}"
            status, words = (301, "Moved Permanently") if request.method == "GET" else (307, "Temporary Redirect")
            return JSONResponse({"message": words, "url": moved}, status_code=status, headers={"location": moved})
        asked = StarletteOpenAPIRequest(request, body)
        try:
            self._openapi.validate_request(asked)
        except OpenAPIError as error:
            return self._violated(422, "request", request, error)
        found = json.loads(body) if body and "json" in request.headers.get("content-type", "") else body
        self.requests.append((request.method, path, found))
        answer = self._route(request, found)
        try:
            data = answer.body if answer.body else None
            self._openapi.validate_response(asked, StarletteOpenAPIResponse(answer, bytes(data) if data else None))
        except OpenAPIError as error:
            if answer.status_code >= 400 and isinstance(error.__cause__ or error, ResponseNotFound):
                return answer  # the description has no failures of this path
            return self._violated(500, "answer", request, error)
        return answer

    def _violated(self, status: int, what: str, request: Request, error: OpenAPIError) -> Response:
        causes = [str(error), *map(str, getattr(error.__cause__, "schema_errors", [error.__cause__]))]
        text = f"{what} of {request.method} {request.url.path}: {' | '.join(causes)}"
        self.violations.append(text)
        return _refused(status, text)

    def _route(self, request: Request, found: Any) -> Response:
        path = re.sub(REPO_PATH, "", request.url.path)
        for verb, pattern, answer in (*ROUTES, *ACTIONS_ROUTES):
            match = re.fullmatch(pattern, path)
            if match and verb == request.method:
                return answer(self, request, found, *match.groups())
        return _refused(404, "Not Found")

    # --- what it does ---------------------------------------------------------------------------------------------

    def number(self) -> int:
        """A new id."""
        self._number += 1
        return self._number

    def address(self, request: Request, rest: str) -> str:
        """A URL of this repo on the fake."""
        owner, repo = request.url.path.split("/")[2:4]
        return f"{self.url}/repos/{owner}/{repo}{rest}"

    def example(self, path: str, verb: str, status: int) -> dict[str, Any]:
        """GitHub's own example of an answer for a path of a repo."""
        return example(f"{REPO}{path}", verb, status)

    def json(self, content: Any) -> Response:
        """An answer."""
        return JSONResponse(content)

    def empty(self) -> Response:
        """It is done, and there is nothing to say."""
        return Response(status_code=204)

    def refused(self, status: int, message: str) -> Response:
        """It is not done."""
        return _refused(status, message)

    def elsewhere(self, content: bytes) -> Response:
        """A redirect to bytes on a host of their own, which are had by their address alone."""
        key = str(self.number())
        self._blobs[key] = content
        return Response(status_code=302, headers={"location": f"{self.url}/elsewhere/{key}?sig=secret"})

    def _blob(self, request: Request) -> Response:
        if "authorization" in request.headers:
            self.violations.append("The token was sent to where the bytes lie.")
        return Response(self._blobs[request.url.path.rpartition("/")[2]], media_type="application/octet-stream")

    def add_comment(self, body: str, *, user: str, kind: str = "User", association: str = "NONE") -> dict[str, Any]:
        """A comment that was there before."""
        made = example(f"{REPO}/issues/{{issue_number}}/comments", "post", 201)
        made["id"] = self.number()
        made |= {"body": body, "author_association": association, "issue": 1}
        made["user"] |= {"login": user, "type": kind}
        self.kept.comments.append(made)
        return made

    def add_release(self, tag: str, body: str) -> dict[str, Any]:
        """A release that somebody wrote."""
        made = example(f"{REPO}/releases", "post", 201)
        number = self.number()
        url = f"{self.url}/repos/octo/adapters/releases/{number}"
        made |= {"id": number, "tag_name": tag, "name": tag, "body": body, "url": url, "assets": []}
        made |= {"upload_url": f"{url}/assets{{?name,label}}", "assets_url": f"{url}/assets", "draft": False}
        self.kept.releases.append(made)
        self.kept.assets[number] = []
        return made


def example(path: str, verb: str, status: int) -> dict[str, Any]:
    """GitHub's own example of an answer."""
    content = SPEC["paths"][path][verb]["responses"][str(status)]["content"]["application/json"]
    (first, *_) = content["examples"].values()
    if "$ref" in first:
        first = SPEC["components"]["examples"][first["$ref"].rpartition("/")[2]]
    found = copy.deepcopy(first["value"])
    return found[0] if isinstance(found, list) else found


def _refused(status: int, message: str) -> Response:
    return JSONResponse({"message": message, "documentation_url": "https://docs.github.com/rest"}, status_code=status)


def _add_check(self: FakeGitHub, request: Request, found: Any) -> Response:
    made = example(f"{REPO}/check-runs", "post", 201)
    number = self.number()
    made |= {"id": number, "url": self.address(request, f"/check-runs/{number}")}
    made |= {key: found[key] for key in ("name", "head_sha", "status", "conclusion", "external_id") if key in found}
    made |= {"html_url": f"https://github.com/octo/adapters/runs/{number}"}
    self.kept.checks.append(found | {"id": number, "requests": 1})
    return JSONResponse(made, status_code=201)


def _edit_check(self: FakeGitHub, request: Request, found: Any, number: str) -> Response:
    (kept,) = (check for check in self.kept.checks if check["id"] == int(number))
    kept["output"]["annotations"] += found["output"]["annotations"]
    kept["requests"] += 1
    made = example(f"{REPO}/check-runs/{{check_run_id}}", "patch", 200)
    return JSONResponse(made | {"id": int(number), "url": self.address(request, f"/check-runs/{number}")})


def _list_comments(self: FakeGitHub, request: Request, found: Any, number: str) -> Response:
    ours = [c for c in self.kept.comments if c["issue"] in (1, int(number))]
    return JSONResponse([_shown(comment) for comment in ours])


def _add_comment(self: FakeGitHub, request: Request, found: Any, number: str) -> Response:
    made = self.add_comment(found["body"], user="github-actions[bot]", kind="Bot")
    made |= {"issue": int(number), "url": self.address(request, f"/issues/comments/{made['id']}")}
    return JSONResponse(_shown(made), status_code=201)


def _edit_comment(self: FakeGitHub, request: Request, found: Any, number: str) -> Response:
    (kept,) = (comment for comment in self.kept.comments if comment["id"] == int(number))
    kept |= {"body": found["body"], "edits": kept.get("edits", 0) + 1}
    return JSONResponse(_shown(kept))


def _shown(comment: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in comment.items() if key not in ("issue", "edits")}


def _find_release(self: FakeGitHub, request: Request, found: Any, tag: str) -> Response:
    for release in self.kept.releases:
        if release["tag_name"] == unquote(tag):
            return JSONResponse(release)
    return _refused(404, "Not Found")


def _add_release(self: FakeGitHub, request: Request, found: Any) -> Response:
    made = self.add_release(found["tag_name"], found.get("body", ""))
    return JSONResponse(made, status_code=201)


def _edit_release(self: FakeGitHub, request: Request, found: Any, number: str) -> Response:
    (kept,) = (release for release in self.kept.releases if release["id"] == int(number))
    kept |= {key: found[key] for key in ("body", "name", "draft", "prerelease") if key in found}
    return JSONResponse(kept)


def _list_assets(self: FakeGitHub, request: Request, found: Any, number: str) -> Response:
    return JSONResponse(self.kept.assets[int(number)])


def _add_asset(self: FakeGitHub, request: Request, found: Any, number: str) -> Response:
    name = request.query_params["name"]
    if any(asset["name"] == name for asset in self.kept.assets[int(number)]):
        return _refused(422, "already_exists")
    made = example(f"{REPO}/releases/{{release_id}}/assets", "post", 201)
    key = self.number()
    made |= {"id": key, "name": name, "url": self.address(request, f"/releases/assets/{key}"), "size": len(found)}
    self.kept.assets[int(number)].append(made)
    self.kept.files[name] = found
    return JSONResponse(made, status_code=201)


def _drop_asset(self: FakeGitHub, request: Request, found: Any, number: str) -> Response:
    for assets in self.kept.assets.values():
        assets[:] = [asset for asset in assets if asset["id"] != int(number)]
    return Response(status_code=204)


def _set_status(self: FakeGitHub, request: Request, found: Any, sha: str) -> Response:
    made = example(f"{REPO}/statuses/{{sha}}", "post", 201)
    self.kept.statuses.append(found | {"sha": sha})
    return JSONResponse(made | found, status_code=201)


ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("POST", r"/check-runs", _add_check),
    ("PATCH", r"/check-runs/(\d+)", _edit_check),
    ("GET", r"/issues/(\d+)/comments", _list_comments),
    ("POST", r"/issues/(\d+)/comments", _add_comment),
    ("PATCH", r"/issues/comments/(\d+)", _edit_comment),
    ("POST", r"/releases", _add_release),
    ("GET", r"/releases/tags/([^/]+)", _find_release),
    ("PATCH", r"/releases/(\d+)", _edit_release),
    ("GET", r"/releases/(\d+)/assets", _list_assets),
    ("POST", r"/releases/(\d+)/assets", _add_asset),
    ("DELETE", r"/releases/assets/(\d+)", _drop_asset),
    ("POST", r"/statuses/([0-9a-f]+)", _set_status),
)
