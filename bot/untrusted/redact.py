"""No secret leaves: what is printed, written or uploaded goes through `redact` first.

Tokens are known by their form (Hugging Face, GitHub, JSON Web Tokens), by their place (signed URLs, `Authorization`
headers, a URL's user and password), and by their value, where this run was given them.
"""

from __future__ import annotations

import json
import os
import re

GONE = "…"
SHORTEST = 8  # characters; a shorter value is no secret, and would be found in ordinary words
# Variables whose value is a token, whatever it looks like; others where the name ends so and the value is long.
NAMES = frozenset({
    "HF_TOKEN", "HF_READ_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_ID_TOKEN", "GITHUB_TOKEN", "GH_TOKEN",
    "INPUT_HF_TOKEN", "INPUT_HF_READ_TOKEN", "INPUT_GITHUB_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
    "ACTIONS_RUNTIME_TOKEN", "WEBHOOK_SECRET",
})  # fmt: skip
ENDINGS = ("_TOKEN", "_SECRET", "_PASSWORD", "_ACCESS_KEY")
LONG = 16
QUERY = r"X-(?:Amz|Goog|Xet)-[\w-]+|Signature|Policy|Key-Pair-Id|AWSAccessKeyId|sig|token|access_token"
AUTHORIZATION = r"authorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token)\s+)?"
FORMS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b((?:hf|api_org)_)(?:(?:oauth|jwt)_[\w.=-]{8,}|[A-Za-z0-9]{20,})"), rf"\1{GONE}"),
    (re.compile(r"\b(gh[pousr]_|github_pat_)\w{20,}"), rf"\1{GONE}"),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.?[\w.=-]*"), GONE),
    (re.compile(rf"([?&](?:amp;)?(?:{QUERY})=)[^&\s\"'<>#\\]+", re.IGNORECASE), rf"\1{GONE}"),
    (re.compile(rf"({AUTHORIZATION})[^\s\"',}}]{{4,}}", re.IGNORECASE), rf"\1{GONE}"),
    (re.compile(r"\b(bearer\s+)[\w.~+/=-]{20,}", re.IGNORECASE), rf"\1{GONE}"),
    (re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\"<>?#]+@"), r"\1"),
)
_given: set[str] = set()


def know(secret: object) -> None:
    """Remember a secret: `redact` takes it out of every text."""
    if isinstance(secret, str) and len(secret.strip()) >= SHORTEST:
        _given.add(secret.strip())


def know_environment() -> None:
    """`know` every token that this process was given in its environment."""
    for name, value in os.environ.items():
        is_path = value.startswith(("/", "./", "../", "~"))
        if name in NAMES or (name.endswith(ENDINGS) and len(value) >= LONG and not is_path):
            for line in value.splitlines():
                know(line)


def redact(text: str) -> str:
    """The text without any secret; a URL's user and password are left out, so that it still leads somewhere."""
    for secret in _given:
        if secret in text:
            text = text.replace(secret, GONE)
        elif (quoted := json.dumps(secret)[1:-1]) != secret:
            text = text.replace(quoted, GONE)
    for form, instead in FORMS:
        text = form.sub(instead, text)
    return text
