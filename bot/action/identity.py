"""The Hub as the publishing account sees it: by a token, or by the job's own identity (a trusted publisher)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from bot.action.hub_replay import Memory, PublishingHub
from bot.action.tokens import RunTokens, resource
from bot.errors import Forbidden, Outside
from bot.hub import Hub
from bot.hub.token_exchange import exchange_again

T = TypeVar("T")


def as_publisher(target: str, tokens: RunTokens, memory: Memory, do: Callable[[Hub], T]) -> T:
    """What `do` makes of a Hub that may write to the target.

    A token that an identity was exchanged for lasts an hour. Where it is refused meanwhile, the identity is exchanged once
    more and `do` begins again: it looks first, and what was uploaded is there.
    """
    try:
        with publishing(target, tokens, memory) as hub:
            return do(hub)
    except Outside as error:
        if not tokens.by_identity or getattr(_response(error), "status_code", None) != 401:
            raise
    with publishing(target, tokens, memory) as hub:
        return do(hub)


@contextmanager
def publishing(target: str, tokens: RunTokens, memory: Memory) -> Iterator[Hub]:
    """A Hub that may write to the target. Raises Forbidden where there is neither a token nor a trusted identity."""
    identity_of = target if tokens.by_identity else None
    with resource(identity_of):
        if tokens.by_identity:
            exchange_again()  # what another phase was given has less than its hour left
        hub = PublishingHub(memory, identity_of=identity_of, read_token=tokens.read or None, write_token=tokens.write)
        try:
            signed_in = hub.signed_in(hub.outputs)  # exchanges the identity
        except Outside as error:
            if not tokens.by_identity:
                raise
            raise _refused(target, error) from error
        if not signed_in:
            raise Forbidden(
                f"There is no token to publish to {target} with.",
                remedy="Pass hf-token, or give the job `permissions: id-token: write` and make its workflow a trusted "
                "publisher of that repo; `publish: none` only merges.",
            )
        yield hub


def _refused(target: str, error: Outside) -> Forbidden:
    """Why the job's identity gave no token: no permission to prove it, nobody to ask, or a claim that does not match."""
    response = _response(error)
    if response is None:
        return Forbidden(f"No token was given, and {error.what[:1].lower()}{error.what[1:]}", remedy=error.remedy)
    reason = _words(response)
    return Forbidden(
        f"The Hub did not accept this job as a trusted publisher of {target} "
        f"({response.status_code}{': ' + reason if reason else ''}).",
        remedy=f"The repo must exist, and its settings on the Hub (Trusted Publishers) must name {_claims()}; "
        "or pass hf-token.",
    )


def _response(error: Outside) -> Any:
    """What the Hub answered, where it did."""
    return getattr(error.__cause__, "response", None)


def _words(response: object) -> str:
    try:
        answer = response.json()  # type: ignore[attr-defined]
    except ValueError:
        return ""
    words = (answer.get("error_description") or answer.get("error")) if isinstance(answer, dict) else ""
    return " ".join(str(words or "").split())[:200]


def _claims() -> str:
    """What the identity of this job says, as far as the environment shows it."""
    repository = os.environ.get("GITHUB_REPOSITORY", "this repository")
    workflow = os.environ.get("GITHUB_WORKFLOW_REF", "").partition("@")[0].rpartition("/")[2]
    ref = os.environ.get("GITHUB_REF", "")
    words = [f"the GitHub repository {repository}"]
    if workflow:
        words.append(f"the workflow {workflow}")
    if ref:
        words.append(f"a ref that {ref} fits")
    return ", ".join(words)
