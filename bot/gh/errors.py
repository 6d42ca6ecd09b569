"""Errors: whatever PyGithub raises leaves this package as one of bot.errors, in a sentence that names the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from github import BadAttributeException, GithubException, RateLimitExceededException
from requests import RequestException
from requests.exceptions import RetryError

from bot.errors import AdapterMergeError, Forbidden, NotFound, Outside

LATER = "Run the job again later; nothing else is affected."


@contextmanager
def translate_errors(doing: str, permission: str) -> Iterator[None]:
    """`doing` completes "could not …"; `permission` is the one of the job's GITHUB_TOKEN that the call needs."""
    try:
        yield
    except GithubException as error:
        raise _translate(error, doing, permission) from error
    except BadAttributeException as error:
        raise Outside(f"Could not {doing}: GitHub's answer was not understood.", remedy=LATER) from error
    except RetryError as error:
        raise Outside(f"Could not {doing}: GitHub keeps failing.", remedy=LATER) from error
    except RequestException as error:
        raise Outside(
            f"Could not {doing}: GitHub cannot be reached ({type(error).__name__}).",
            remedy="Check the network and GITHUB_API_URL.",
        ) from error


def _translate(error: GithubException, doing: str, permission: str) -> AdapterMergeError:
    grant = f"Give the job `permissions: {permission}: write` (a fork's token never has it)."
    if isinstance(error, RateLimitExceededException) or error.status == 429:
        return Outside(f"Could not {doing}: GitHub's rate limit is reached.", remedy=LATER)
    if error.status == 401:
        return Forbidden(f"Could not {doing}: GitHub does not accept the token.", remedy="Check github-token.")
    if error.status == 403:
        return Forbidden(f"Could not {doing}: the token may not do that.", remedy=grant)
    if error.status == 404:  # which GitHub also answers where a token may not even look
        return NotFound(f"Could not {doing}: GitHub does not show it to this token.", remedy=grant)
    return Outside(f"Could not {doing}: GitHub answered {error.status}{_quoted(error.data)}.", remedy=LATER)


def _quoted(answer: Any) -> str:
    words = answer.get("message") if isinstance(answer, dict) else None
    return f" ({' '.join(str(words).split())[:200]})" if words else ""
