"""Discussions and pull requests over HTTP."""

from __future__ import annotations

import difflib
import json
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from .. import access, discussions, repos
from ..errors import bad_request
from ..notices import tell_discussion, tell_refs
from ..records import Discussion, DiscussionEvent, Entry, Repo, lfs_pointer
from .call import Answer, Call, route

PAGE = 10
DIFF_LIMIT = 1 << 20


def _repo(call: Call) -> Repo:
    repo = call.repo()
    discussions.require_on(call.site.db, repo)
    return repo


def list_discussions(call: Call) -> Answer:
    """GET …/discussions, newest first."""
    repo = _repo(call)
    threads = discussions.every(call.site.db, repo)
    kind, status, author = (call.query.get(key, "all") for key in ("type", "status", "author"))
    if kind != "all":
        threads = [d for d in threads if d.is_pull_request == (kind == "pull_request")]
    if status != "all":
        # To the Hub's lists a draft is open, and a merged pull request is closed.
        threads = [d for d in threads if (d.status in ("open", "draft")) == (status == "open")]
    if author != "all":
        threads = [d for d in threads if d.author == author]
    start = call.number("p", 0) * PAGE
    shown = [_summary(repo, d) for d in threads[start : start + PAGE]]
    return {"discussions": shown, "count": len(threads), "start": start}


def _summary(repo: Repo, discussion: Discussion) -> dict[str, Any]:
    return {
        "num": discussion.num,
        "title": discussion.title,
        "status": discussion.status,
        "isPullRequest": discussion.is_pull_request,
        "createdAt": discussion.created,
        "author": {"name": discussion.author, "type": "user"},
        "repo": {"name": repo.name, "type": repo.kind},
        "pinned": False,
    }


def create(call: Call) -> Answer:
    """POST …/discussions; a pull request made this way is a draft, as on the Hub."""
    repo = _repo(call)
    access.require_discussion_write(call.site.db, call.viewer, repo, "open a discussion")
    body = call.json
    is_pr = bool(body.get("pullRequest"))
    base = repos.resolve(call.site.db, repo, "main").oid if is_pr else None
    with call.site.db.write() as rows:
        made = discussions.start(
            rows, repo, title=str(body.get("title", "")), description=str(body.get("description") or ""),
            author=call.user, status="draft" if is_pr else "open", base=base,
        )  # fmt: skip
    tell_discussion(call.site, call.origin, repo, made, "create")
    url = f"{call.public}/{repo.web_path}/discussions/{made.num}"
    return {"num": made.num, "url": url, "pullRequest": is_pr}


def show(call: Call) -> Answer:
    """GET …/discussions/{n}."""
    repo = _repo(call)
    discussion = discussions.get(call.site.db.read, repo, _num(call))
    events = [_event(event) for event in discussions.events(call.site.db, repo, discussion.num)]
    answer = _summary(repo, discussion) | {"events": events}
    if discussion.is_pull_request:
        before, after, clashes = discussions.changes(call.site.db, repo, discussion)
        answer["changes"] = {"base": repos.MAIN}
        if discussion.merge_commit:
            answer["changes"]["mergeCommitId"] = discussion.merge_commit
        answer["filesWithConflicts"] = clashes if discussion.status in ("open", "draft") else []
        answer["diff"] = _diff(call, before, after) if call.query.get("diff") else ""
    return answer


def _num(call: Call) -> int:
    number = call.params["num"]
    if not number.isdigit():
        raise bad_request(f"Invalid discussion number: {number}")
    return int(number)


def _event(event: DiscussionEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "type": event.type,
        "createdAt": event.created,
        "author": {"name": event.author, "type": "user"},
        "data": event.content,
    }


def _diff(call: Call, before: dict[str, Entry], after: dict[str, Entry]) -> str:
    """A git-style diff of what git would hold: pointers in place of large files."""
    parts: list[str] = []
    for path in sorted({*before, *after}):
        old, new = before.get(path), after.get(path)
        if (old and old.blob) == (new and new.blob):
            continue
        parts.append(f"diff --git a/{path} b/{path}\n")
        before_lines, after_lines = _lines(call, old), _lines(call, new)
        names = (f"a/{path}" if old else "/dev/null", f"b/{path}" if new else "/dev/null")
        if before_lines is None or after_lines is None:
            parts.append(f"Binary files {names[0]} and {names[1]} differ\n")
            continue
        for line in difflib.unified_diff(before_lines, after_lines, names[0], names[1]):
            parts.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(parts)


