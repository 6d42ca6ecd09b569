"""Regular expressions out of strangers' configs: matched as `re` does, within a time limit.

PEFT's and transformers' meaning of a pattern is that of Python's `re`, which nothing can interrupt within a thread, and
which takes longer than the universe for `(([a-z_.0-9]+)+)+!`. So a pattern that is more than a name is compiled and matched
in a process of its own, which the system stops after so many seconds of work. A name (letters, digits, `_`, `-` and the
dot) takes no longer than it is long, and is matched here.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from bot.errors import Refused

SECONDS = 8  # of work for one set of patterns, over all names; a rank for each of 500 modules takes a tenth of one
PATIENCE = 120.0  # seconds to wait for them on a busy machine
MEMORY = 1 << 30  # bytes
LIBRARIES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # where this Python may have its own, on clusters with modules
MOST = 5000  # patterns; one for each module of the largest dense models
NAME = re.compile(r"[\w.-]+")
REMEDY = "Write the names themselves, as PEFT does, or a shorter pattern without repetitions inside of repetitions."
Mode = Literal["match", "fullmatch"]

WORKER = """
import json, re, resource, sys
seconds, memory = map(int, sys.argv[1:3])
for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory)):
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    try:
        resource.setrlimit(kind, (most, most))
    except (ValueError, OSError):  # a system that lacks it; whoever asks waits only so long
        pass
def say(what):
    print(json.dumps(what), flush=True)
try:
    matchers = [(at, getattr(re.compile(pattern), mode)) for at, mode, pattern in json.loads(sys.stdin.readline())]
except (re.error, RecursionError, OverflowError) as error:
    say({"error": str(error)[:200] or type(error).__name__})
    sys.exit()
say({})
for line in sys.stdin:
    text = json.loads(line)
    answer = next(((at, match.groupdict()) for at, matcher in matchers if (match := matcher(text))), None)
    say(answer)
