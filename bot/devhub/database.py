"""The metadata: one SQLite file in WAL mode, a connection per thread."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS setting(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS account(name TEXT PRIMARY KEY COLLATE NOCASE, is_org INTEGER NOT NULL,
    created TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS member(org TEXT NOT NULL COLLATE NOCASE, user TEXT NOT NULL COLLATE NOCASE,
    role TEXT NOT NULL, PRIMARY KEY(org, user));
CREATE TABLE IF NOT EXISTS token(digest TEXT PRIMARY KEY, user TEXT NOT NULL, role TEXT NOT NULL, repos TEXT,
    name TEXT NOT NULL, created TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS repo(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL COLLATE NOCASE,
    private INTEGER NOT NULL, gate TEXT NOT NULL, created TEXT NOT NULL, modified TEXT NOT NULL, UNIQUE(kind, name));
CREATE TABLE IF NOT EXISTS alias(kind TEXT NOT NULL, name TEXT NOT NULL COLLATE NOCASE, repo INTEGER NOT NULL,
    PRIMARY KEY(kind, name));
CREATE TABLE IF NOT EXISTS access(repo INTEGER NOT NULL, user TEXT NOT NULL COLLATE NOCASE, status TEXT NOT NULL,
    id TEXT NOT NULL, created TEXT NOT NULL, PRIMARY KEY(repo, user));
CREATE TABLE IF NOT EXISTS commits(repo INTEGER NOT NULL, oid TEXT NOT NULL, tree TEXT NOT NULL, parents TEXT NOT NULL,
    title TEXT NOT NULL, message TEXT NOT NULL, author TEXT NOT NULL, date TEXT NOT NULL, PRIMARY KEY(repo, oid));
CREATE TABLE IF NOT EXISTS tree(oid TEXT NOT NULL, path TEXT NOT NULL, blob TEXT NOT NULL, size INTEGER NOT NULL,
    sha256 TEXT NOT NULL, lfs INTEGER NOT NULL, PRIMARY KEY(oid, path)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ref(repo INTEGER NOT NULL, name TEXT NOT NULL, oid TEXT NOT NULL, message TEXT,
    PRIMARY KEY(repo, name));
CREATE TABLE IF NOT EXISTS holding(repo INTEGER NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY(repo, sha256));
CREATE TABLE IF NOT EXISTS xet(sha256 TEXT PRIMARY KEY, hash TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS discussion(repo INTEGER NOT NULL, num INTEGER NOT NULL, title TEXT NOT NULL,
    status TEXT NOT NULL, is_pr INTEGER NOT NULL, author TEXT NOT NULL, created TEXT NOT NULL, base TEXT,
    merge_commit TEXT, PRIMARY KEY(repo, num));
CREATE TABLE IF NOT EXISTS collection(slug TEXT PRIMARY KEY COLLATE NOCASE, owner TEXT NOT NULL, title TEXT NOT NULL,
    private INTEGER NOT NULL, items TEXT NOT NULL, modified TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS silenced(repo INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS event(seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, repo INTEGER NOT NULL,
    num INTEGER NOT NULL, type TEXT NOT NULL, author TEXT NOT NULL, created TEXT NOT NULL, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS webhook(id TEXT PRIMARY KEY, user TEXT NOT NULL, url TEXT NOT NULL, secret TEXT,
    watched TEXT NOT NULL, domains TEXT NOT NULL, disabled INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS webhook_job(webhook TEXT PRIMARY KEY, owner TEXT NOT NULL, spec TEXT NOT NULL,
    secrets TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS job(id TEXT PRIMARY KEY, owner TEXT NOT NULL, record TEXT NOT NULL);
"""


class Database:
    """Short transactions on one SQLite file; readers never wait for writers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: list[sqlite3.Connection] = []
        # For its owner only, whatever the umask: private repos' names and trees, webhook secrets. SQLite gives its
        # journal the same rights.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        path.chmod(0o600)
        with self.write() as rows:
            rows.executescript(SCHEMA)

    @property
    def read(self) -> sqlite3.Connection:
        """This thread's connection, for queries."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            self._local.connection = connection
        return connection

    def _connect(self) -> sqlite3.Connection:
        # check_same_thread is off only so that close() may close the connections of finished worker threads.
        connection = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode=WAL")
        # NORMAL survives a killed process (the promise here); only a power cut could lose the last commits.
        connection.execute("PRAGMA synchronous=NORMAL")
        with self._lock:
            self._open.append(connection)
        return connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: all of it, or none of it. IMMEDIATE, so that a compare-and-swap inside it holds."""
        connection = self.read
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if connection.in_transaction:  # executescript commits by itself
            connection.execute("COMMIT")

    def close(self) -> None:
        """Close every thread's connection."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()


def now() -> str:
    """This moment as the Hub writes it: ISO 8601, milliseconds, Z."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
