"""The HTTP client below huggingface_hub: time limits, and further tries of what may be sent again."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx2
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # re-exported lazily
from huggingface_hub.utils._http import hf_request_event_hook

from bot.hub.errors import Unreached, remember_response, translate
from bot.hub.network import misconfigured
from bot.hub.retries import Step, under_way
from bot.hub.sentences import is_passing

# What comes to the same however often it is sent: the Hub looks what is there, or the same bytes take the same place.
REPEATABLE = re.compile(
    r"/preupload/|/info/lfs/objects/|/api/complete_multipart|/api/validate-yaml|/comment/[^/]+/edit$"
)
LONG_WORK = re.compile(r"/commit/|/info/lfs/objects/verify|/api/complete_multipart")
PIECE = 1 << 16
# Seconds. The client's own default would wait for a silent server for ever, and some of its calls say so themselves.
# The longer one is for uploads and commits, and less than `bot.hub.retries.MOST`: so that one that stalls is sent again.
LIMITS = httpx2.Timeout(connect=20.0, read=300.0, write=300.0, pool=None)
QUICK = httpx2.Timeout(connect=20.0, read=60.0, write=60.0, pool=None)


def session() -> Session:
    """For huggingface_hub's `set_client_factory`."""
    hooks: dict[str, Any] = {"request": [hf_request_event_hook], "response": [remember_response]}
    try:
        return Session(event_hooks=hooks, follow_redirects=True, timeout=LIMITS)
    # What SSL_CERT_FILE, HTTPS_PROXY and their like can come to.
    except (OSError, ValueError, ImportError, httpx2.InvalidURL) as error:
        raise misconfigured(error) from error


class Session(httpx2.Client):
    """What huggingface_hub sends its requests with."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._elsewhere: set[httpx2.URL] = set()  # next pages of lists, on other hosts than the lists

    def build_request(self, method: Any, url: Any, *, content: Any = None, data: Any = None, **more: Any) -> Any:
        """A request that can be sent again, and that does not wait for ever."""
        if hasattr(data, "read"):  # how the client hands over the file, or the part of one, that it uploads
            content, data = RepeatableBody(data), None
        if not isinstance(more.get("timeout"), (int, float, tuple, httpx2.Timeout)):
            long = method == "PUT" or LONG_WORK.search(httpx2.URL(url).path)
            more["timeout"] = LIMITS if long else QUICK
        return super().build_request(method, url, content=content, data=data, **more)

    def send(self, request: httpx2.Request, *, stream: bool = False, **how: Any) -> httpx2.Response:
        """Send it, again where that may help and cannot harm. A stream's reader must begin anew by itself."""
        if request.url in self._elsewhere:
            request.headers.pop("Authorization", None)
        step = under_way()
        if step is None or stream:
            return super().send(request, stream=stream, **how)
        tries = step.tries() if _is_repeatable(request) else None
        while True:
            began = time.monotonic()
            try:
                return self._answered(request, step, **how)
            except (HfHubHTTPError, Unreached) as error:
                if tries is None:
                    raise
                if not tries.wait(translate(error, step.where), time.monotonic() - began):
                    step.spent = True
                    raise

    def _answered(self, request: httpx2.Request, step: Step, **how: Any) -> httpx2.Response:
        """The answer. Raises HfHubHTTPError for one that asks to come back, Unreached where none came."""
        try:
            response = super().send(request, **how)
        except httpx2.TransportError as error:
            raise Unreached(str(error)) from error
        step.patience.answered = True
        self._note_next(response)
        if is_passing(response):
            hf_raise_for_status(response)
        return response

    def _note_next(self, response: httpx2.Response) -> None:
        """Where a list goes on at another host, remember that its next page gets no token: the client would send it anywhere."""
        following = response.links.get("next", {}).get("url")
        if following is None:
            return
        with suppress(httpx2.InvalidURL):  # which the client meets next
            url, here = httpx2.URL(following), response.request.url
            if (url.scheme, url.netloc) != (here.scheme, here.netloc) or here in self._elsewhere:
                self._elsewhere.add(url)


class RepeatableBody:
    """A request's body that is read from the same place each time it is sent."""

    def __init__(self, body: Any) -> None:
        self._body, self._start = body, body.tell()

    def __iter__(self) -> Iterator[bytes]:
        self._body.seek(self._start)
        while piece := self._body.read(PIECE):
            yield piece

    def tell(self) -> int:
        """With `seek`, how httpx finds out how long it is."""
        return int(self._body.tell())

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file."""
        return int(self._body.seek(offset, whence))


def _is_repeatable(request: httpx2.Request) -> bool:
    return request.method in ("GET", "HEAD", "PUT") or REPEATABLE.search(request.url.path) is not None
