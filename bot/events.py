"""What a run says while it works: a stage begins, work moves, a sentence is worth reading.

Stages call an `Emit`; who listens (a terminal, Actions, a test, nobody) is the entry point's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event as Signal
from threading import Lock, Thread
from typing import Literal

BEAT = 1.0  # seconds between two words of a step that says nothing itself


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage begins, e.g. `merge`."""

    name: str
    title: str


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """`done` of `total` of one step of the current stage is through (`total` 0: unknown).

    `what` names the step where a stage has several; a new name, or less done than before, begins a new one. A step says 0
    when it begins, so that its speed is that of its own work. `kept` of `done` was there before. `unit` is what is
    counted: bytes, or things by their name.
    """

    stage: str
    done: int
    total: int
    what: str = ""
    kept: int = 0
    unit: str = "bytes"


@dataclass(frozen=True, kw_only=True)
class Note:
    """One sentence for the reader. `level` is note or warning."""

    text: str
    level: str = "note"


Tone = Literal["plain", "strong", "quiet", "good", "remark", "bad"]


@dataclass(frozen=True, kw_only=True)
class TextLine:
    """A paragraph; "" is an empty line. `tone`: what a terminal with colours makes of it."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """Rows of plain text; a cell may have several lines. Where `head` is (), the first column names what a row is about.

    `tones`: one for each row, () where all are plain. `indent`: spaces before it.
    """

    rows: tuple[tuple[str, ...], ...]
    head: tuple[str, ...] = ()
    tones: tuple[Tone, ...] = ()
    indent: int = 0


Parts = tuple[TextLine | TextTable, ...]


@dataclass(frozen=True, kw_only=True)
class TextBlock:
    """What a person is to read. `details`: shown in its place to whoever asked for everything; () where there is no more."""

    parts: Parts
    details: Parts = ()


Event = Stage | StepProgress | Note | TextBlock
Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """An `Emit` that drops everything."""


@contextmanager
def beating(emit: Emit, stage: str, what: str = "", beat: float = BEAT) -> Iterator[Emit]:
    """An `Emit` for work that may be silent for long: meanwhile the last `StepProgress` is sent again and again, so that the
    listener sees that time passes. Begins the step `what`."""
    last, lock, over = StepProgress(stage=stage, done=0, total=0, what=what), Lock(), Signal()

    def forward(event: Event) -> None:
        nonlocal last
        with lock:
            if isinstance(event, StepProgress):
                last = event
            emit(event)

    def repeat() -> None:
        while not over.wait(beat):
            with lock:
                emit(last)

    forward(last)
    pulse = Thread(target=repeat, name="beating", daemon=True)
    pulse.start()
    try:
        yield forward
    finally:
        over.set()
        pulse.join()
