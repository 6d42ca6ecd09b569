"""Many forward passes through one model in step: none goes on to the next module before all are through with this one.

So each module's weights are needed once, for all of them, and hidden states are all that is held besides. Nothing is known of
the architecture: each pass is the model's own forward, in a thread that waits wherever a module is called. One thread runs at a
time, and the modules themselves run in the caller's, with the processors' cores for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Semaphore, Thread, local
from typing import Any

from torch import nn

Modes = Callable[[], AbstractContextManager[Any]]
_HERE = local()  # .passing: the SteppedRun that this thread runs


class _Ended(BaseException):
    """The passes are given up."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A module that a pass has come to, and what it calls it with."""

    module: str
    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class SteppedRun:
    """One forward pass. `modes`: what has to be in force while it computes, in whichever thread."""

    def __init__(self, run: Callable[[], Any], modes: Modes) -> None:
        self.call: Call | None = None
        self.ended = False
        self._run, self._modes = run, modes
        self._result: Any = None
        self._error: BaseException | None = None
        self._goes_on, self._waits = Semaphore(0), Semaphore(0)
        self._thread = Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Up to its first module."""
        self._thread.start()
        self._advance()

    def compute(self) -> Any:
        """What the module gives that it waits at, computed here."""
        call = self.call
        assert call is not None
        with self._modes():
            return call.forward(*call.args, **call.kwargs)

    def give(self, output: Any) -> None:
        """Go on with this for what the module gives, up to the next. Raises whatever the pass raises."""
        self.call, self._result = None, output
        self._advance()

    def take(self) -> Any:
        """What the whole pass came to, which is let go here."""
        result, self._result = self._result, None
        return result

    def end(self) -> None:
        """Give it up where it waits."""
        if self._thread.is_alive():
            self._error = _Ended()
            self._goes_on.release()
            self._thread.join()

    def arrive(self, call: Call) -> Any:
        """In its own thread: wait here until the caller has computed the module."""
        self.call = call
        self._waits.release()
        self._goes_on.acquire()
        if self._error is not None:
            raise self._error
        output, self._result = self._result, None
        return output

    def _advance(self) -> None:
        self._goes_on.release()
        self._waits.acquire()
        if self.ended:
            self._thread.join()
            if self._error is not None:
                raise self._error

    def _work(self) -> None:
        self._goes_on.acquire()
        _HERE.passing = self
        try:
            if self._error is None:
                with self._modes():
                    self._result = self._run()
        except BaseException as error:
            self._error = error
        self.ended = True
        self._waits.release()


@contextmanager
def halting(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """For as long as the block runs, a SteppedRun that calls one of these modules waits there. Called by anybody else they compute."""
    forwards = {name: module.forward for name, module in modules.items()}
    for name, module in modules.items():
        module.forward = partial(_arrive, name, forwards[name])
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward


def _arrive(name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    passing = current()
    if passing is None:
        return forward(*args, **kwargs)
    return passing.arrive(Call(module=name, forward=forward, args=args, kwargs=kwargs))


def current() -> SteppedRun | None:
    """The pass that is computed in this thread; None where that is none of a pass's own."""
    return getattr(_HERE, "passing", None)


def drive(passes: Sequence[SteppedRun], serve: Callable[[str, list[SteppedRun]], None]) -> None:
    """Run them all to their ends. `serve`: computes the module of this name for the passes that wait at it, in their order."""
    try:
        for each in passes:
            each.start()
        while waiting := [each for each in passes if each.call is not None]:
            call = waiting[0].call
            assert call is not None
            serve(call.module, [each for each in waiting if each.call is not None and each.call.module == call.module])
    finally:
        for each in passes:
            each.end()
