"""Which token goes where: one that reads the inputs, one that writes the target, one for GitHub; and none for the rest.

Without a write token, a job with `id-token: write` publishes as a trusted publisher of its target: huggingface_hub
exchanges the job's identity for a token of an hour and of that one repo, when HF_OIDC_RESOURCE names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

RESOURCE = "HF_OIDC_RESOURCE"
SECRETS = (
    "INPUT_HF_TOKEN", "INPUT_HF_READ_TOKEN", "INPUT_GITHUB_TOKEN", "HF_TOKEN", "HF_READ_TOKEN", "GITHUB_TOKEN",
    "HF_OIDC_ID_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
)  # fmt: skip

Token = str | bool | None  # None: the ecosystem's own lookup; False: none at all


@dataclass(frozen=True, kw_only=True)
class RunTokens:
    """`by_identity`: there is no write token, and the job can prove who it is."""

    read: Token = field(repr=False)
    write: Token = field(repr=False)
    github: str = field(repr=False)
    by_identity: bool


def secrets_in(env: Mapping[str, str]) -> list[str]:
    """Every token of the environment, to be masked."""
    return sorted({env[name] for name in SECRETS if env.get(name, "").strip()})


def read_tokens(env: Mapping[str, str], *, plan_only: bool) -> RunTokens:
    """The tokens of this process. A plan for strangers never gets one that can write."""
    given = env.get("INPUT_HF_TOKEN", "").strip() or env.get("HF_TOKEN", "").strip()
    reading = env.get("INPUT_HF_READ_TOKEN", "").strip() or env.get("HF_READ_TOKEN", "").strip()
    github = env.get("INPUT_GITHUB_TOKEN", "").strip() or env.get("GITHUB_TOKEN", "").strip()
    if plan_only:
        return RunTokens(read=reading or False, write=False, github=github, by_identity=False)
    can_prove = bool(env.get("ACTIONS_ID_TOKEN_REQUEST_URL") or env.get("HF_OIDC_ID_TOKEN"))
    # Of the identities, a repo's is of no use for the inputs; a user's (to read gated repos) the client exchanges itself.
    useless = RESOURCE in env and ("/" in env[RESOURCE] or not can_prove)
    without: Token = False if useless else None
    return RunTokens(
        read=reading or given or without, write=given or None, github=github, by_identity=can_prove and not given
    )


@contextmanager
def resource(target: str | None) -> Iterator[None]:
    """For as long as the block runs, the job's identity is exchanged for this repo's token (None: not at all)."""
    before = os.environ.pop(RESOURCE, None)
    if target is not None:
        os.environ[RESOURCE] = before if before and "/" in before else target  # a repo that was named on purpose counts
    try:
        yield
    finally:
        os.environ.pop(RESOURCE, None)
        if before is not None:
            os.environ[RESOURCE] = before
