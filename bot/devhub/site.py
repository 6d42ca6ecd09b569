"""What every part of the local Hub works with: metadata, bytes, signatures, Xet, and the seams for tests."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .database import Database
from .deliveries import Deliveries
from .faults import Faults
from .hardware import HARDWARE
from .jobs import Jobs
from .objects import Objects
from .xet import Xet

REQUESTS_KEPT = 10_000
BeforeCommit = Callable[[str, str], None]


@dataclass(kw_only=True)
class Site:
    """One served folder."""

    folder: Path
    db: Database
    objects: Objects
    faults: Faults
    deliveries: Deliveries
    jobs: Jobs
    xet: Xet | None
    part_size: int
    prefix: str = ""
    mirror: int = 0
    public: str = ""
    cdn_port: int = 0
    before_commit: BeforeCommit | None = None
    hook_running: bool = False
    user: str = "demo"  # the default one, whose token is in the folder
    checks_cards: bool = True  # False: as when cards were pushed unchecked, which is how old ones came to be
    hardware: Sequence[Mapping[str, Any]] = HARDWARE
    requests: list[tuple[str, str, int]] = field(default_factory=list)

    def call_before_commit(self, repo: str, revision: str) -> None:
        """Run the test's hook; commits made inside the hook do not run it again."""
        if self.before_commit is None or self.hook_running:
            return
        self.hook_running = True
        try:
            self.before_commit(repo, revision)
        finally:
            self.hook_running = False

    def note(self, method: str, path: str, status: int) -> None:
        """Log an answered request; a hub that runs for days forgets the oldest."""
        self.requests.append((method, path, status))
        if len(self.requests) > 2 * REQUESTS_KEPT:
            del self.requests[:REQUESTS_KEPT]

    def sign(self, **claims: str | int) -> str:
        """A token for a URL that must work without `Authorization`: the claims, and their HMAC."""
        payload = json.dumps(claims, sort_keys=True).encode().hex()
        return f"{payload}.{self._mac(payload)}"

    def check(self, signed: str) -> dict[str, str | int] | None:
        """The claims of a signed URL; None where it is forged or has expired."""
        payload, _, mac = signed.partition(".")
        if not hmac.compare_digest(mac.encode(), self._mac(payload).encode()):
            return None
        claims: dict[str, str | int] = json.loads(bytes.fromhex(payload))
        return claims if int(claims.get("until", 0)) > time.time() else None

    def _mac(self, payload: str) -> str:
        return hmac.new(self._key, payload.encode(), hashlib.sha256).hexdigest()

    @property
    def _key(self) -> bytes:
        # Kept in the folder, so that URLs handed out before a restart still work after it.
        return bytes.fromhex(setting(self.db, "signing-key", lambda: secrets.token_hex(32)))


def setting(db: Database, key: str, fresh: Callable[[], str]) -> str:
    """A value that is made once per folder."""
    row = db.read.execute("SELECT value FROM setting WHERE key = ?", (key,)).fetchone()
    if row is not None:
        return str(row["value"])
    with db.write() as rows:
        rows.execute("INSERT OR IGNORE INTO setting VALUES (?, ?)", (key, fresh()))
    return str(db.read.execute("SELECT value FROM setting WHERE key = ?", (key,)).fetchone()["value"])