def _lines(call: Call, entry: Entry | None) -> list[str] | None:
    if entry is None:
        return []
    if entry.lfs:
        return lfs_pointer(entry.sha256, entry.size).decode().splitlines(keepends=True)
    if entry.size > DIFF_LIMIT:
        return None
    try:
        return call.site.objects.read(entry.sha256).decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return None


def _to_change(call: Call, what: str) -> tuple[Repo, Discussion]:
    """The discussion in the path, which its author and the repo's owners may change."""
    repo = _repo(call)
    discussion = discussions.get(call.site.db.read, repo, _num(call))
    access.require_discussion_write(call.site.db, call.viewer, repo, what)
    if discussion.author != call.viewer.user:
        access.require_write(call.site.db, call.viewer, repo, what)
    return repo, discussion


def _notify(call: Call, repo: Repo, num: int, comment: DiscussionEvent | None = None, action: str = "update") -> None:
    tell_discussion(call.site, call.origin, repo, discussions.get(call.site.db.read, repo, num), action, comment)


def comment(call: Call) -> Answer:
    """POST …/comment."""
    repo = _repo(call)
    access.require_discussion_write(call.site.db, call.viewer, repo, "comment")
    num = _num(call)
    event = discussions.comment(call.site.db, repo, num, call.user, str(call.json.get("comment", "")))
    _notify(call, repo, num, event, "create")
    content = json.dumps({"newMessage": _event(event)})
    return Response(content, status_code=201, media_type="application/json")


def rename(call: Call) -> Answer:
    """POST …/title."""
    repo, discussion = _to_change(call, "rename this discussion")
    event = discussions.rename(call.site.db, repo, discussion.num, call.user, str(call.json.get("title", "")))
    _notify(call, repo, discussion.num)
    return {"newTitle": _event(event)}


def change_status(call: Call) -> Answer:
    """POST …/status."""
    repo, discussion = _to_change(call, "change its status")
    body = call.json
    status, text = str(body.get("status", "")), str(body.get("comment") or "")
    event = discussions.change_status(call.site.db, repo, discussion.num, call.user, status, text)
    _notify(call, repo, discussion.num)
    return {"newStatus": _event(event)}


def merge(call: Call) -> Answer:
    """POST …/merge."""
    repo = call.repo_to_write("merge a pull request")
    num = _num(call)
    moved = discussions.merge(call.site.db, repo, num, call.user, str(call.json.get("comment") or ""))
    tell_refs(call.site, call.origin, repo, [moved])
    _notify(call, repo, num)
    return {"success": True, "mergeCommitId": moved.new}


def _own_comment(call: Call, what: str) -> tuple[Repo, int, str]:
    repo = _repo(call)
    access.require_discussion_write(call.site.db, call.viewer, repo, what)
    event = discussions.comment_event(call.site.db.read, repo, _num(call), call.params["event"])
    if event.author != call.viewer.user:
        access.require_write(call.site.db, call.viewer, repo, what)
    return repo, _num(call), event.id


def edit_comment(call: Call) -> Answer:
    """POST …/comment/{id}/edit."""
    repo, num, event_id = _own_comment(call, "edit this comment")
    content = str(call.json.get("content", ""))
    event = discussions.edit_comment(call.site.db, repo, num, event_id, call.user, content)
    _notify(call, repo, num, event)
    return {"updatedComment": _event(event)}


def hide_comment(call: Call) -> Answer:
    """POST …/comment/{id}/hide."""
    repo, num, event_id = _own_comment(call, "hide this comment")
    event = discussions.hide_comment(call.site.db, repo, num, event_id, call.user)
    _notify(call, repo, num, event)
    return {"updatedComment": _event(event)}


ROUTES: list[BaseRoute] = [
    route("/api/{kind:kind}/{repo:repo}/discussions", list_discussions),
    route("/api/{kind:kind}/{repo:repo}/discussions", create, "POST"),
    route("/api/{kind:kind}/{repo:repo}/discussions/{num}", show),
    route("/api/{kind:kind}/{repo:repo}/discussions/{num}/comment", comment, "POST"),
    route("/api/{kind:kind}/{repo:repo}/discussions/{num}/title", rename, "POST"),
    route("/api/{kind:kind}/{repo:repo}/discussions/{num}/status", change_status, "POST"),
    route("/api/{kind:kind}/{repo:repo}/discussions/{num}/merge", merge, "POST"),
    route("/api/{kind:kind}/{repo:repo}/discussions/{num}/comment/{event}/edit", edit_comment, "POST"),
    route("/api/{kind:kind}/{repo:repo}/discussions/{num}/comment/{event}/hide", hide_comment, "POST"),
]
