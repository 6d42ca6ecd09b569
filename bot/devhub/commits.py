"""Commits as the API sends them: operations on a tree, and the compare-and-swap that moves a branch."""

from __future__ import annotations

import base64
import binascii
import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bot.devhub import derived, repos, trees

from .errors import HttpError, bad_request, entry_not_found, revision_not_found
from .records import Commit, Entry, Repo, git_blob_id, lfs_pointer
from .site import Site

STALE = "The branch was updated since you opened this page. Please refresh and try again."


@dataclass(frozen=True, kw_only=True)
class Put:
    """Add or replace a file whose bytes are in the object store."""

    entry: Entry


@dataclass(frozen=True, kw_only=True)
class Remove:
    """Delete a file, or a folder with all it holds."""

    path: str


Operation = Put | Remove


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A commit that was asked for; `parent` is the oid (or 7+ digits of it) that the branch must still have."""

    title: str
    message: str
    parent: str | None
    operations: tuple[Operation, ...]


@dataclass(frozen=True, kw_only=True)
class RefUpdate:
    """A ref that changed; None stands for "did not exist" or "is gone"."""

    ref: str
    old: str | None
    new: str | None


def parse(site: Site, repo: Repo, lines: Iterable[bytes]) -> Proposal:
    """The proposal in an ndjson body, one line in memory at a time; regular files go to the object store on the way."""
    header: dict[str, str] = {}
    operations: list[Operation] = []
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            key, value = record["key"], record["value"]
        except (ValueError, KeyError, TypeError) as error:
            raise bad_request("Invalid ndjson: each line must be an object with a key and a value") from error
        if key == "header":
            header = value
        else:
            operations.append(_operation(site, repo, key, value))
    title = (header.get("summary") or "").strip()
    if not title:
        raise bad_request("The commit has no summary: send a header line first")
    return Proposal(
        title=title,
        message=header.get("description") or "",
        parent=header.get("parentCommit"),
        operations=tuple(operations),
    )


def _operation(site: Site, repo: Repo, key: str, value: Mapping[str, object]) -> Operation:
    path = _checked_path(str(value.get("path", "")))
    match key:
        case "file":
            return Put(entry=_regular(site, repo, path, value))
        case "lfsFile":
            return Put(entry=_large(site, repo, path, value))
        case "deletedFile" | "deletedFolder" | "deletedEntry":
            return Remove(path=path.rstrip("/"))
        case _:
            raise bad_request(f"Unknown commit operation: {key}")


def _checked_path(path: str) -> str:
    """Paths that git or a checkout could not hold are refused."""
    parts = path.removesuffix("/").split("/")
    if any(part in ("", ".", "..", ".git") for part in parts) or any(ord(c) < 32 or c == "\\" for c in path):
        raise HttpError(422, f"Invalid path in the commit: {path!r}")
    return path


def _regular(site: Site, repo: Repo, path: str, value: Mapping[str, object]) -> Entry:
    content = str(value.get("content", ""))
    try:
        raw = base64.b64decode(content, validate=True) if value.get("encoding") == "base64" else content.encode()
    except binascii.Error as error:
        raise bad_request(f"The content of {path} is not base64") from error
    if path == "README.md" and repo.kind == "model" and site.checks_cards:
        wrong, _ = derived.problems(raw.decode("utf-8", "replace"))
        if wrong:
            raise bad_request(f"Invalid metadata in README.md: {'; '.join(wrong)}")
    return Entry(path=path, blob=git_blob_id(raw), size=len(raw), sha256=site.objects.add(raw), lfs=False)


def _large(site: Site, repo: Repo, path: str, value: Mapping[str, object]) -> Entry:
    """A large file must have been uploaded before it is committed."""
    oid = str(value.get("oid", ""))
    if value.get("algo", "sha256") != "sha256" or len(oid) != 64:
        raise bad_request(f"{path}: large files are named by a sha256 oid")
    size = hold(site, repo, oid)
    if size is None:
        raise bad_request(f"LFS pointer pointed to a file that does not exist: {path} ({oid}). Upload it first.")
    if value.get("size") not in (None, size):
        raise bad_request(f"{path}: the size announced is {value['size']}, the object has {size} bytes")
    return Entry(path=path, blob=git_blob_id(lfs_pointer(oid, size)), size=size, sha256=oid, lfs=True)


def hold(site: Site, repo: Repo, sha256: str) -> int | None:
    """The size of an object that this repo holds, fetching it from a Xet upload where it came that way."""
    query = "SELECT size FROM holding WHERE repo = ? AND sha256 = ?"
    row = site.db.read.execute(query, (repo.id, sha256)).fetchone()
    if row is not None and site.objects.has(sha256):
        size = int(row["size"])
    elif site.xet is not None and site.xet.fetch_upload(sha256, site.objects):
        size = site.objects.size(sha256) or 0
        grant(site, repo, sha256, size)
    else:
        return None
    if site.xet is not None:
        site.xet.ingest(sha256, site.objects, site.db)
    return size


def grant(site: Site, repo: Repo, sha256: str, size: int) -> None:
    """Note that a repo holds an object: it may be committed and need not be uploaded again."""
    with site.db.write() as rows:
        rows.execute("INSERT OR REPLACE INTO holding VALUES (?, ?, ?)", (repo.id, sha256, size))


def apply(files: Mapping[str, Entry], operations: Iterable[Operation], commit: str) -> dict[str, Entry]:
    """The files after the operations, in the order they were sent."""
    result = dict(files)
    for operation in operations:
        match operation:
            case Put(entry=entry):
                _require_no_clash(result, entry.path)
                result[entry.path] = entry
            case Remove(path=path):
                gone = [p for p in result if p == path or p.startswith(path + "/")]
                if not gone:
                    raise entry_not_found(path, commit)
                for p in gone:
                    del result[p]
    return result


def _require_no_clash(files: dict[str, Entry], path: str) -> None:
    """A file cannot stand where a folder is needed, nor the other way round."""
    parts = path.split("/")
    parents = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
    if parents & files.keys() or any(p.startswith(path + "/") for p in files):
        raise HttpError(422, f"Invalid path in the commit: {path!r} is both a file and a folder")


def land(rows: sqlite3.Connection, repo: Repo, base: str, ref: str, proposal: Proposal, author: str) -> Commit:
    """Write the commit on top of ref `base` and point `ref` at it, inside the caller's transaction."""
    head = repos.head(rows, repo.id, base)
    if head is None:
        raise revision_not_found(base)
    if proposal.parent is not None and not (len(proposal.parent) >= 7 and head.startswith(proposal.parent)):
        raise HttpError(412, STALE)
    before = trees.entries(rows, trees.get_commit(rows, repo.id, head).tree)
    after = apply(before, proposal.operations, head)
    commit = trees.save_commit(
        rows,
        repo.id,
        tree=trees.save_tree(rows, after.values()),
        parents=(head,),
        title=proposal.title,
        message=proposal.message,
        author=author,
    )
    repos.set_ref(rows, repo.id, ref, commit.oid)
    return commit


def merge(
    base: Mapping[str, Entry], ours: Mapping[str, Entry], theirs: Mapping[str, Entry]
) -> tuple[dict[str, Entry], list[str]]:
    """Three-way merge, file by file: the merged files, and the paths that both sides changed differently."""
    merged = dict(ours)
    conflicts: list[str] = []
    for path in sorted({*base, *theirs}):
        if _blob(base, path) == _blob(theirs, path) or _blob(ours, path) == _blob(theirs, path):
            continue
        if _blob(base, path) != _blob(ours, path):
            conflicts.append(path)
        elif path in theirs:
            merged[path] = replace(theirs[path])
        else:
            merged.pop(path, None)
    return merged, conflicts


def _blob(files: Mapping[str, Entry], path: str) -> str | None:
    entry = files.get(path)
    return None if entry is None else entry.blob
