"""One API call as a route sees it, and how routes become ASGI endpoints."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote

from starlette.concurrency import run_in_threadpool
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import access, accounts, repos
from ..errors import HttpError, bad_request
from ..records import Repo, RepoKind, Viewer
from ..site import Site

KINDS: Mapping[str, RepoKind] = {"models": "model", "datasets": "dataset", "spaces": "space"}
BODY_LIMIT = 64 << 20


class KindConvertor(StringConvertor):
    """`models`, `datasets` or `spaces`."""

    regex = "models|datasets|spaces"


class PrefixConvertor(StringConvertor):
    """What stands before a repo id in web addresses: nothing for models."""

    regex = "(?:datasets/|spaces/)?"


class RepoConvertor(StringConvertor):
    """A repo id: `namespace/name`, or one segment (which no repo here has, but clients may ask for)."""

    regex = "[^/]+(?:/[^/]+)?"


# Routes are matched on the raw, still quoted path, so that `refs%2Fpr%2F1` stays one segment.
register_url_convertor("kind", KindConvertor())
register_url_convertor("web", PrefixConvertor())
register_url_convertor("repo", RepoConvertor())


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request: unquoted path parameters, the viewer, and the whole (small) body."""

    site: Site
    viewer: Viewer
    params: Mapping[str, str]
    query: QueryParams
    headers: Headers
    method: str
    path: str
    origin: str
    cdn: str
    body: bytes

    @property
    def public(self) -> str:
        """The address that links to this Hub's pages begin with."""
        return self.site.public or self.origin

    @property
    def json(self) -> dict[str, Any]:
        """The body as a JSON object ({} where it is empty)."""
        if not self.body.strip():
            return {}
        try:
            content = json.loads(self.body)
        except ValueError as error:
            raise bad_request("The body is not JSON") from error
        if not isinstance(content, dict):
            raise bad_request("The body is not a JSON object")
        return content

    @property
    def fields(self) -> dict[str, list[str]]:
        """The body as form fields or as JSON, whichever it is: every field a list of strings."""
        if "json" in self.headers.get("content-type", ""):
            return {k: [str(x) for x in v] if isinstance(v, list) else [str(v)] for k, v in self.json.items()}
        return parse_qs(self.body.decode())

    @property
    def kind(self) -> RepoKind:
        """The repo type in the path, `models` form or web form."""
        return KINDS[self.params.get("kind") or (self.params.get("web") or "models").rstrip("/")]

    def number(self, key: str, default: int) -> int:
        """A whole number in the query."""
        value = self.query.get(key)
        return int(value) if value is not None and value.isdigit() else default

    def repo(self) -> Repo:
        """The repo in the path, seen by the viewer."""
        return repos.get(self.site.db, self.viewer, self.kind, self.params["repo"])

    def repo_to_write(self, what: str) -> Repo:
        """The repo in the path, which the viewer may change; `what` completes "needed to …"."""
        repo = self.repo()
        access.require_write(self.site.db, self.viewer, repo, what)
        return repo

    def repo_to_open(self) -> Repo:
        """The repo in the path, whose files the viewer may read."""
        repo = self.repo()
        access.require_files(self.site.db, self.viewer, repo, self.origin)
        return repo

    @property
    def user(self) -> str:
        """The viewer's name; refuses nobody."""
        if self.viewer.user is None:
            raise HttpError(401, "Invalid username or password.")
        return self.viewer.user


Answer = Response | dict[str, Any] | list[Any] | None
Endpoint = Callable[[Call], Answer]
StreamingEndpoint = Callable[[Call, Request], Awaitable[Answer]]


def route(path: str, endpoint: Endpoint, *methods: str) -> Route:
    """A route whose body is small: read first, then answered in a worker thread."""

    async def serve(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_LIMIT:
                raise HttpError(413, "The request body is too large")
        return await run_in_threadpool(_answer, endpoint, request, bytes(body))

    return Route(path, serve, methods=list(methods or ("GET",)))


def streaming_route(path: str, endpoint: StreamingEndpoint, *methods: str) -> Route:
    """A route that reads its (large) body itself."""

    async def serve(request: Request) -> Response:
        call = await run_in_threadpool(make_call, request, b"")
        return as_response(await endpoint(call, request))

    return Route(path, serve, methods=list(methods))


def _answer(endpoint: Endpoint, request: Request, body: bytes) -> Response:
    return as_response(endpoint(make_call(request, body)))


def as_response(answer: Answer) -> Response:
    """JSON for plain values, responses as they are."""
    if isinstance(answer, Response):
        return answer
    # Card metadata may hold YAML dates: default=str, as the Hub shows them.
    return Response(json.dumps(answer, default=str), media_type="application/json")


def make_call(request: Request, body: bytes) -> Call:
    """The call that a request makes."""
    site: Site = request.app.state.site
    # Addresses are built from the name the client used, so that they work from inside a container too.
    host = request.url.hostname or "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    return Call(
        site=site,
        viewer=accounts.viewer_of(site.db, request.headers.get("authorization")),
        params={key: unquote(str(value)) for key, value in request.path_params.items()},
        query=request.query_params,
        headers=request.headers,
        method=request.method,
        path=str(request.scope["path"]),
        origin=f"{request.url.scheme}://{host}:{request.url.port or 80}{site.prefix}",
        cdn=f"{request.url.scheme}://{host}:{site.cdn_port}",
        body=body,
    )


def refusal(_request: Request, error: Exception) -> Response:
    """A refusal as the client expects it: the headers decide, the body repeats the sentence."""
    assert isinstance(error, HttpError)
    headers = dict(error.headers)
    headers["X-Error-Message"] = error.message.encode("ascii", "replace").decode().replace("\n", " ")
    if error.code:
        headers["X-Error-Code"] = error.code
    return JSONResponse({"error": error.message}, status_code=error.status, headers=headers)
