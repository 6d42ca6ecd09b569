"""Discussions and pull requests: a numbered thread of events, and a ref `refs/pr/N` where it proposes changes."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from typing import Any

from . import commits, repos, trees
from .database import Database, now
from .errors import HttpError, bad_request, conflict
from .records import Commit, Discussion, DiscussionEvent, Entry, Repo

STATUSES = {"open", "closed"}


def pr_ref(num: int) -> str:
    """The ref that holds a pull request's commits."""
    return f"refs/pr/{num}"


def _discussion(row: sqlite3.Row) -> Discussion:
    return Discussion(
        num=row["num"],
        title=row["title"],
        status=row["status"],
        is_pull_request=bool(row["is_pr"]),
        author=row["author"],
        created=row["created"],
        base=row["base"],
        merge_commit=row["merge_commit"],
    )


def get(rows: sqlite3.Connection, repo: Repo, num: int) -> Discussion:
    """A discussion by its number."""
    row = rows.execute("SELECT * FROM discussion WHERE repo = ? AND num = ?", (repo.id, num)).fetchone()
    if row is None:
        raise HttpError(404, f"Discussion {num} not found")
    return _discussion(row)


def require_on(db: Database, repo: Repo) -> None:
    """Refuse where the repo's owner has switched discussions off."""
    if db.read.execute("SELECT 1 FROM silenced WHERE repo = ?", (repo.id,)).fetchone():
        raise HttpError(403, "Discussions are disabled for this repo")


def switch(db: Database, repo: Repo, *, on: bool) -> None:
    """Switch discussions and pull requests on or off."""
    with db.write() as rows:
        rows.execute("DELETE FROM silenced WHERE repo = ?", (repo.id,))
        if not on:
            rows.execute("INSERT INTO silenced VALUES (?)", (repo.id,))


def every(db: Database, repo: Repo) -> list[Discussion]:
    """All discussions, the newest first."""
    rows = db.read.execute("SELECT * FROM discussion WHERE repo = ? ORDER BY num DESC", (repo.id,)).fetchall()
    return [_discussion(row) for row in rows]


def events(db: Database, repo: Repo, num: int) -> list[DiscussionEvent]:
    """What happened, oldest first."""
    rows = db.read.execute("SELECT * FROM event WHERE repo = ? AND num = ? ORDER BY seq", (repo.id, num)).fetchall()
    return [_event(row) for row in rows]


def _event(row: sqlite3.Row) -> DiscussionEvent:
    return DiscussionEvent(
        id=row["id"],
        type=row["type"],
        author=row["author"],
        created=row["created"],
        content=json.loads(row["content"]),
    )


def start(
    rows: sqlite3.Connection, repo: Repo, *, title: str, description: str, author: str, status: str, base: str | None
) -> Discussion:
    """Open a discussion, or (with `base`, the commit to start from) a pull request."""
    title = title.strip()
    if not 3 <= len(title) <= 200:
        raise bad_request("The title must be 3 to 200 characters long")
    if len(description) > 65536:
        raise bad_request("The description must be at most 65536 characters long")
    num = int(rows.execute("SELECT COALESCE(MAX(num), 0) + 1 FROM discussion WHERE repo = ?", (repo.id,)).fetchone()[0])
    rows.execute(
        "INSERT INTO discussion VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        (repo.id, num, title, status, base is not None, author, now(), base),
    )
    if base is not None:
        repos.set_ref(rows, repo.id, pr_ref(num), base)
    add_event(rows, repo, num, "comment", author, _comment(description, author))
    return get(rows, repo, num)


def add_event(
    rows: sqlite3.Connection, repo: Repo, num: int, kind: str, author: str, content: Mapping[str, Any]
) -> DiscussionEvent:
    """Append to the thread."""
    event_id = secrets.token_hex(12)
    rows.execute(
        "INSERT INTO event(id, repo, num, type, author, created, content) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (event_id, repo.id, num, kind, author, now(), json.dumps(content)),
    )
    return _event(rows.execute("SELECT * FROM event WHERE id = ?", (event_id,)).fetchone())


def add_commit_event(rows: sqlite3.Connection, repo: Repo, num: int, commit: Commit) -> DiscussionEvent:
    """Note a commit on a pull request."""
    return add_event(rows, repo, num, "commit", commit.author, {"subject": commit.title, "oid": commit.oid})


def _comment(text: str, author: str) -> dict[str, Any]:
    version = {"raw": text, "html": "", "updatedAt": now(), "author": {"name": author}}
    return {"edited": False, "hidden": False, "latest": version, "history": [version]}


def comment(db: Database, repo: Repo, num: int, author: str, text: str) -> DiscussionEvent:
    """Say something."""
    if not text.strip():
        raise bad_request("The comment is empty")
    with db.write() as rows:
        get(rows, repo, num)
        return add_event(rows, repo, num, "comment", author, _comment(text, author))


def comment_event(rows: sqlite3.Connection, repo: Repo, num: int, event_id: str) -> DiscussionEvent:
    """A comment by its id."""
    row = rows.execute(
        "SELECT * FROM event WHERE repo = ? AND num = ? AND id = ? AND type = 'comment'", (repo.id, num, event_id)
    ).fetchone()
    if row is None:
        raise HttpError(404, "Comment not found")
    return _event(row)


