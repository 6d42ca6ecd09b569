"""What the bot knows, in one SQLite file: deliveries, and the outbox of requests. What is promised to the Hub is on the disk first.

WAL with synchronous=FULL: a committed transaction survives a kill and a power cut. Several servers of one machine may share the
file: who works on a request holds it for a limited time (its lease), and every change of it asks whether he still does.
Sources: https://sqlite.org/wal.html, https://sqlite.org/pragma.html#pragma_synchronous, #pragma_user_version
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import RLock
from time import time
from typing import Any

from bot.dispatch.records import Delivery, Fate, Order, Run, RunRequest, State, tag_key
from bot.errors import AdapterMergeError, MachineTooSmall, Usage

# Each entry leads from the version before it to its own number (its place, from 1); the file says its version as user_version.
MIGRATIONS = (
    """
    CREATE TABLE deliveries (id TEXT PRIMARY KEY, received REAL NOT NULL, event TEXT NOT NULL, repo TEXT NOT NULL,
        verdict TEXT NOT NULL) WITHOUT ROWID;
    CREATE INDEX deliveries_by_time ON deliveries (received);
    CREATE TABLE requests (id TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, adapter TEXT NOT NULL, revision TEXT,
        sha TEXT, origin TEXT NOT NULL, options TEXT NOT NULL, answer TEXT, state TEXT NOT NULL, created REAL NOT NULL,
        due REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, backend TEXT NOT NULL DEFAULT '', run TEXT, fate TEXT,
        reason TEXT NOT NULL DEFAULT '', remedy TEXT NOT NULL DEFAULT '', announced TEXT NOT NULL DEFAULT '',
        comment_digest TEXT NOT NULL DEFAULT '', changed REAL NOT NULL, begun REAL NOT NULL DEFAULT 0,
        owner TEXT NOT NULL DEFAULT '', lease REAL NOT NULL DEFAULT 0);
    CREATE INDEX requests_by_state ON requests (state, due);
    """,
    """
    ALTER TABLE requests ADD COLUMN teller REAL NOT NULL DEFAULT 0;
    ALTER TABLE requests ADD COLUMN compared REAL NOT NULL DEFAULT 0;
    """,
    # heard: the order came once more while it was being sent. unsure: the state that a failed request goes on from, where it may
    # have a run all the same.
    """
    ALTER TABLE requests ADD COLUMN heard INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE requests ADD COLUMN unsure TEXT NOT NULL DEFAULT '';
    """,
)
KEPT = 90 * 86400.0  # seconds that deliveries are remembered; requests stay, as they say what was merged already
BUSY = 10.0  # seconds that another process's transaction is waited for
LEASE = 60.0  # seconds that a request stays with its sender after he was last heard of
TELLING = 300.0  # seconds in which a comment is made
NEWS = 7 * 86400.0  # seconds; what changed before that is not told any more
FAR = 3 * 3600.0  # seconds; nothing is due later than that: the clock was wrong when it was written


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """What became of a delivery: whether it was a new one, and the requests that it made."""

    new: bool
    requests: tuple[str, ...] = ()


class Store:
    """The file, opened. Every method is one transaction, and may be called from any thread. Raises MachineTooSmall where the disk
    is full or may not be written."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time) -> None:
        """Opens it, makes it, or brings it up to date. Raises Usage for one of a newer version, and for what is no database."""
        self.path, self.clock = path, clock
        self.owner = secrets.token_hex(8)
        self._lock = RLock()
        with _translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # isolation_level None: transactions begin where we say so.
            self._rows = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
            self._rows.row_factory = sqlite3.Row
            self._rows.execute("PRAGMA journal_mode = WAL")
            self._rows.execute("PRAGMA synchronous = FULL")
            self._migrate()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._rows.close()

    # --- what comes in ------------------------------------------------------------------------------------------------

    def accept(self, batch: Sequence[tuple[Delivery, Sequence[Order]]]) -> list[Accepted]:
        """Deliveries and the requests that they make, on the disk in one transaction when this returns."""
        now = self.clock()
        with self._writing() as rows:
            answers = [self._accept(rows, delivery, orders, now) for delivery, orders in batch]
            rows.execute("DELETE FROM deliveries WHERE received < ?", (now - KEPT,))
        return answers

    def _accept(self, rows: sqlite3.Cursor, delivery: Delivery, orders: Sequence[Order], now: float) -> Accepted:
        known = rows.execute("SELECT 1 FROM deliveries WHERE id = ?", (delivery.id,)).fetchone()
        if known:
            return Accepted(new=False)
        rows.execute(
            "INSERT INTO deliveries VALUES (?, ?, ?, ?, ?)",
            (delivery.id, delivery.received, delivery.event, delivery.repo, delivery.verdict),
        )
        made = [self._add(rows, order, now, once_more=("failed", "dropped")) for order in orders]
        return Accepted(new=True, requests=tuple(request for request in made if request))

    def add(
        self, order: Order, *, once_more: Iterable[State] = (), looked_for: bool = False, backend: str = ""
    ) -> RunRequest | None:
        """A request for this order; None where there is one already, unless that ended in one of the states `once_more`: then it
        begins anew. `looked_for`: as if its sender were gone, so that the backend is asked for its run before it is sent.
        `backend`: the only one that may send it."""
        with self._writing() as rows:
            request = self._add(rows, order, self.clock(), once_more=tuple(once_more))
            if request and looked_for:
                rows.execute(
                    "UPDATE requests SET state = 'sending', begun = 0, lease = 0 WHERE id = ? AND state = 'waiting'",
                    (request,),
                )
            if request and backend:
                rows.execute("UPDATE requests SET backend = ? WHERE id = ?", (backend, request))
            return self._one(rows, request) if request else None

    @staticmethod
    def _add(rows: sqlite3.Cursor, order: Order, now: float, *, once_more: Sequence[str]) -> str | None:
        known = rows.execute("SELECT id, state, unsure FROM requests WHERE key = ?", (order.key,)).fetchone()
        if known and known["state"] not in once_more:
            # Its sender may have looked before this happened, and be about to drop it.
            rows.execute("UPDATE requests SET heard = 1 WHERE id = ? AND state = 'sending'", (known["id"],))
            return None
        if known and known["state"] == "failed" and known["unsure"]:
            # It may run, under this id: it is looked for again.
            rows.execute(
                "UPDATE requests SET state = unsure, due = ?, lease = 0, owner = '', attempts = 0, fate = NULL, reason = '', "
                "remedy = '', changed = ? WHERE id = ?",
                (now, now, known["id"]),
            )
            return str(known["id"])
        # The same order gets the same id wherever it is accepted: a bot that has lost its state finds the run of one that has not.
        request = hashlib.sha256(order.key.encode()).hexdigest()[:16]
        if rows.execute("SELECT 1 FROM requests WHERE id = ?", (request,)).fetchone():
            # The id is the name of a run that has ended, or of the adapter when it was called otherwise.
            request = secrets.token_hex(8)
        if known:
            rows.execute(
                "UPDATE requests SET id = ?, state = 'waiting', origin = ?, options = ?, sha = ?, due = ?, attempts = 0, run = NULL, "
                "fate = NULL, reason = '', remedy = '', changed = ?, owner = '', lease = 0, backend = '', begun = 0 WHERE id = ?",
                (request, order.origin, _dumped(order.options), order.sha, now, now, known["id"]),
            )
            return request
        rows.execute(
            "INSERT INTO requests (id, key, kind, adapter, revision, sha, origin, options, answer, state, created, due, changed) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'waiting', ?, ?, ?)",
            (request, order.key, order.kind, order.adapter, order.revision, order.sha, order.origin, _dumped(order.options),
             order.answer, now, now, now),
        )  # fmt: skip
        return request

    # --- the outbox ---------------------------------------------------------------------------------------------------

    def claim(self, only: str | None = None, backend: str = "") -> RunRequest | None:
        """The request that has waited longest and is due, now ours to send for as long as the lease lasts. `backend`, here and
        below: ours; a request that another one has is left alone."""
        change = "state = 'sending', owner = :me, lease = :now + :lease, begun = :now, heard = 0, unsure = ''"
        return self._take("state = 'waiting' AND (due <= :now OR due > :now + :far)", change, only, backend)

    def claim_stranded(self, only: str | None = None, backend: str = "") -> RunRequest | None:
        """A request whose sender is gone, and which he may have sent: by now at the latest, even where the clock was ahead then."""
        which = "state = 'sending' AND (lease <= :now OR lease > :now + :far)"
        return self._take(which, "owner = :me, lease = :now + :lease, begun = min(begun, :now)", only, backend)

    def claim_followed(self, again_in: float, only: str | None = None, backend: str = "") -> RunRequest | None:
        """A request that runs somewhere and is to be looked at; the next look is due in `again_in` seconds."""
        which = "state = 'sent' AND (due <= :now OR due > :now + :far)"
        return self._take(which, "due = :now + :again", only, backend, again=again_in)

    def renew(self, request: str) -> bool:
        """The lease begins anew; False where somebody else has taken the request over, or it has ended."""
        with self._writing() as rows:
            row = rows.execute(
                "UPDATE requests SET lease = ? WHERE id = ? AND state = 'sending' AND owner = ? RETURNING id",
                (self.clock() + LEASE, request, self.owner),
            ).fetchone()
        return row is not None

    def begin_again(self, request: RunRequest) -> None:
        """It was not sent, as is sure by now: it is sent once more."""
        self._change(request, begun=self.clock(), lease=self.clock() + LEASE)

    def let_go(self, request: RunRequest) -> None:
        """Nothing was sent: whoever comes next begins with it at once."""
        self._change(request, state="waiting", backend="", due=self.clock())

    def _take(self, which: str, change: str, only: str | None, backend: str, **values: float) -> RunRequest | None:
        now = self.clock()
        bound = {"now": now, "me": self.owner, "lease": LEASE, "far": FAR, "only": only, "backend": backend, **values}
        ours = "(:only IS NULL OR id = :only) AND (:backend = '' OR backend IN ('', :backend))"
        with self._reading() as rows:  # most looks see nothing to do, and need not write
            if rows.execute(f"SELECT 1 FROM requests WHERE {which} AND {ours} LIMIT 1", bound).fetchone() is None:
                return None
        with self._writing() as rows:
            taken = rows.execute(
                f"UPDATE requests SET {change}, backend = CASE :backend WHEN '' THEN backend ELSE :backend END WHERE id = "
                f"(SELECT id FROM requests WHERE {which} AND {ours} ORDER BY due, created LIMIT 1) RETURNING *",
                bound,
            ).fetchone()
        return _request(taken) if taken else None

    def resolved(self, request: RunRequest, adapter: str, sha: str) -> RunRequest | None:
        """Note what the tag means now. None where that is merged by another request (this one is dropped), or is no longer ours."""
        order = request.order
        key = tag_key(adapter, order.revision or "", sha) if order.key.startswith("tag ") else order.key
        with self._writing() as rows:
            other = rows.execute("SELECT id FROM requests WHERE key = ? AND id != ?", (key, request.id)).fetchone()
            row = rows.execute("SELECT heard FROM requests WHERE id = ?", (request.id,)).fetchone()
            moved_back = key != order.key and row is not None and bool(row["heard"])
            if other is None and not moved_back:
                rows.execute(
                    "UPDATE requests SET key = ?, adapter = ?, sha = ? WHERE id = ? AND state = 'sending' AND owner = ?",
                    (key, adapter, sha, request.id, self.owner),
                )
        if moved_back:  # perhaps: it was heard of again at the former commit, maybe after the tag was looked at
            self.let_go(request)
            return None
        if other is not None:
            self.drop(request, f"RunRequest {other['id']} merges the same commit under this tag.")
            return None
        return self.request(request.id) if self.renew(request.id) else None

    def sent(self, request: RunRequest, backend: str, run: Run) -> None:
        """It runs; look at it soon."""
        self._change(request, state="sent", backend=backend, run=_dumped(asdict(run)), attempts=0, due=self.clock(), reason="",
                     remedy="")  # fmt: skip

    def wait(self, request: RunRequest, error: AdapterMergeError, seconds: float) -> None:
        """It could not be sent: try again in `seconds`. Survives a restart, as it stands in the row."""
        self._change(request, state="waiting", backend="", attempts=request.attempts + 1, due=self.clock() + seconds,
                     reason=error.what, remedy=error.remedy)  # fmt: skip

    def keep_looking(self, request: RunRequest, seconds: float) -> None:
        """Nobody knows yet whether it was sent: it stays ours, and is looked for again in `seconds`."""
        self._change(request, attempts=request.attempts + 1, lease=self.clock() + seconds)

    def fail(self, request: RunRequest, error: AdapterMergeError, *, unsure: bool = False) -> None:
        """Give it up, with the reason and the remedy. `unsure`: it may run all the same, and is looked for if it is heard of again."""
        fate = Fate(status="failed", reason=error.what, remedy=error.remedy, exit_code=error.exit_code)
        self._change(request, state="failed", unsure=request.state if unsure else "", reason=error.what, remedy=error.remedy,
                     fate=_dumped(asdict(fate)))  # fmt: skip

    def drop(self, request: RunRequest, reason: str) -> None:
        """There is nothing to do for it; unless it was heard of again meanwhile, as of a tag that was deleted and made anew."""
        self._change(request, state="dropped", reason=reason, remedy="")
        with self._writing() as rows:
            rows.execute(
                "UPDATE requests SET state = 'waiting', backend = '', due = ?, reason = '', heard = 0 "
                "WHERE id = ? AND state = 'dropped' AND heard = 1",
                (self.clock(), request.id),
            )

    def follow(self, request: RunRequest, fate: Fate) -> None:
        """How its run stands. One that has ended is done, or failed."""
        state: State = request.state
        if fate.final:
            state = "failed" if fate.status == "failed" else "done"
        self._change(
            request, state=state, fate=_dumped(asdict(fate)), attempts=0, reason=fate.reason, remedy=fate.remedy
        )
        if fate.status in ("published", "unchanged"):
            self._drop_failed(request)

    def _drop_failed(self, request: RunRequest) -> None:
        """A merge of the same commit under the same tag that failed before needs nobody's help any more."""
        order = request.order
        with self._writing() as rows:
            rows.execute(
                "UPDATE requests SET state = 'dropped', reason = ?, remedy = '', changed = ? WHERE state = 'failed' AND id != ? "
                "AND kind = 'merge' AND lower(adapter) = lower(?) AND revision IS ? AND sha IS ?",
                (
                    f"RunRequest {request.id} merged it.",
                    self.clock(),
                    request.id,
                    order.adapter,
                    order.revision,
                    order.sha,
                ),
            )

    def follow_later(self, request: RunRequest, error: AdapterMergeError, seconds: float) -> None:
        """Its run could not be looked at."""
        self._change(
            request, attempts=request.attempts + 1, due=self.clock() + seconds, reason=error.what, remedy=error.remedy
        )

    def claim_telling(self) -> RunRequest | None:
        """The request that changed first since its comment was compared with it, now ours to tell of for TELLING seconds. Nobody
        else tells anything on the same adapter meanwhile. What changed long ago is not told any more: it is from before comments
        were asked for."""
        bound = {"now": self.clock(), "lease": TELLING, "far": FAR, "news": NEWS}
        which = (
            "compared != changed AND changed > :now - :news AND lower(adapter) NOT IN "
            "(SELECT lower(adapter) FROM requests WHERE teller > :now AND teller <= :now + :far)"
        )
        with self._reading() as rows:  # mostly there is nothing to tell
            if rows.execute(f"SELECT 1 FROM requests WHERE {which} LIMIT 1", bound).fetchone() is None:
                return None
        with self._writing() as rows:
            taken = rows.execute(
                "UPDATE requests SET teller = :now + :lease WHERE id = "
                f"(SELECT id FROM requests WHERE {which} ORDER BY changed LIMIT 1) RETURNING *",
                bound,
            ).fetchone()
        return _request(taken) if taken else None

    def announce(self, request: RunRequest, announced: str, digest: str) -> None:
        """Which comment tells of it, as it was when it was claimed, and the digest of what that says now."""
        with self._writing() as rows:
            rows.execute(
                "UPDATE requests SET announced = ?, comment_digest = ?, compared = ?, teller = 0 WHERE id = ?",
                (announced, digest, request.changed, request.id),
            )

    def tell_later(self, request: RunRequest, seconds: float) -> None:
        """It could not be told: try again in `seconds`."""
        with self._writing() as rows:
            rows.execute("UPDATE requests SET teller = ? WHERE id = ?", (self.clock() + seconds, request.id))

    def is_superseded(self, request: RunRequest) -> bool:
        """Whether there is a newer merge for the same tag: it was moved, and the comment tells of the newer one."""
        with self._reading() as rows:
            newer = rows.execute(
                "SELECT 1 FROM requests WHERE kind = 'merge' AND answer IS NULL AND lower(adapter) = lower(?) AND revision IS ? "
                "AND created > ? AND state != 'dropped'",
                (request.order.adapter, request.order.revision, request.created),
            ).fetchone()
        return newer is not None

    def _change(self, request: RunRequest, **values: Any) -> None:
        """Change a row, if it is still as we took it: nobody else took it over meanwhile."""
        values["changed"] = self.clock()
        named = ", ".join(f"{name} = :{name}" for name in values)
        held = "AND owner = :me" if request.state == "sending" else ""
        with self._writing() as rows:
            rows.execute(
                f"UPDATE requests SET {named} WHERE id = :request AND state = :was {held}",
                {**values, "request": request.id, "was": request.state, "me": self.owner},
            )

    # --- what is asked of it ------------------------------------------------------------------------------------------

    def request(self, request: str) -> RunRequest | None:
        """One request by its id."""
        with self._reading() as rows:
            return self._one(rows, request)

    def by_key(self, key: str) -> RunRequest | None:
        """One request by its order's key."""
        with self._reading() as rows:
            row = rows.execute("SELECT * FROM requests WHERE key = ?", (key,)).fetchone()
        return _request(row) if row else None

    def requests(self, limit: int = 100) -> list[RunRequest]:
        """The newest ones first."""
        with self._reading() as rows:
            listed = rows.execute("SELECT * FROM requests ORDER BY created DESC LIMIT ?", (limit,)).fetchall()
        return [_request(row) for row in listed]

    def deliveries(self, limit: int = 100) -> list[Delivery]:
        """The newest ones first."""
        with self._reading() as rows:
            listed = rows.execute("SELECT * FROM deliveries ORDER BY received DESC LIMIT ?", (limit,)).fetchall()
        return [Delivery(**dict(row)) for row in listed]

    def counts(self) -> dict[str, int]:
        """How many requests are in which state, and how many deliveries are remembered."""
        with self._reading() as rows:
            states = rows.execute("SELECT state, count(*) FROM requests GROUP BY state").fetchall()
            deliveries = rows.execute("SELECT count(*) FROM deliveries").fetchone()[0]
        return {**dict(states), "deliveries": deliveries}

    def next_due(self, backend: str = "") -> float | None:
        """When something is to be done next, in seconds since the epoch; None where nothing is. `backend`: by this one."""
        with self._reading() as rows:
            due: float | None = rows.execute(
                "SELECT min(CASE state WHEN 'sending' THEN lease ELSE due END) FROM requests "
                "WHERE state IN ('waiting', 'sending', 'sent') AND (:backend = '' OR backend IN ('', :backend))",
                {"backend": backend},
            ).fetchone()[0]
        return due

    def check(self) -> None:
        """Raise MachineTooSmall where it cannot be written now."""
        with self._writing() as rows:
            # Its own value, which a newer program beside this one may have raised.
            version: int = rows.execute("PRAGMA user_version").fetchone()[0]
            rows.execute(f"PRAGMA user_version = {version}")

    # --- the file -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _one(rows: sqlite3.Cursor, request: str) -> RunRequest | None:
        row = rows.execute("SELECT * FROM requests WHERE id = ?", (request,)).fetchone()
        return _request(row) if row else None

    def _migrate(self) -> None:
        with self._writing() as rows:
            version: int = rows.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise Usage(
                    f"{self.path} was written by a newer version of adapter-merge.",
                    remedy="Install that version, or name another file with --state.",
                )
            for migration in MIGRATIONS[version:]:
                for statement in filter(str.strip, migration.split(";")):
                    rows.execute(statement)
            rows.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Cursor]:
        """A transaction that is on the disk when the block is left; of a block that raises nothing is."""
        with self._lock, _translated(self.path):
            cursor = self._rows.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                if self._rows.in_transaction:
                    cursor.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Cursor]:
        with self._lock, _translated(self.path):
            yield self._rows.cursor()


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if "not a database" in text or "malformed" in text or "already exists" in text:
            raise Usage(f"{path} is not a state file of adapter-merge's, or is damaged ({text}).",
                        remedy="Name another file with --state, or restore it from a backup.") from error  # fmt: skip
        if isinstance(error, sqlite3.OperationalError):
            raise MachineTooSmall(
                f"{path} cannot be written: {text}.",
                remedy="Free some space, give this user the right to the file and its folder, or name another one with --state.",
            ) from error
        raise
    except OSError as error:
        raise MachineTooSmall(
            f"{path} cannot be written: {error.strerror}.", remedy="Name another file with --state."
        ) from error


def _request(row: sqlite3.Row) -> RunRequest:
    order = Order(
        key=row["key"], kind=row["kind"], adapter=row["adapter"], revision=row["revision"], sha=row["sha"], origin=row["origin"],
        options=tuple((name, value) for name, value in json.loads(row["options"])), answer=row["answer"],
    )  # fmt: skip
    return RunRequest(
        id=row["id"], order=order, state=row["state"], created=row["created"], due=row["due"], attempts=row["attempts"],
        backend=row["backend"], run=Run(**json.loads(row["run"])) if row["run"] else None,
        fate=Fate(**json.loads(row["fate"])) if row["fate"] else None, reason=row["reason"], remedy=row["remedy"],
        begun=row["begun"], announced=row["announced"], comment_digest=row["comment_digest"], changed=row["changed"],
    )  # fmt: skip


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
