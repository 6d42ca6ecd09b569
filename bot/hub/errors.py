"""Errors: whatever huggingface_hub raises leaves this package as one of bot.errors. `TABLE` is the translation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    OIDCError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from bot.errors import AdapterMergeError
from bot.hub import network, sentences
from bot.hub.sentences import HubBusy, NoDiscussions, Unserved, Where, plain

__all__ = ["HubBusy", "NoDiscussions", "Unreached", "Unserved", "Where", "translate_errors", "plain", "translate"]


class Unreached(httpx2.TransportError):
    """No answer came; `__cause__` says why. The client does not retry errors of this class by itself."""


@contextmanager
def translate_errors(where: Where) -> Iterator[None]:
    """Translate everything that the client may raise inside; our own errors and our bugs pass unchanged."""
    try:
        yield
    except AdapterMergeError:
        raise
    except CAUGHT as error:
        translated = translate(error, where)
        if translated is None:
            raise
        raise translated from error
    except MISREAD as error:
        if not _while_reading(error):
            raise
        raise sentences.misread(error, where, _last_words()) from error


def _while_reading(error: BaseException) -> bool:
    """Whether it was raised in the client, or in one of our modules that read its answers; anywhere else it is our own bug."""
    step = error.__traceback__
    while step is not None:
        if str(step.tb_frame.f_globals.get("__name__")).startswith(READERS):
            return True
        step = step.tb_next
    return False


def remember_response(response: httpx2.Response) -> None:
    """Remember the last response in this thread: the error about an answer that cannot be understood quotes it."""
    _LAST.response = response


def _last_words() -> str:
    response = getattr(_LAST, "response", None)
    try:
        return str(response.text[:2000]) if response is not None else ""
    except (httpx2.StreamError, RuntimeError, LookupError):  # a body that was not read, or has gone by
        return ""


def translate(error: BaseException, where: Where) -> AdapterMergeError | None:
    """The sentence for a client exception, or None where there is none: then it is our bug."""
    error = _cause(error)
    for kind, sentence in TABLE:
        if isinstance(error, kind):
            translated = sentence(error, where)
            if translated is not None:
                return translated
    return None


def _cause(error: BaseException) -> BaseException:
    """The client wraps what really happened ("cannot find the file in the cache", "error while uploading")."""
    wrappers = (LocalEntryNotFoundError, RevisionResolutionError, RuntimeError, Unreached)
    while isinstance(error, wrappers) and error.__cause__ is not None:
        error = error.__cause__
    return error


# First match wins: the special before the general.
TABLE: tuple[tuple[type[BaseException], Callable[[Any, Where], AdapterMergeError | None]], ...] = (
    (GatedRepoError, sentences.gated),
    (DisabledRepoError, sentences.disabled),
    (RepositoryNotFoundError, sentences.no_repo),
    (RevisionNotFoundError, sentences.no_revision),
    (RemoteEntryNotFoundError, sentences.no_file),
    (HfHubHTTPError, sentences.answered),
    (HFValidationError, sentences.misnamed),
    (OfflineModeIsEnabled, sentences.offline),
    (RevisionResolutionError, sentences.not_cached),
    (LocalEntryNotFoundError, sentences.not_cached),
    (EntryNotFoundError, sentences.no_file),
    (FileMetadataError, sentences.no_metadata),
    (LocalTokenNotFoundError, sentences.no_token),
    (OIDCError, sentences.no_oidc),
    (httpx2.ConnectTimeout, network.unreachable),
    (httpx2.TimeoutException, sentences.slow),
    (httpx2.HTTPError, network.unreachable),
    (RuntimeError, sentences.transfer),
    (ConnectionError, network.unreachable),
    (TimeoutError, sentences.slow),
    (OSError, sentences.disk),
)
# What reading an answer of another shape comes to, in the client or here.
MISREAD = (KeyError, IndexError, TypeError, AttributeError, ValueError, AssertionError, RecursionError)
READERS = (
    "huggingface_hub", "httpx2", "json", "bot.hub.response_shapes", "bot.hub.write", "bot.hub.rights", "bot.hub.upload",
    "bot.hub.pulls", "bot.hub.history", "bot.hub.tags", "bot.hub.talk", "bot.hub.jobs", "bot.hub.webhooks",
)  # fmt: skip
_LAST = threading.local()
CAUGHT = tuple({kind for kind, _ in TABLE})