"""


class BadPattern(ValueError):
    """`re` cannot compile it."""


@dataclass(frozen=True, kw_only=True)
class PatternMatch:
    """Which pattern matched first, and its named groups."""

    at: int
    groups: dict[str, str | None] = field(default_factory=dict)


def first(patterns: Iterable[str], text: str, form: str = "{}", mode: Mode = "match") -> PatternMatch | None:
    """The first of the patterns, each put into `form`, that matches. Raises BadPattern, and Refused where it takes too long."""
    given = tuple(patterns)
    if len(given) > MOST:
        raise Refused(
            f"A config has {len(given):,} patterns, where {MOST:,} are the most that are read.", remedy=REMEDY
        )
    return _set_of(given, form, mode).first(text) if given else None


def check(patterns: Iterable[str], form: str = "{}") -> None:
    """Raises BadPattern for the first that cannot be compiled, and Refused where that takes too long."""
    first(patterns, "", form)


def require_terminating(config: dict[str, Any], names: Iterable[str]) -> None:
    """Raises Refused unless PEFT comes to an end with this config's patterns on these names of modules.

    PEFT itself matches them with `re`, in whatever process it runs: it is given none that was not tried here before.
    """
    texts = list(names)
    for field_name in ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save"):
        if isinstance(pattern := config.get(field_name), str):
            _try((pattern,), texts, "{}", "fullmatch")
    for field_name in ("rank_pattern", "alpha_pattern"):
        if isinstance(patterns := config.get(field_name), dict):
            _try(tuple(patterns), texts, r"(.*\.)?({})$", "match")
    layers = config.get("layers_pattern") or ()
    given = (layers,) if isinstance(layers, str) else tuple(name for name in layers if isinstance(name, str))
    _try(given, texts, r"(?:^|.*?\.){}\.(\d+)\.", "match")


def _try(patterns: tuple[str, ...], texts: list[str], form: str, mode: Mode) -> None:
    with suppress(BadPattern):  # of which PEFT itself says so, at once
        for text in texts:
            first(patterns, text, form, mode)


@lru_cache(maxsize=16)
def _set_of(patterns: tuple[str, ...], form: str, mode: Mode) -> _Set:
    return _Set(patterns, form, mode)


class _Set:
    """Patterns in their order. The time that they have taken is counted over all that is asked of them."""

    def __init__(self, patterns: tuple[str, ...], form: str, mode: Mode) -> None:
        self._worker: subprocess.Popen[bytes] | None = None
        self._patterns, self._form, self._mode = patterns, form, mode
        self._left = float(SECONDS)
        self._lock = threading.Lock()
        names = [(at, pattern) for at, pattern in enumerate(patterns) if NAME.fullmatch(pattern)]
        self._others = [(at, pattern) for at, pattern in enumerate(patterns) if not NAME.fullmatch(pattern)]
        self._names = [(at, self._timed(self._compiled, pattern)) for at, pattern in names]
        self._answers: dict[str, PatternMatch | None] = {}
        self._bad = ""

    def first(self, text: str) -> PatternMatch | None:
        with self._lock:
            if text not in self._answers:
                near, far = self._timed(self._among_names, text), self._among_others(text)
                self._answers[text] = min(filter(None, (near, far)), key=lambda match: match.at, default=None)
            return self._answers[text]

    def _compiled(self, pattern: str) -> re.Pattern[str]:
        return re.compile(self._form.replace("{}", pattern))

    def _among_names(self, text: str) -> PatternMatch | None:
        for at, pattern in self._names:
            if match := getattr(pattern, self._mode)(text):
                return PatternMatch(at=at, groups=match.groupdict())
        return None

    def _timed(self, do: Any, argument: str) -> Any:
        """What `do` gives, its time taken off what is left."""
        began = time.thread_time()
        result = do(argument)
        self._left -= time.thread_time() - began
        if self._left < 0:
            raise self._too_long()
        return result

    def _among_others(self, text: str) -> PatternMatch | None:
        if not self._others:
            return None
        if self._worker is None:
            self._worker = self._start()
        answer = self._ask(text)
        return PatternMatch(at=answer[0], groups=answer[1]) if answer else None

    def _start(self) -> subprocess.Popen[bytes]:
        if self._bad:
            raise BadPattern(self._bad)
        command = [sys.executable, "-I", "-S", "-c", WORKER, str(SECONDS), str(MEMORY)]
        env = {name: os.environ[name] for name in LIBRARIES if name in os.environ}
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, cwd="/"
        )
        self._worker = worker
        failure = self._ask([(at, self._mode, self._form.replace("{}", pattern)) for at, pattern in self._others])
        if failure:
            self._end()
            self._bad = str(failure["error"])
            raise BadPattern(self._bad)
        return worker

    def _ask(self, what: Any) -> Any:
        """One answer of the worker's."""
        worker = self._worker
        assert worker is not None
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(json.dumps(what).encode() + b"\n")
            worker.stdin.flush()
            poll = select.poll()
            poll.register(worker.stdout, select.POLLIN | select.POLLHUP)
            line = worker.stdout.readline() if poll.poll(1000 * PATIENCE) else b""
        except OSError:
            line = b""
        if not line:
            self._left = -1.0
            raise self._unanswered(worker)
        return json.loads(line)

    def _unanswered(self, worker: subprocess.Popen[bytes]) -> Refused:
        """Why there is no answer: the system or our patience ended the worker, or it ended by itself."""
        with suppress(subprocess.TimeoutExpired):
            worker.wait(0.5)
        status = worker.poll()
        self._end()
        if status is None or status < 0:
            return self._too_long()
        return Refused(
            f"{self._example()}, cannot be matched here: the process for it ended with status {status}.", remedy=REMEDY
        )

    def _too_long(self) -> Refused:
        return Refused(f"{self._example()}, took more than {SECONDS} seconds to match.", remedy=REMEDY)

    def _example(self) -> str:
        example = (self._others or [(0, self._patterns[0])])[0][1]
        what = f"{len(self._patterns):,} patterns" if len(self._patterns) > 1 else "A pattern"
        return f"{what} of the config, e.g. {example[:80]!r}"

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            for pipe in filter(None, (worker.stdin, worker.stdout)):
                with suppress(OSError):  # what was still to be written
                    pipe.close()
            worker.wait()

    def __del__(self) -> None:
        self._end()
