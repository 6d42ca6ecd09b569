"""Faults on demand: what a test asks the local Hub to do wrong."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way to misbehave, for the next `times` matching requests (None: for all) after the first `skip`.

    `path` is a regex, searched in path and query, quoted and unquoted. `status` answers in the hub's place; `cut_after`
    closes the connection after so many bytes of the body (0: the work is done, the answer is lost), `dropped` before
    anything is done; `delay` waits first (seconds); `headers` go with `status`, or without one are added to the true
    answer. `origin` ("hub" or "cdn") narrows the fault to one of the two.
    """

    path: str
    method: str | None = None
    status: int | None = None
    times: int | None = 1
    skip: int = 0
    delay: float = 0.0
    cut_after: int | None = None
    dropped: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    origin: str | None = None

    def matches(self, method: str, target: str, origin: str) -> bool:
        """Whether this request is one to spoil (`origin` is "hub" or "cdn")."""
        if self.method is not None and self.method.upper() != method:
            return False
        if self.origin is not None and self.origin != origin:
            return False
        return any(re.search(self.path, form) for form in (target, unquote(target)))


class Faults:
    """The faults still to come, in the order they were added; safe to change while requests run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: list[Fault] = []
        self._seen: dict[int, int] = {}

    def add(self, fault: Fault) -> Fault:
        """Arm a fault and return it."""
        with self._lock:
            self._pending.append(fault)
        return fault

    def clear(self) -> None:
        """Disarm everything."""
        with self._lock:
            self._pending.clear()
            self._seen.clear()

    def hits(self, fault: Fault) -> int:
        """How many requests this fault has spoilt so far."""
        with self._lock:
            return max(0, self._seen.get(id(fault), 0) - fault.skip)

    def take(self, method: str, target: str, origin: str) -> Fault | None:
        """The first armed fault for this request, counted as used."""
        with self._lock:
            for fault in self._pending:
                if not fault.matches(method, target, origin):
                    continue
                seen = self._seen.get(id(fault), 0)
                if fault.times is not None and seen >= fault.skip + fault.times:
                    continue
                self._seen[id(fault)] = seen + 1
                if seen >= fault.skip:
                    return fault
        return None
