"""What GitHub answers to a server that starts workflows, as sentences for the one who runs that server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from github import BadAttributeException, GithubException, RateLimitExceededException
from requests import RequestException
from requests.exceptions import ConnectTimeout

from bot.errors import AdapterMergeError, Forbidden, NotFound, Outside, Refused

LATER = "It is tried again later; https://www.githubstatus.com says more where it goes on."
SECONDARY = 60.0  # seconds; GitHub's own advice for a limit whose answer names no time
LONGEST = 2 * 3600.0  # seconds; a primary limit lasts an hour
BEFORE_SENDING = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError")


class RateLimited(Outside):
    """GitHub asks to come back in `seconds`."""

    def __init__(self, what: str, *, remedy: str, seconds: float) -> None:
        super().__init__(what, remedy=remedy)
        self.seconds = seconds


class Unanswered(Outside):
    """Something was to be started, and whether it was is not known."""


@contextmanager
def asking(doing: str, grant: str, *, starts: bool = False) -> Iterator[None]:
    """`doing` completes "could not …". `grant`: what a fine-grained token needs, as "Actions: read". `starts`: the call starts
    something, so that an answer that is lost leaves open whether it did; it is then Unanswered."""
    try:
        yield
    except GithubException as error:
        raise _translated(error, doing, grant, starts) from error
    except (BadAttributeException, KeyError, TypeError, ValueError, AssertionError) as error:
        # The shape of another answer, in the client or here: a proxy's page, or a repo that moved between two calls.
        kind = Unanswered if starts else Outside
        raise kind(f"Could not {doing}: GitHub's answer was not understood.", remedy="Check GITHUB_API_URL.") from error
    except RuntimeError as error:  # how the client tells of a redirect to another host
        raise Outside(f"Could not {doing}: GitHub is elsewhere.", remedy="Correct GITHUB_API_URL.") from error
    except RequestException as error:
        if starts and not _never_sent(error):
            raise Unanswered(f"Could not {doing}: GitHub's answer was lost.", remedy=LATER) from error
        raise Outside(
            f"Could not {doing}: GitHub cannot be reached ({type(error).__name__}).",
            remedy="Check the network and GITHUB_API_URL.",
        ) from error


def _never_sent(error: RequestException) -> bool:
    """Whether no connection came to be, so that nothing can have been started."""
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(error, ConnectTimeout) or type(cause).__name__ in BEFORE_SENDING


def _translated(error: GithubException, doing: str, grant: str, starts: bool) -> AdapterMergeError:
    headers, words = error.headers or {}, message_of(error)
    if error.status == 401:
        return Forbidden(
            f"Could not {doing}: GitHub does not accept the token.",
            remedy="Set GITHUB_TOKEN to one that is valid and has not expired.",
        )
    if error.status == 429 or (error.status == 403 and _is_limit(error, headers)):
        seconds = pause_of(headers)
        return RateLimited(
            f"Could not {doing}: GitHub's rate limit is reached.",
            remedy=f"It is tried again in {seconds:.0f} s, as GitHub asks.",
            seconds=seconds,
        )
    if error.status == 403 and "archived" in words:
        return Refused(
            f"Could not {doing}: the GitHub repo is archived.", remedy="Unarchive it on GitHub, or name another repo."
        )
    if error.status == 403:
        return Forbidden(
            f"Could not {doing}: the token may not do that.",
            remedy=f"Give it {grant} on this repo (fine-grained), or take a classic token with the scope repo.",
        )
    if error.status == 404:  # which GitHub also answers where a token may not even look
        return NotFound(
            f"Could not {doing}: GitHub does not show it to this token.",
            remedy=f"Check the name, and give the token {grant} on this repo.",
        )
    if error.status >= 500 and starts:
        return Unanswered(f"Could not {doing}: GitHub answered {error.status}.", remedy=LATER)
    more = f" ({words[:200]})" if words else ""
    return Outside(f"Could not {doing}: GitHub answered {error.status}{more}.", remedy=LATER)


def message_of(error: GithubException) -> str:
    """What GitHub says, on one line."""
    words: Any = error.data.get("message") if isinstance(error.data, Mapping) else None
    return " ".join(str(words or "").split())


def _is_limit(error: GithubException, headers: Mapping[str, Any]) -> bool:
    limited = isinstance(error, RateLimitExceededException)
    return limited or "retry-after" in headers or str(headers.get("x-ratelimit-remaining")) == "0"


def pause_of(headers: Mapping[str, Any]) -> float:
    """Seconds to wait, by the answer's headers. X-RateLimit-Reset is a time of GitHub's clock, as its Date is: ours has no part in it.

    Source: https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api
    """
    stated = str(headers.get("retry-after", ""))
    reset = str(headers.get("x-ratelimit-reset", ""))
    now = date_of(headers)
    if stated.isdigit():
        seconds = float(stated)
    elif stated and now is not None and (until := _time(stated)) is not None:
        seconds = until - now
    elif str(headers.get("x-ratelimit-remaining")) == "0" and reset.isdigit():
        seconds = int(reset) - (time.time() if now is None else now) + 1  # in which part of that second is not said
    else:
        seconds = SECONDARY
    return min(LONGEST, max(1.0, seconds))


def date_of(headers: Mapping[str, Any]) -> float | None:
    """GitHub's clock when it answered, in seconds since the epoch."""
    return _time(str(headers.get("date", "")))


def _time(text: str) -> float | None:
    try:
        stated: datetime = parsedate_to_datetime(text)
    except ValueError:
        return None
    return stated.timestamp()
