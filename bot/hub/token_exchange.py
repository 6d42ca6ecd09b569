"""A job's identity, exchanged for a token of one repo: the client does that by itself, and keeps the token for its hour."""

from __future__ import annotations

from huggingface_hub.utils import _auth


def exchange_again() -> None:
    """Let the client forget the token, so that its next call exchanges the identity anew and has an hour again."""
    with _auth._OIDC_TOKEN_LOCK:
        _auth._OIDC_TOKEN_CACHE = None
