"""Repositories and their refs."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable

from . import trees
from .access import require_visible
from .database import Database, now
from .errors import bad_request, conflict, forbidden, repo_not_found, revision_not_found
from .gitattributes import DEFAULT_GITATTRIBUTES
from .objects import Objects
from .records import Commit, Entry, Gate, Repo, RepoKind, Viewer, git_blob_id

NAME = re.compile(r"(?!-|\.)(?!.*(--|\.\.))[\w.-]{1,96}(?<![.-])(?<!\.git)$", re.ASCII)
REF_NAME = re.compile(r"(?!.*(//|\.\.|@\{|\.lock$|/$|\.$))[^\s~^:?*\[\\\x00-\x1f/][^\s~^:?*\[\\\x00-\x1f]*$")
MAIN = "refs/heads/main"


def _repo(row: sqlite3.Row) -> Repo:
    gate: Gate = row["gate"] if row["gate"] in ("auto", "manual") else False
    return Repo(
        id=row["id"],
        kind=row["kind"],
        name=row["name"],
        private=bool(row["private"]),
        gate=gate,
        created=row["created"],
        modified=row["modified"],
    )


def find(db: Database, kind: RepoKind, name: str) -> Repo | None:
    """A repo by its name (case does not matter), or by a name it had before it moved."""
    row = db.read.execute("SELECT * FROM repo WHERE kind = ? AND name = ?", (kind, name)).fetchone()
    if row is None:
        row = db.read.execute(
            "SELECT repo.* FROM alias JOIN repo ON repo.id = alias.repo WHERE alias.kind = ? AND alias.name = ?",
            (kind, name),
        ).fetchone()
    return None if row is None else _repo(row)


def get(db: Database, viewer: Viewer, kind: RepoKind, name: str) -> Repo:
    """A repo that exists for this viewer, or the refusal that says it does not."""
    repo = find(db, kind, name)
    if repo is None:
        raise repo_not_found(viewer.signed_in)
    require_visible(db, viewer, repo)
    return repo


def every(db: Database, kind: RepoKind) -> Iterable[Repo]:
    """All repos of a kind, the latest changed first."""
    rows = db.read.execute("SELECT * FROM repo WHERE kind = ? ORDER BY modified DESC, id DESC", (kind,)).fetchall()
    return [_repo(row) for row in rows]


def create(db: Database, objects: Objects, *, kind: RepoKind, name: str, private: bool, author: str) -> Repo:
    """A new repo with the Hub's own first commit, which holds `.gitattributes`."""
    namespace, _, short = name.partition("/")
    if not NAME.match(namespace) or not NAME.match(short):
        raise bad_request(f"Invalid repo name: {name}")
    content = DEFAULT_GITATTRIBUTES.encode()
    sha256 = objects.add(content)
    entry = Entry(path=".gitattributes", blob=git_blob_id(content), size=len(content), sha256=sha256, lfs=False)
    created = now()
    with db.write() as rows:
        if rows.execute("SELECT 1 FROM repo WHERE kind = ? AND name = ?", (kind, name)).fetchone():
            raise conflict(f"You already created this {kind} repo: {name}")
        rows.execute("DELETE FROM alias WHERE kind = ? AND name = ?", (kind, name))
        cursor = rows.execute(
            "INSERT INTO repo(kind, name, private, gate, created, modified) VALUES (?, ?, ?, '', ?, ?)",
            (kind, name, private, created, created),
        )
        repo_id = int(cursor.lastrowid or 0)
        tree = trees.save_tree(rows, [entry])
        commit = trees.save_commit(
            rows, repo_id, tree=tree, parents=(), title="initial commit", message="", author=author
        )
        rows.execute("INSERT INTO ref VALUES (?, ?, ?, NULL)", (repo_id, MAIN, commit.oid))
    repo = find(db, kind, name)
    assert repo is not None
    return repo


def delete(db: Database, repo: Repo) -> None:
    """Remove a repo and everything about it; objects stay, other repos may hold them."""
    with db.write() as rows:
        for table in ("access", "commits", "ref", "holding", "discussion", "event", "alias", "silenced"):
            rows.execute(f"DELETE FROM {table} WHERE repo = ?", (repo.id,))
        rows.execute("DELETE FROM repo WHERE id = ?", (repo.id,))


