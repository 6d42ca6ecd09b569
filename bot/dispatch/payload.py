"""A webhook's payload (version 3) read: which orders it means, or why it means none. Pure; whatever a stranger sends is only ignored.

The client's own WebhookPayload is not used: it knows no `headSha` and fails for some kinds of repos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bot.dispatch.allow import Allowed
from bot.dispatch.records import Order, tag_key

TAGS = "refs/tags/"
FOREIGN = "not a payload of the Hub's version 3"
NO_TAG = "no tag was created"
LONGEST = 200  # characters of a name that are kept and shown


@dataclass(frozen=True, kw_only=True)
class Comment:
    """A comment in a discussion, as the payload tells of it; who wrote it is only an id there."""

    repo: str
    number: int
    id: str
    author: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a payload comes to. `verdict` is one line for the page: what was accepted, or why nothing was."""

    event: str
    repo: str
    verdict: str
    orders: tuple[Order, ...] = ()
    comment: Comment | None = None


def read_payload(payload: object, allowed: Allowed) -> Reading:
    """Every created tag of an allowed repo becomes an order; a comment in an allowed repo is handed on to be read for commands."""
    body = _object(payload)
    event, repo = _object(body.get("event")), _object(body.get("repo"))
    action, scope = _text(event.get("action")), _text(event.get("scope"))
    name = _text(repo.get("name"))

    def ignored(why: str) -> Reading:
        return Reading(event=f"{action} {scope}".strip(), repo=name, verdict=f"ignored: {why}")

    if not (action and scope and name):
        return ignored(FOREIGN)
    if repo.get("type") != "model":
        return ignored(f"a {_text(repo.get('type')) or 'thing'} is no model")
    # A discussion is told of with the comment that opens it.
    if scope == "discussion.comment" or (scope == "discussion" and _object(body.get("comment"))):
        return _read_comment(ignored("no command"), action, body)
    if scope != "repo.content" or action != "update":
        return ignored(NO_TAG)
    created = [tag for ref in _list(body.get("updatedRefs")) if (tag := _created_tag(_object(ref)))]
    if not created:
        return ignored(NO_TAG)
    if not allowed.repo(name):
        return ignored("not on the list of allowed adapters")
    wanted = [(tag, sha) for tag, sha in created if allowed.tag(tag)]
    if not wanted:
        return ignored(f"{created[0][0]} fits no pattern of --tags")
    orders = tuple(
        Order(key=tag_key(name, tag, sha), adapter=name, revision=tag, sha=sha, origin="webhook") for tag, sha in wanted
    )
    verdict = f"accepted: {', '.join(tag for tag, _ in wanted)}"[:LONGEST]
    return replace(ignored(""), orders=orders, verdict=verdict)


def _read_comment(ignored: Reading, action: str, body: Mapping[str, Any]) -> Reading:
    comment, discussion = _object(body.get("comment")), _object(body.get("discussion"))
    number, text, name = discussion.get("num"), comment.get("content"), _text(comment.get("id"))
    if action != "create" or comment.get("hidden") or not isinstance(text, str):
        return replace(ignored, verdict="ignored: no new comment")
    if not isinstance(number, int) or isinstance(number, bool) or not name:
        return replace(ignored, verdict=f"ignored: {FOREIGN}")
    author = _text(_object(comment.get("author")).get("id"))
    return replace(ignored, comment=Comment(repo=ignored.repo, number=number, id=name, author=author, text=text))


def _created_tag(ref: Mapping[str, Any]) -> tuple[str, str] | None:
    """(tag, sha), where this entry of `updatedRefs` tells of a tag that was not there before."""
    name, sha = _text(ref.get("ref")), _text(ref.get("newSha"))
    if not name.startswith(TAGS) or name == TAGS or _is_commit(ref.get("oldSha")) or not _is_commit(sha):
        return None
    return name.removeprefix(TAGS), sha


def _is_commit(sha: object) -> bool:
    """Whether there was something: null and, as git itself has it, zeros alone say that there was not."""
    return bool(sha) and (not isinstance(sha, str) or sha.strip("0") != "")


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    """A short line of printable text; "" for anything else."""
    fine = isinstance(value, str) and len(value) <= LONGEST and value.isprintable()
    return str(value) if fine else ""
