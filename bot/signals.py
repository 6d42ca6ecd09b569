"""Ctrl-C, SIGTERM and SIGHUP end the program: in order where that works, and in any case within GRACE seconds.

The handler raises KeyboardInterrupt in the main thread, so that child processes are ended and temporary folders removed.
That alone is not enough: raised in the middle of an import it can leave a lock that another thread waits for without
end, and code that calls back from C may swallow it. So a thread of its own waits for the signal too, and ends the process
when its time is up. That is as safe as SIGKILL, against which every folder and every publication is built.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 5.0  # seconds; GitHub sends SIGTERM 7.5 seconds after SIGINT, and SIGKILL 2.5 seconds later
EXIT_CODE = 130  # that of errors.Interrupted
_received = threading.Event()
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_on_signals(words: str) -> None:
    """From now on, each of ENDING ends the process with 130. `words` are said where it could not be ended in order.

    To be called once, in the main thread. A signal that the parent has set to be ignored (nohup) stays ignored.
    """
    arrived, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    # Written to by C code the moment that a signal comes, whatever Python is doing.
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(arrived, words.encode()), daemon=True).start()
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def interrupted() -> bool:
    """Whether one of ENDING has come. What fails from then on fails because of it, whatever library reports it."""
    return _received.is_set()


def end_with_parent() -> None:
    """In a child process: be ended when the parent is, also where that could not say so. Linux only; else nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _interrupt(number: int, frame: object) -> None:
    _received.set()
    for again in ENDING:  # one exception is enough: a second would cut short what the first one has begun to tidy up
        if signal.getsignal(again) is _interrupt:
            signal.signal(again, _ignore)
    raise KeyboardInterrupt


def _ignore(number: int, frame: object) -> None:
    """Not SIG_IGN, which child processes would inherit."""


def _watch(arrived: int, words: bytes) -> None:
    while os.read(arrived, 1)[0] not in ENDING:
        pass
    select.select([], [], [], GRACE)
    os.write(2, words)
    os._exit(EXIT_CODE)
