"""What a run says while it works: a stage begins, bytes move, a sentence is worth reading.

Stages call an `Emit`; who listens (a terminal, Actions, a test, nobody) is decided at the door.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage begins, e.g. `merge`."""

    name: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Moved:
    """`done` of `total` bytes of the current stage are through (`total` 0: unknown)."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Note:
    """One sentence for the reader. `level` is note, notice (one that the Actions page shows beside the log) or warning."""

    text: str
    level: str = "note"


@dataclass(frozen=True, kw_only=True)
class Show:
    """A block of text, ready to print: a table."""

    text: str


Event = Stage | Moved | Note | Show
Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """An `Emit` that drops everything."""
