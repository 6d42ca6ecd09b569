"""The records of the bot: what was asked, where it runs, and what came of it. All frozen and keyword-only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["merge", "verify", "plan", "help"]  # help is answered without a run
Origin = Literal["webhook", "poll", "hand", "comment"]
# Waiting: to be sent, when its time has come. Sending: a dispatcher has it, and may have sent it. Sent: it runs somewhere, and is
# followed. Done: its fate is known. Failed: given up. Dropped: there is nothing to do (any more).
State = Literal["waiting", "sending", "sent", "done", "failed", "dropped"]
FINAL: tuple[State, ...] = ("done", "failed", "dropped")
Status = Literal[
    "queued",
    "running",
    "published",
    "unchanged",
    "dry-run",
    "verified",
    "refused",
    "not-verified",
    "failed",
    "answered",
]
RUNNING: tuple[Status, ...] = ("queued", "running")


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One event that the Hub delivered. `id`: its Webhook-Id, the same across retries and replays. `received`: seconds since the
    epoch, by this machine's clock. `verdict`: accepted, or why it was ignored, for the page."""

    id: str
    received: float
    event: str  # e.g. "update repo.content"
    repo: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be run: one merge of a tag's adapter, or what a comment or a person asked for.

    `key` says when two orders are the same: one tag at one commit is merged once, however often it is heard of. `sha` is the
    commit as it was heard of; the tag is resolved again before anything is sent. `options`: further inputs of the run, by the
    names of the action's inputs. `answer`: the comment that asked, as "repo#number/comment"; None: nobody waits for an answer.
    """

    key: str
    kind: Kind = "merge"
    adapter: str
    revision: str | None
    sha: str | None
    origin: Origin
    options: tuple[tuple[str, str], ...] = ()
    answer: str | None = None


def tag_key(adapter: str, tag: str, sha: str) -> str:
    """The key of the merge that a tag stands for. Repos are told apart without regard to case, as on the Hub."""
    return f"tag {adapter.lower()} {tag} {sha}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that a backend started. `id` is the backend's own; `url`: where a person looks at it, "" where there is no page; `note`:
    what else a person wants to know of it, as what it costs."""

    id: str
    url: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Fate:
    """How a run stands, or how it ended. `url`: of what was published. `reason` and `remedy`: one sentence each, where it failed.
    `verdict`: the proof in a few words, e.g. "verified (full)". `exit_code`: as the command line's, once it has ended."""

    status: Status
    url: str = ""
    verdict: str = ""
    reason: str = ""
    remedy: str = ""
    exit_code: int | None = None

    @property
    def final(self) -> bool:
        """Whether the run has ended."""
        return self.status not in RUNNING


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """An order as the outbox holds it. `id` goes with the run (in its name, or as its label), so that a restarted server finds what
    it started. `due`: when to look at it next; `attempts`: how often it was tried to send, or to follow, without success since the
    last success. Times in seconds since the epoch."""

    id: str
    order: Order
    state: State
    created: float
    due: float
    attempts: int = 0
    backend: str = ""
    run: Run | None = None
    fate: Fate | None = None
    reason: str = ""
    remedy: str = ""
    begun: float = 0.0  # when its sender took it
    announced: str = ""  # "number/comment" of the comment that tells of it, once there is one
    comment_digest: str = ""  # a digest of what that comment says
    changed: float = 0.0
