"""Trees and commits: what git would store, with the ids that git would give."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from .database import now
from .errors import revision_not_found
from .records import Commit, Entry


def folder_ids(files: Mapping[str, str]) -> dict[str, str]:
    """The git tree id of every folder ("" is the root), from path → blob id."""
    nested: dict[str, dict[str, tuple[str, str]]] = {"": {}}
    for path, blob in files.items():
        parent, _, name = path.rpartition("/")
        nested.setdefault(parent, {})[name] = ("100644", blob)
        while parent and parent.rpartition("/")[0] not in nested:
            parent = parent.rpartition("/")[0]
            nested[parent] = {}
    ids: dict[str, str] = {}
    for folder in sorted(nested, key=lambda f: (f.count("/") + bool(f), f), reverse=True):
        ids[folder] = _tree_id(nested[folder])
        if folder:
            parent, _, name = folder.rpartition("/")
            nested[parent][name] = ("40000", ids[folder])
    return ids


def _tree_id(children: Mapping[str, tuple[str, str]]) -> str:
    # git sorts a folder as if its name ended in a slash.
    ordered = sorted(children.items(), key=lambda item: item[0] + ("/" if item[1][0] == "40000" else ""))
    body = b"".join(f"{mode} {name}".encode() + b"\x00" + bytes.fromhex(oid) for name, (mode, oid) in ordered)
    return hashlib.sha1(b"tree %d\x00" % len(body) + body).hexdigest()


def save_tree(rows: sqlite3.Connection, entries: Iterable[Entry]) -> str:
    """Store a whole tree, once per content; its git id."""
    files = list(entries)
    oid = folder_ids({entry.path: entry.blob for entry in files})[""]
    rows.executemany(
        "INSERT OR IGNORE INTO tree VALUES (?, ?, ?, ?, ?, ?)",
        [(oid, e.path, e.blob, e.size, e.sha256, e.lfs) for e in files],
    )
    return oid


def save_commit(
    rows: sqlite3.Connection,
    repo_id: int,
    *,
    tree: str,
    parents: tuple[str, ...],
    title: str,
    message: str,
    author: str,
) -> Commit:
    """Store a commit object (no ref moves); its id is git's own."""
    date = now()
    stamp = int(datetime.fromisoformat(date).timestamp())
    who = f"{author} <{author}@localhost> {stamp} +0000"
    text = title + (f"\n\n{message}" if message else "")
    lines = [f"tree {tree}", *(f"parent {p}" for p in parents), f"author {who}", f"committer {who}", "", text, ""]
    body = "\n".join(lines).encode()
    oid = hashlib.sha1(b"commit %d\x00" % len(body) + body).hexdigest()
    rows.execute(
        "INSERT OR IGNORE INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (repo_id, oid, tree, json.dumps(parents), title, message, author, date),
    )
    return get_commit(rows, repo_id, oid)


def get_commit(rows: sqlite3.Connection, repo_id: int, oid: str) -> Commit:
    """A commit of this repo."""
    row = rows.execute("SELECT * FROM commits WHERE repo = ? AND oid = ?", (repo_id, oid)).fetchone()
    if row is None:
        raise revision_not_found(oid)
    return Commit(
        oid=row["oid"],
        tree=row["tree"],
        parents=tuple(json.loads(row["parents"])),
        title=row["title"],
        message=row["message"],
        author=row["author"],
        date=row["date"],
    )


def history(rows: sqlite3.Connection, repo_id: int, start: str) -> Iterator[Commit]:
    """A commit and all its ancestors, each once, the latest first (a parent is never newer than its child)."""
    seen = {start}
    waiting = [get_commit(rows, repo_id, start)]
    while waiting:
        commit = max(waiting, key=lambda c: c.date)
        waiting.remove(commit)
        yield commit
        fresh = [oid for oid in commit.parents if oid not in seen]
        seen.update(fresh)
        waiting.extend(get_commit(rows, repo_id, oid) for oid in fresh)


def _entry(row: sqlite3.Row) -> Entry:
    return Entry(path=row["path"], blob=row["blob"], size=row["size"], sha256=row["sha256"], lfs=bool(row["lfs"]))


def entries(rows: sqlite3.Connection, tree: str) -> dict[str, Entry]:
    """All files of a tree by path, sorted."""
    files = rows.execute("SELECT * FROM tree WHERE oid = ? ORDER BY path", (tree,))
    return {row["path"]: _entry(row) for row in files}


def entry(rows: sqlite3.Connection, tree: str, path: str) -> Entry | None:
    """One file of a tree."""
    row = rows.execute("SELECT * FROM tree WHERE oid = ? AND path = ?", (tree, path)).fetchone()
    return None if row is None else _entry(row)


def folders(files: Mapping[str, Entry]) -> dict[str, str]:
    """The folders of a tree by path, without the root, with their git ids."""
    ids = folder_ids({path: entry.blob for path, entry in files.items()})
    return {folder: oid for folder, oid in ids.items() if folder}


def last_changes(rows: sqlite3.Connection, repo_id: int, start: Commit, paths: Iterable[str]) -> dict[str, Commit]:
    """For each file or folder path, the commit that gave it its present content (first-parent line)."""
    state = _state(rows, start)
    open_paths = {path for path in paths if path in state}
    changes: dict[str, Commit] = {}
    commit = start
    while open_paths:
        before = get_commit(rows, repo_id, commit.parents[0]) if commit.parents else None
        old = _state(rows, before) if before else {}
        for path in [p for p in open_paths if old.get(p) != state[p]]:
            changes[path] = commit
            open_paths.discard(path)
        if before is None:
            break
        commit = before
    return changes


def _state(rows: sqlite3.Connection, commit: Commit) -> dict[str, str]:
    files = entries(rows, commit.tree)
    return {**{path: entry.blob for path, entry in files.items()}, **folders(files)}


def file_item(entry: Entry, xet_hash: str | None) -> dict[str, Any]:
    """A file as the tree API shows it."""
    item: dict[str, Any] = {"type": "file", "oid": entry.blob, "size": entry.size, "path": entry.path}
    if entry.lfs:
        item["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
        if xet_hash:
            item["xetHash"] = xet_hash
    return item


def folder_item(path: str, oid: str) -> dict[str, Any]:
    """A folder as the tree API shows it."""
    return {"type": "directory", "oid": oid, "size": 0, "path": path}
