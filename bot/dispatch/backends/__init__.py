"""Where runs run. To add a backend, write a module with a class that is a Backend, and a line in `bot.dispatch.backend_choice`."""

from __future__ import annotations

from typing import Protocol

from bot.dispatch.records import Fate, Run, RunRequest
from bot.errors import Outside


class Unsure(Outside):
    """Whether the run was started is not known: the answer was lost. It is looked for before it is sent again."""


class Busy(Outside):
    """Try again in `seconds`, as the service itself asked for."""

    def __init__(self, what: str, *, remedy: str, seconds: float) -> None:
        super().__init__(what, remedy=remedy)
        self.seconds = seconds


class Backend(Protocol):
    """Starts runs, and knows its own again by the request's id. Queues, machines and the runs' own retries are its business.

    Every method raises AdapterMergeError: Usage or Refused for what no further try mends, Outside for the rest.
    """

    NAME: str
    # Seconds after which a run that was started is surely listed, and until then may not be.
    SHOWN_AFTER: float
    # Seconds between two looks at a run.
    LOOK_EVERY: float

    def check(self) -> None:
        """Before any work: raise where a request could not be sent (a workflow that is not there, a token without the right …)."""

    def send(self, request: RunRequest) -> Run:
        """Start the run. Raises Unsure where it may have been started all the same, Busy where it is to be tried later."""

    def find(self, request: RunRequest) -> Run | None:
        """The run of this request, where it was started."""

    def look(self, request: RunRequest) -> Fate:
        """How the request's run stands."""

    def log(self, request: RunRequest, lines: int) -> list[str]:
        """The last lines of the run's log; none where there is none to be had."""
