"""The records that the local Hub stores and passes around."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

RepoKind = Literal["model", "dataset", "space"]
Gate = Literal["auto", "manual", False]
TokenRole = Literal["read", "write", "fine-grained"]


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A repository; `id` is the database's own key, `name` is `namespace/name`."""

    id: int
    kind: RepoKind
    name: str
    private: bool
    gate: Gate
    created: str
    modified: str

    @property
    def owner(self) -> str:
        """The namespace."""
        return self.name.split("/", 1)[0]

    @property
    def web_path(self) -> str:
        """The path under the hub's address, with the prefix that datasets and spaces have."""
        prefix = "" if self.kind == "model" else f"{self.kind}s/"
        return f"{prefix}{self.name}"

    @property
    def api_path(self) -> str:
        """The path of the repo's API."""
        return f"api/{self.kind}s/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file in a tree: its bytes are the object `sha256`; `blob` is the git id (of the pointer, where `lfs`)."""

    path: str
    blob: str
    size: int
    sha256: str
    lfs: bool

    @property
    def pointer_size(self) -> int:
        """Bytes of the LFS pointer that git would hold."""
        return len(lfs_pointer(self.sha256, self.size))


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A commit; `date` is ISO 8601 with milliseconds and Z."""

    oid: str
    tree: str
    parents: tuple[str, ...]
    title: str
    message: str
    author: str
    date: str


PERMISSIONS = ("repo.content.read", "repo.write", "discussion.write")


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a token is limited to. `repos`: names, or `owner/*`; None for all that its user may touch.

    Of a fine-grained token: `permissions` are those on `repos`, `everywhere` those on all of the Hub, and `gated` whether it
    opens public gated repos. `awaits`: organizations that must approve the token and have not.
    `identity`: it was exchanged for a job's identity, so that nobody is told whose it is. `until`: when it ends (epoch seconds).
    """

    repos: tuple[str, ...] | None = None
    permissions: tuple[str, ...] = PERMISSIONS
    everywhere: tuple[str, ...] = ()
    gated: bool = True
    awaits: tuple[str, ...] = ()
    identity: bool = False
    until: float | None = None


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """Who is asking: nobody (`user` None), or a user through one of their tokens."""

    user: str | None = None
    orgs: tuple[str, ...] = ()
    role: TokenRole = "read"
    token_name: str = ""
    scope: Scope = field(default_factory=lambda: Scope())

    @property
    def signed_in(self) -> bool:
        """Whether a valid token came with the request."""
        return self.user is not None


@dataclass(frozen=True, kw_only=True)
class Discussion:
    """A discussion or pull request; `base` is the commit a pull request started from."""

    num: int
    title: str
    status: str
    is_pull_request: bool
    author: str
    created: str
    base: str | None
    merge_commit: str | None


@dataclass(frozen=True, kw_only=True)
class DiscussionEvent:
    """One thing that happened in a discussion; `content` is what the API calls `data`."""

    id: str
    type: str
    author: str
    created: str
    content: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WebhookJob:
    """What a webhook starts in place of a request: a Job like the one it was made from (`spec`, as the API got that), as `owner`, with
    the webhook's own secrets."""

    owner: str
    spec: dict[str, Any]
    secrets: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """A subscription; `watched` are {type: model|dataset|space|user|org, name}. It has a URL or a job."""

    id: str
    user: str
    url: str
    secret: str | None
    watched: tuple[dict[str, str], ...]
    domains: tuple[str, ...]
    disabled: bool
    job: WebhookJob | None = None


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git holds in place of a large file (git-lfs spec v1)."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def git_blob_id(content: bytes) -> str:
    """The sha1 that git gives a file's bytes."""
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()
