"""What reading and writing share: the endpoint, two tokens, one cache, patience, and the bytes of a file."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_token, hf_hub_url, set_client_factory
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # re-exported lazily
    build_hf_headers,
    disable_progress_bars,
    hf_raise_for_status,
    http_stream_backoff,
    logging,
)

from bot.errors import Forbidden, NotFound, Outside
from bot.events import Emit
from bot.hub.errors import Where, translate_errors
from bot.hub.names import scratch_for
from bot.hub.response_shapes import CheckedApi
from bot.hub.retries import PAUSES, Patience, Step, rest
from bot.hub.session import session
from bot.untrusted.redact import know, redact

T = TypeVar("T")
Token = str | bool | None  # None: the ecosystem's own lookup (HF_TOKEN, `hf auth login`, OIDC); False: none at all


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A file of a commit: `oid` is git's sha1 of the blob, `sha256` that of the content, known for LFS files only."""

    size: int
    oid: str
    sha256: str | None


class Connection:
    """A connection to one Hub. Nothing is asked of it until a method is called."""

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        read_token: Token = None,
        write_token: Token = None,
        cache_dir: Path | str | None = None,
        patience: tuple[float, ...] = PAUSES,
        sleep: Callable[[float], None] = rest,
    ) -> None:
        """Tokens default to the ecosystem's lookup, and the read token to the write token where only that is given.

        `patience`: seconds before each further try, when the Hub is busy or away; `sleep` waits them. See `bot.hub.retries`.
        """
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.address = redact(self.endpoint)  # as it may be shown: without a user and a password
        self.cache_dir = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().resolve()
        self.patience = Patience(patience, sleep)
        self.current_names: dict[str, str] = {}  # a repo as it was called, and as the Hub calls it now
        for token in (read_token, write_token):
            know(token)
        inputs_token = read_token if read_token is not None else write_token
        self.inputs = CheckedApi(endpoint=self.endpoint, token=inputs_token, library_name="adapter-merge")
        self.outputs = CheckedApi(endpoint=self.endpoint, token=write_token, library_name="adapter-merge")
        _prepare_client()

    @property
    def scratch(self) -> Path:
        """A private folder of ours beside the download cache, where that may be."""
        return scratch_for(self.cache_dir)

    def signed_in(self, api: HfApi) -> bool:
        """Whether calls of this api carry a token."""
        if api.token is None or api.token is True:
            with translate_errors(Where(doing="look up the Hub token", endpoint=self.address)):
                token = get_token()
            know(token)
            return token is not None
        return api.token is not False

    def where(self, doing: str, repo: str | None = None, revision: str | None = None, file: str | None = None) -> Where:
        """The words for a read by the inputs' token."""
        signed_in = self.signed_in(self.inputs)
        return Where(doing=doing, endpoint=self.address, repo=repo, revision=revision, file=file, signed_in=signed_in)

    def where_writing(self, doing: str, repo: str | None = None, revision: str | None = None) -> Where:
        """The words for a call by the target's token."""
        signed_in = self.signed_in(self.outputs)
        return Where(
            doing=doing, endpoint=self.address, repo=repo, revision=revision, signed_in=signed_in, writing=True
        )

    def tell(self, emit: Emit) -> None:
        """From now on, long waits are told to `emit`."""
        self.patience.tell = emit

    def patiently(
        self,
        where: Where,
        call: Callable[[], T],
        landed: Callable[[], T | None] | None = None,
        *,
        publishing: bool = False,
    ) -> T:
        """`call`, repeated while the Hub is busy: briefly, or, where it writes to the target or is `publishing`, for minutes.

        `landed`: of a call that must not be done twice, looks what became of the last try: done all the same, and only the
        answer was lost (its result), or not (None).
        """
        step = Step(self.patience, where, publishing=publishing or where.writing)
        tries = step.tries()
        while True:
            began = time.monotonic()
            try:
                with translate_errors(where), step:
                    return call()
            except Outside as error:
                may_retry = not step.spent and tries.wait(error, time.monotonic() - began)
                # Not only where no answer came: "already there", or "moved", may speak of a try before.
                result = None if landed is None or isinstance(error, Forbidden | NotFound) else landed()
                if result is not None:
                    return result
                if not may_retry:
                    raise

    def tree(self, api: HfApi, where: Where, repo: str, revision: str) -> dict[str, Blob]:
        """All files of a repo at a revision."""
        listed = self.patiently(where, lambda: list(api.list_repo_tree(repo, recursive=True, revision=revision)))
        return {
            item.path: Blob(size=item.size, oid=item.blob_id, sha256=item.lfs.sha256 if item.lfs else None)
            for item in listed
            if isinstance(item, RepoFile)
        }

    def span(self, api: HfApi, where: Where, stop: int, start: int = 0) -> bytes:
        """Bytes `start` to `stop` of `where.file`, over the network, without fetching the rest of the file."""
        assert where.repo is not None
        assert where.file is not None
        url = hf_hub_url(where.repo, where.file, revision=where.revision, endpoint=self.endpoint)
        headers = build_hf_headers(token=api.token, library_name="adapter-merge")
        return self.patiently(where, functools.partial(_read_span, url, headers, start, stop))

    def text(self, api: HfApi, where: Where, limit: int = 16_000_000) -> bytes | None:
        """A whole small file, straight from the Hub; None where the revision does not have it."""
        assert where.repo is not None
        assert where.file is not None
        url = hf_hub_url(where.repo, where.file, revision=where.revision, endpoint=self.endpoint)
        headers = build_hf_headers(token=api.token, library_name="adapter-merge")

        def read() -> bytes | None:
            try:
                return _read_span(url, headers, 0, limit)
            except RemoteEntryNotFoundError:
                return None

        return self.patiently(where, read)


@functools.cache
def _prepare_client() -> None:
    """Once per process: progress is told as our events and failures in our words, so the client stays silent."""
    disable_progress_bars()
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its warnings also spell out signed URLs
    set_client_factory(session)


def _read_span(url: str, headers: dict[str, str], start: int, stop: int) -> bytes:
    """`stop` is exclusive; fewer bytes come back where the file ends before it.

    The redirect to the storage's signed URL is followed by httpx, which drops Authorization when the origin changes.
    """
    if stop <= start:
        return b""
    ranged = headers | {"Range": f"bytes={start}-{stop - 1}"}
    with http_stream_backoff("GET", url, headers=ranged, max_retries=0, follow_redirects=True) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        # A server may ignore Range (200, from byte 0): skip what was not asked for, and stop when there is enough.
        skip = 0 if response.status_code == 206 else start
        content = b"".join(_until(response.iter_bytes(), skip + stop - start))
    return content[skip : skip + stop - start]


def _until(pieces: Iterator[bytes], enough: int) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        enough -= len(piece)
        if enough <= 0:
            return
