"""The runner's log as the action writes to it: folds, annotations, masks and ordinary lines."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Literal, TextIO

from bot.terminal.streams import disclose
from bot.terminal.workflow_commands import command, defused

MOST = 10  # annotations of one type that GitHub keeps of a step


class WorkflowCommands:
    """Speaks to the runner; outside of Actions (`on` is false) it prints for people instead."""

    def __init__(self, *, on: bool, debug: bool = False, stream: TextIO | None = None) -> None:
        """`debug`: every error is told with its traceback."""
        self.debug = debug
        self._on, self._stream = on, stream or sys.stdout
        self._grouped = False
        self._given: Counter[str] = Counter()

    def mask(self, secrets: Iterable[str]) -> None:
        """Have the runner replace these in every log. Without a runner they must not be printed, so nothing is done."""
        for secret in secrets:
            for line in filter(None, map(str.strip, secret.splitlines())):
                if self._on:
                    disclose(self._stream, command("add-mask", line) + "\n")

    def group(self, title: str) -> None:
        """A fold in the log, which the next one ends."""
        self.end_group()
        if self._on:
            self._write(command("group", title))
            self._grouped = True
        else:
            self._write(f"\n▸ {title}")

    def end_group(self) -> None:
        """Close the fold."""
        if self._grouped:
            self._write(command("endgroup"))
            self._grouped = False

    def annotate(self, kind: Literal["error", "warning", "notice"], text: str, *, title: str, file: str = "") -> None:
        """An annotation; beyond what GitHub keeps, and outside of Actions, a line in the log."""
        self._given[kind] += 1
        if not self._on or self._given[kind] > MOST:
            self.line(f"{kind}: {text}")
            return
        self.end_group()  # inside a fold the annotation's line in the log would be hidden
        self._write(command(kind, text, title=title, file=file))

    def line(self, text: str) -> None:
        """Ordinary text."""
        self._write(defused(text))

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()
