"""Where a run's events become lines of the Actions log: stages are folds, warnings are annotations."""

from __future__ import annotations

from threading import Lock

from bot.action.commands import WorkflowCommands
from bot.action.input_names import as_inputs
from bot.events import Event, Note, Stage, StepProgress, TextBlock
from bot.terminal.plain import plain
from bot.terminal.progress import Progress


class Log:
    """An `Emit` for Actions. `file` is what annotations point at, a path in the GitHub repo."""

    def __init__(self, commands: WorkflowCommands, file: str = "") -> None:
        self._commands, self._file = commands, file
        self._progress, self._lock = Progress(terminal=False), Lock()

    def __call__(self, event: Event) -> None:
        match event:
            case Stage():
                self._commands.group(event.title)
                self._progress.stage()
            case StepProgress():
                self._moved(event)
            case Note() if event.level == "warning":
                self._commands.annotate("warning", as_inputs(event.text), title="adapter-merge", file=self._file)
            case Note() if event.level == "notice":
                self._commands.annotate("notice", as_inputs(event.text), title="adapter-merge", file=self._file)
            case Note():
                self._commands.line(f"  {as_inputs(event.text)}")
            case TextBlock():
                self._commands.line(plain(event.details or event.parts))  # a fold has room for all of it

    def _moved(self, event: StepProgress) -> None:
        with self._lock:
            line = self._progress.take(event)
            if line is not None:
                self._commands.line(f"  {line.text}")
