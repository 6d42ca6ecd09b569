"""How a step's progress is told: how much of it, how fast it goes, how long it will take. Of terminals and logs alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from bot.events import StepProgress

REDRAW = 0.1  # seconds between two drawings of the bar
LOG_EVERY = 10.0  # seconds between two lines where there is no terminal
TELLING = 0.02  # of a step: from less, nothing follows for the rest
WORTH_A_LINE = 1.0  # seconds: a named step that took less leaves none, nor is one of a log begun with it


@dataclass(frozen=True, kw_only=True)
class ProgressLine:
    """What to print. `finished`: the step is over. `share`: how much of it is done; None where nobody knows."""

    text: str
    finished: bool
    share: float | None = None


class Progress:
    """The steps of one run, one after the other. Its speed is that of a step's own work, from when it began."""

    def __init__(self, *, terminal: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal, self._clock = terminal, clock
        self._last: StepProgress | None = None
        self._began = self._told = clock()
        self._kept = 0
        self._over = False

    def stage(self) -> None:
        """Another stage: whatever comes next is a new step."""
        self._last = None

    def take(self, event: StepProgress) -> ProgressLine | None:
        """The line that is due, if one is."""
        now = self._clock()
        last, self._last = self._last, event
        if last is None or (last.stage, last.what) != (event.stage, event.what) or event.done < last.done:
            self._began, self._over, self._kept = now, False, max(event.kept, event.done)
            if last is None or self._terminal:
                self._told = now
        self._kept = max(self._kept, event.kept)
        if self._over:
            return None
        seconds = now - self._began
        self._over = bool(event.total) and event.done >= event.total
        if self._over:
            return self._finished(event, seconds)
        due = now - self._told >= (REDRAW if self._terminal else LOG_EVERY)
        if not due or (not self._terminal and seconds < WORTH_A_LINE):
            return None
        self._told = now
        share = event.done / event.total if event.total else None
        return ProgressLine(text=self._under_way(event, seconds), finished=False, share=share)

    def _finished(self, event: StepProgress, seconds: float) -> ProgressLine | None:
        if event.what and seconds < WORTH_A_LINE:
            return None
        done = _amount(event.done, event.unit)
        took = f" in {seconds:.1f} s{_speed(self._rate(event, seconds), event.unit)}" if seconds > 0.05 else ""
        return ProgressLine(text=f"{_named(event)}{done}{took}", finished=True)

    def _under_way(self, event: StepProgress, seconds: float) -> str:
        rate = self._rate(event, seconds)
        if not event.total:
            done = f"{_amount(event.done, event.unit)}{_speed(rate, event.unit)}, " if event.done else ""
            return f"{_named(event)}{done}{duration(seconds)}"
        share = event.done / event.total
        known = rate > 0 and share >= TELLING
        left = f"{duration((event.total - event.done) / rate)} left" if known else f"{duration(seconds)} so far"
        moved = f"{_number(event.done, event.unit)} of {_amount(event.total, event.unit)}"
        return f"{share:4.0%}  {_named(event)}{moved}{_speed(rate, event.unit)}, {left}"

    def _rate(self, event: StepProgress, seconds: float) -> float:
        return max(0, event.done - self._kept) / seconds if seconds > 0.05 else 0.0


def duration(seconds: float) -> str:
    """As in 48 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _named(event: StepProgress) -> str:
    return f"{event.what}: " if event.what else ""


def _number(count: int, unit: str) -> str:
    return _readable(count) if unit == "bytes" else f"{count:,}"


def _amount(count: int, unit: str) -> str:
    return _readable(count) if unit == "bytes" else f"{count:,} {unit}"


def _speed(rate: float, unit: str) -> str:
    return f", {_readable(rate)}/s" if rate and unit == "bytes" else ""


def _readable(size: float) -> str:
    from bot.budget import readable  # which imports the records: `--help` does without

    return readable(size)
