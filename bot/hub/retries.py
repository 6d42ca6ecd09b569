"""How long a Hub that is busy, away or slow is waited for: one policy for every call that reads or publishes.

A request that may be sent again whatever became of it (a read, an upload of bytes that are named by their hash) is sent again
below the client, see `bot.hub.session`. One that changes something is sent once; the step that it belongs to then looks whether
it was done all the same, see `Connection.patiently`. The client's own further tries are off meanwhile: one policy inside another
would multiply, and would not know what the Hub asks for.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from bot.errors import AdapterMergeError
from bot.events import Emit, Note, silent
from bot.hub.sentences import HubBusy, Where
from bot.signals import interrupted

PAUSES = (1.0, 4.0, 15.0, 30.0, 60.0, 60.0)  # seconds before each further try, a quarter more or less
BRIEF = 3  # tries again where nothing is lost yet: a read of the inputs, or a Hub that has never answered
MOST = 330.0  # seconds that one call is waited for, all its pauses together; the Hub counts in windows of five minutes
WORTH_SAYING = 3.0  # seconds; a longer wait is told
SLICE = 0.2  # seconds within which a wait ends on Ctrl-C, in whatever thread it is


def rest(seconds: float) -> None:
    """Wait. In the main thread a signal ends it; the client's threads learn of it here."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if interrupted():
            raise KeyboardInterrupt
        time.sleep(min(left, SLICE))


class Patience:
    """The policy of one Hub. `pauses`: see PAUSES. `sleep`: how to wait. `tell` hears of every long wait."""

    def __init__(self, pauses: tuple[float, ...] = PAUSES, sleep: Callable[[float], None] = rest) -> None:
        self.pauses, self.sleep = pauses, sleep
        self.tell: Emit = silent
        self.answered = False  # whether this Hub has ever said anything to this process


class Tries:
    """The further tries of one request, or of one step."""

    def __init__(self, patience: Patience, *, publishing: bool) -> None:
        self._patience, self._publishing = patience, publishing
        self._waited = 0.0
        self.made = 0

    def wait(self, error: AdapterMergeError | None, lasted: float) -> bool:
        """Wait until it is worth trying again; False, at once, where it is not. `lasted`: seconds that the failed try took."""
        pauses = (
            self._patience.pauses if self._publishing and self._patience.answered else self._patience.pauses[:BRIEF]
        )
        if not isinstance(error, HubBusy) or self.made >= len(pauses):
            return False
        stated = error.wait
        # Not all at the same moment: what had to wait together would be too much together again.
        pause = pauses[self.made] * random.uniform(0.75, 1.25) if stated is None else stated + random.uniform(0.5, 1.5)
        self._waited += pause + (lasted if error.silent else 0.0)
        if self._waited > MOST:
            return False
        self.made += 1
        if pause >= WORTH_SAYING:
            self._patience.tell(Note(text=f"{error.what} Trying again in {pause:.0f} s."))
        self._patience.sleep(pause)
        return True


class Step:
    """A call of ours, for as long as its requests are on their way: `with step: …`. `publishing`: much would be lost with it."""

    def __init__(self, patience: Patience, where: Where, *, publishing: bool) -> None:
        self.patience, self.where, self._publishing = patience, where, publishing
        self.spent = False  # whether a request of it was given up: then the step is not tried again either

    def tries(self) -> Tries:
        """Those of one request of it, or of itself."""
        return Tries(self.patience, publishing=self._publishing)

    def __enter__(self) -> Step:
        _UNDER_WAY.append(self)
        self._own().append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _UNDER_WAY.remove(self)
        self._own().remove(self)

    @staticmethod
    def _own() -> list[Step]:
        """The steps that this thread itself is in."""
        steps: list[Step] = _HERE.__dict__.setdefault("steps", [])
        return steps


def under_way() -> Step | None:
    """The step whose request this is; None for what the client does of itself, such as downloads.

    It is the calling thread's own. The client uploads from threads of its own, which know nothing of what they belong to: there
    it is the newest of all.
    """
    steps = Step._own() or _UNDER_WAY
    return steps[-1] if steps else None


_UNDER_WAY: list[Step] = []
_HERE = threading.local()
