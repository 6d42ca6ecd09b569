"""Works the outbox: resolves a tag again, sends it once, finds what it may have sent, and follows runs to their end.

Sent once: a request is `sending`, on the disk, before anything is sent. Whoever finds it so later (after a kill, or where an answer
was lost) asks the backend for a run with the request's id, and sends again only when no such run can show up any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from traceback import format_exc

from bot.dispatch.backends import Backend, Busy, Unsure
from bot.dispatch.records import Run, RunRequest
from bot.dispatch.resolve import Decided, Gone, Resolver
from bot.dispatch.store import LEASE, Store
from bot.errors import AdapterMergeError, Outside
from bot.events import Emit, Note, silent

FIRST, LONGEST = 10.0, 3600.0  # seconds before a further try; each is twice as long as the one before
TRIES = 12  # about four and a half hours
LOST = 40  # looks at a run that fail, one after the other, until it is given up
IDLE = 5.0  # seconds between two looks at the outbox where nothing is due: another process may write to it


class Dispatcher:
    """One worker; several, in one process or more, may share a store."""

    checked = True  # False: the backend could not be asked so far whether it takes requests; nothing is sent before

    def __init__(
        self, store: Store, backend: Backend, resolve: Resolver, emit: Emit = silent, only: str | None = None
    ) -> None:
        """`only`: the one request to work on; None: all of them."""
        self.store, self.backend, self.resolve, self.emit, self.only = store, backend, resolve, emit, only
        self.follow_every = backend.LOOK_EVERY
        self._turn = 0

    def run(self, stop: Event, wake: Event, after: Callable[[], None] = lambda: None) -> None:
        """Work until `stop`. `wake`: something came in. `after`: done after every round of work, such as telling of it.

        Nothing ends it sooner: what could not be written (a full disk), and what nobody thought of, is reported and tried again."""
        while not stop.is_set():
            wake.clear()
            try:
                if not self.checked:
                    self.backend.check()
                    self.checked = True
                while not stop.is_set() and self.step():
                    pass
                after()
                due = self.store.next_due(self.backend.NAME)
                idle = IDLE if due is None else min(IDLE, max(0.05, due - self.store.clock()))
            except (
                KeyboardInterrupt
            ):  # a pause of the Hub's client ends so, in whatever thread, when the program is to end
                return
            except AdapterMergeError as error:
                self.emit(Note(text=f"The dispatcher goes on in {IDLE:.0f} s: {error}", level="warning"))
                idle = IDLE
            except Exception:
                if stop.is_set():  # the store is closed
                    return
                self.emit(
                    Note(text=f"This is a bug in adapter-merge. Please report it: {format_exc()}", level="warning")
                )
                idle = IDLE
            wake.wait(idle)

    def step(self) -> bool:
        """Do one thing that is due: sending, looking for what may have been sent, and following take turns. Whether there was one."""
        works = (self._adopt_one, self._send_one, self._follow_one)
        for turn in range(self._turn, self._turn + len(works)):
            if works[turn % len(works)]():
                self._turn = (turn + 1) % len(works)
                return True
        return False

    def _adopt_one(self) -> bool:
        request = self.store.claim_stranded(self.only, self.backend.NAME)
        if request:
            self._adopt(request)
        return request is not None

    def _send_one(self) -> bool:
        request = self.store.claim(self.only, self.backend.NAME)
        if request:
            self._send(request)
        return request is not None

    def _follow_one(self) -> bool:
        request = self.store.claim_followed(self.follow_every, self.only, self.backend.NAME)
        if request:
            self._follow(request)
        return request is not None

    def _send(self, request: RunRequest) -> None:
        with self._held(request):
            fresh = self._resolve(request)
            run = self._start(fresh) if fresh else None
        # Where this cannot be written, the request stays as it is, and its run is found by whoever looks next.
        if fresh and run:
            self.store.sent(fresh, self.backend.NAME, run)

    def _resolve(self, request: RunRequest) -> RunRequest | None:
        """The request with what its tag means now; None where it is not to be sent."""
        try:
            answer = self.resolve(request.order)
        except AdapterMergeError as error:
            self._try_later(request, error)
            return None
        except KeyboardInterrupt:
            self.store.let_go(request)
            raise
        if isinstance(answer, Gone):
            self.store.drop(request, answer.reason)
            return None
        if isinstance(answer, Decided):
            self.store.follow(request, answer.fate)
            return None
        return self.store.resolved(request, answer.adapter, answer.sha)

    def _start(self, request: RunRequest) -> Run | None:
        """Its run, started now; None where it was not started, or nobody knows."""
        try:
            return self.backend.send(request)
        except Unsure as error:
            if request.attempts >= TRIES:  # each time it was sent, and no run ever came of it
                self._give_up(request, error, unsure=True)
                return None
            self.emit(Note(text=f"{_named(request)}: {error.what}", level="warning"))
            self.store.keep_looking(request, self.backend.SHOWN_AFTER)
        except AdapterMergeError as error:
            self._try_later(request, error)
        return None

    def _adopt(self, request: RunRequest) -> None:
        """Its sender is gone, or does not know: take over the run that he started, or send it (again)."""
        try:
            with self._held(request):
                run = self.backend.find(request)
        except AdapterMergeError as error:
            if request.attempts >= TRIES:
                self._give_up(request, error, unsure=True)
            else:
                self.store.keep_looking(request, _pause(request.attempts, error))
            return
        shown = request.begun + self.backend.SHOWN_AFTER
        if run is not None:
            self.store.sent(request, self.backend.NAME, run)
        elif self.store.clock() < shown:
            self.store.keep_looking(request, shown - self.store.clock())
        else:
            self.store.begin_again(request)
            self._send(request)

    @contextmanager
    def _held(self, request: RunRequest) -> Iterator[None]:
        """However long a call takes, the request stays ours."""
        over = Event()

        def renew() -> None:
            while not over.wait(LEASE / 4):
                with suppress(AdapterMergeError):
                    self.store.renew(request.id)

        pulse = Thread(target=renew, name="lease", daemon=True)
        pulse.start()
        try:
            yield
        finally:
            over.set()
            pulse.join()

    def _follow(self, request: RunRequest) -> None:
        try:
            fate = self.backend.look(request)
        except AdapterMergeError as error:
            if request.attempts >= LOST:
                self._give_up(request, error, unsure=True)
            else:
                self.store.follow_later(request, error, _pause(request.attempts, error))
            return
        if fate != request.fate or request.attempts:
            self.store.follow(request, fate)

    def _try_later(self, request: RunRequest, error: AdapterMergeError) -> None:
        if not isinstance(error, Outside) or request.attempts + 1 >= TRIES:
            self._give_up(request, error)
        else:
            self.emit(Note(text=f"{_named(request)}: {error.what}", level="warning"))
            self.store.wait(request, error, _pause(request.attempts, error))

    def _give_up(self, request: RunRequest, error: AdapterMergeError, *, unsure: bool = False) -> None:
        self.emit(Note(text=f"{_named(request)} was given up: {error}", level="warning"))
        self.store.fail(request, error, unsure=unsure)


def _pause(attempts: int, error: AdapterMergeError | None = None) -> float:
    """Seconds before a further try: longer each time, and as long as the service asked for, within reason."""
    stated = min(error.seconds, 2 * LONGEST) if isinstance(error, Busy) else 0.0
    return max(stated, min(LONGEST, FIRST * 2.0 ** min(attempts, 20)))


def _named(request: RunRequest) -> str:
    tag = f"@{request.order.revision}" if request.order.revision else ""
    return f"{request.order.adapter}{tag}"