def edit_comment(db: Database, repo: Repo, num: int, event_id: str, author: str, text: str) -> DiscussionEvent:
    """Replace a comment's text; every version stays in its history, the newest first."""
    with db.write() as rows:
        content = comment_event(rows, repo, num, event_id).content
        if content["hidden"]:
            raise bad_request("A hidden comment cannot be edited")
        version = {"raw": text, "html": "", "updatedAt": now(), "author": {"name": author}}
        content = content | {"edited": True, "latest": version, "history": [version, *content["history"]]}
        return _update(rows, event_id, content)


def hide_comment(db: Database, repo: Repo, num: int, event_id: str, author: str) -> DiscussionEvent:
    """Hide a comment; this cannot be undone."""
    with db.write() as rows:
        content = comment_event(rows, repo, num, event_id).content
        version = {"raw": "This comment has been hidden", "html": "", "updatedAt": now(), "author": {"name": author}}
        return _update(rows, event_id, content | {"hidden": True, "latest": version, "history": []})


def _update(rows: sqlite3.Connection, event_id: str, content: Mapping[str, Any]) -> DiscussionEvent:
    rows.execute("UPDATE event SET content = ? WHERE id = ?", (json.dumps(content), event_id))
    return _event(rows.execute("SELECT * FROM event WHERE id = ?", (event_id,)).fetchone())


def rename(db: Database, repo: Repo, num: int, author: str, title: str) -> DiscussionEvent:
    """Change the title."""
    title = title.strip()
    if not 3 <= len(title) <= 200:
        raise bad_request("The title must be 3 to 200 characters long")
    with db.write() as rows:
        before = get(rows, repo, num).title
        rows.execute("UPDATE discussion SET title = ? WHERE repo = ? AND num = ?", (title, repo.id, num))
        return add_event(rows, repo, num, "title-change", author, {"from": before, "to": title})


def change_status(db: Database, repo: Repo, num: int, author: str, status: str, text: str) -> DiscussionEvent:
    """Open (also a draft) or close."""
    if status not in STATUSES:
        raise bad_request(f"Invalid status: {status}. It must be open or closed")
    with db.write() as rows:
        before = get(rows, repo, num)
        if before.status == "merged":
            raise bad_request("A merged pull request cannot change its status")
        if before.status == status:
            raise bad_request(f"The discussion is already {status}")
        rows.execute("UPDATE discussion SET status = ? WHERE repo = ? AND num = ?", (status, repo.id, num))
        if text.strip():
            add_event(rows, repo, num, "comment", author, _comment(text, author))
        return add_event(rows, repo, num, "status-change", author, {"status": status})


def merge(db: Database, repo: Repo, num: int, author: str, text: str) -> commits.RefUpdate:
    """Merge an open pull request into main; refuses drafts, closed ones and conflicts."""
    with db.write() as rows:
        pull = get(rows, repo, num)
        if not pull.is_pull_request:
            raise bad_request("This discussion is not a pull request")
        if pull.status != "open":
            raise bad_request(f"This pull request is {pull.status}: only open ones can be merged")
        base, ours, theirs = _sides(rows, repo, pull)
        merged, clashes = commits.merge(_files(rows, base), _files(rows, ours), _files(rows, theirs))
        if clashes:
            raise conflict(f"This pull request has conflicts in: {', '.join(clashes)}")
        commit = trees.save_commit(
            rows,
            repo.id,
            tree=trees.save_tree(rows, merged.values()),
            parents=(ours.oid, theirs.oid),
            title=f"{pull.title} (#{num})",
            message="",
            author=author,
        )
        repos.set_ref(rows, repo.id, repos.MAIN, commit.oid)
        rows.execute(
            "UPDATE discussion SET status = 'merged', merge_commit = ? WHERE repo = ? AND num = ?",
            (commit.oid, repo.id, num),
        )
        if text.strip():
            add_event(rows, repo, num, "comment", author, _comment(text, author))
        add_event(rows, repo, num, "status-change", author, {"status": "merged"})
    return commits.RefUpdate(ref=repos.MAIN, old=ours.oid, new=commit.oid)


def _sides(rows: sqlite3.Connection, repo: Repo, pull: Discussion) -> tuple[Commit, Commit, Commit]:
    """The common ancestor, main's head, and the pull request's head."""
    ours = repos.head(rows, repo.id, repos.MAIN)
    theirs = repos.head(rows, repo.id, pr_ref(pull.num))
    if ours is None or theirs is None or pull.base is None:
        raise bad_request("This pull request has no branch to merge")
    on_main = {commit.oid for commit in trees.history(rows, repo.id, ours)}
    base = next((c for c in trees.history(rows, repo.id, theirs) if c.oid in on_main), None)
    if base is None:
        base = trees.get_commit(rows, repo.id, pull.base)
    return base, trees.get_commit(rows, repo.id, ours), trees.get_commit(rows, repo.id, theirs)


def _files(rows: sqlite3.Connection, commit: Commit) -> dict[str, Entry]:
    return trees.entries(rows, commit.tree)


def changes(db: Database, repo: Repo, pull: Discussion) -> tuple[dict[str, Entry], dict[str, Entry], list[str]]:
    """Files before and after a pull request, and those in conflict with main."""
    base, ours, theirs = _sides(db.read, repo, pull)
    if pull.status == "merged" and pull.base is not None:
        return _files(db.read, trees.get_commit(db.read, repo.id, pull.base)), _files(db.read, theirs), []
    _, clashes = commits.merge(_files(db.read, base), _files(db.read, ours), _files(db.read, theirs))
    return _files(db.read, base), _files(db.read, theirs), clashes