def move(db: Database, repo: Repo, to: str) -> None:
    """Rename a repo; its old name goes on working."""
    namespace, _, short = to.partition("/")
    if not NAME.match(namespace) or not NAME.match(short):
        raise bad_request(f"Invalid repo name: {to}")
    with db.write() as rows:
        if rows.execute("SELECT 1 FROM repo WHERE kind = ? AND name = ?", (repo.kind, to)).fetchone():
            raise conflict(f"A {repo.kind} repository called {to} already exists")
        rows.execute("DELETE FROM alias WHERE kind = ? AND name = ?", (repo.kind, to))
        rows.execute("UPDATE repo SET name = ?, modified = ? WHERE id = ?", (to, now(), repo.id))
        rows.execute("INSERT OR REPLACE INTO alias VALUES (?, ?, ?)", (repo.kind, repo.name, repo.id))


def change_settings(db: Database, repo: Repo, *, private: bool | None, gate: Gate | None) -> None:
    """Change privacy or gate; None leaves a setting as it is."""
    with db.write() as rows:
        if private is not None:
            rows.execute("UPDATE repo SET private = ? WHERE id = ?", (private, repo.id))
        if gate is not None:
            rows.execute("UPDATE repo SET gate = ? WHERE id = ?", (gate or "", repo.id))


def refs(db: Database, repo: Repo, prefix: str) -> dict[str, str]:
    """Full ref name to commit, of those that start with `prefix`."""
    rows = db.read.execute("SELECT name, oid FROM ref WHERE repo = ? ORDER BY rowid", (repo.id,)).fetchall()
    return {row["name"]: row["oid"] for row in rows if row["name"].startswith(prefix)}


def head(rows: sqlite3.Connection, repo_id: int, ref: str) -> str | None:
    """The commit that a ref names."""
    row = rows.execute("SELECT oid FROM ref WHERE repo = ? AND name = ?", (repo_id, ref)).fetchone()
    return None if row is None else str(row["oid"])


def set_ref(rows: sqlite3.Connection, repo_id: int, ref: str, oid: str) -> None:
    """Point a ref at a commit, and note that the repo changed."""
    rows.execute(
        "INSERT INTO ref VALUES (?, ?, ?, NULL) ON CONFLICT(repo, name) DO UPDATE SET oid = excluded.oid",
        (repo_id, ref, oid),
    )
    rows.execute("UPDATE repo SET modified = ? WHERE id = ?", (now(), repo_id))


def branch_ref(db: Database, repo: Repo, revision: str) -> str:
    """The ref that a commit to `revision` would move: a branch or a pull request, never an oid or a tag."""
    for ref in (revision, f"refs/heads/{'main' if revision == 'HEAD' else revision}"):
        if ref.startswith(("refs/heads/", "refs/pr/")) and head(db.read, repo.id, ref):
            return ref
    raise revision_not_found(revision)


def resolve(db: Database, repo: Repo, revision: str) -> Commit:
    """The commit of a branch, tag, full ref, full oid, or at least 7 digits of one."""
    candidates = (revision, f"refs/heads/{'main' if revision == 'HEAD' else revision}", f"refs/tags/{revision}")
    for ref in candidates:
        oid = head(db.read, repo.id, ref)
        if oid is not None:
            return trees.get_commit(db.read, repo.id, oid)
    if re.fullmatch(r"[0-9a-f]{7,40}", revision):
        rows = db.read.execute(
            "SELECT oid FROM commits WHERE repo = ? AND oid BETWEEN ? AND ?",
            (repo.id, revision, revision + "f" * (40 - len(revision))),
        ).fetchall()
        if len(rows) == 1:
            return trees.get_commit(db.read, repo.id, rows[0]["oid"])
    raise revision_not_found(revision)


def add_ref(db: Database, repo: Repo, ref: str, oid: str, message: str | None = None) -> None:
    """Create a branch or tag."""
    if not REF_NAME.match(ref):
        raise bad_request(f"Invalid reference name: {ref.removeprefix('refs/heads/').removeprefix('refs/tags/')}")
    with db.write() as rows:
        if head(rows, repo.id, ref):
            raise conflict(f"Reference {ref} already exists")
        rows.execute("INSERT INTO ref VALUES (?, ?, ?, ?)", (repo.id, ref, oid, message))


def drop_ref(db: Database, repo: Repo, ref: str) -> str:
    """Delete a branch or tag; the commit it named."""
    if ref == MAIN:
        raise forbidden(f"Cannot delete {MAIN}")
    with db.write() as rows:
        oid = head(rows, repo.id, ref)
        if oid is None:
            raise revision_not_found(ref.removeprefix("refs/heads/").removeprefix("refs/tags/"))
        rows.execute("DELETE FROM ref WHERE repo = ? AND name = ?", (repo.id, ref))
    return oid
