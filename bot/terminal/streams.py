"""Standard output and error as this program leaves by them: no secret, any terminal, and no work lost to a broken one."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from typing import TextIO

from bot.errors import MachineTooSmall
from bot.untrusted.redact import know_environment, redact

# For terminals that are not UTF-8; everything else that they lack is escaped as in JSON.
PLAIN = {
    "✗": "x", "✓": "v", "▸": ">", "→": "->", "…": "...", "–": "-", "█": "#", "░": ".", "≤": "<=", "≥": ">=", "×": "x",
    "‖": "||", "·": "*", "±": "+-", "⁻": "^-", "′": "'", "━": "=", "╸": "-", "╺": "-",
}  # fmt: skip
ERRORS = "adapter-merge"
# What would move a terminal's cursor, colour it or answer for its user. What we draw ourselves goes by `draw`.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def guard_streams() -> None:
    """Put both streams of this process behind the filter. Called once, by the entry point."""
    _keep_numbers_free()
    know_environment()
    codecs.register_error(ERRORS, spelled)
    sys.stdout = _guarded(sys.stdout, 1, matters=True)
    sys.stderr = _guarded(sys.stderr, 2, matters=False)


def visible(text: str) -> str:
    """The text without secrets, and with its control characters spelled: whatever is drawn around it, it stays text."""
    return CONTROL.sub(lambda match: _escaped(match[0]), redact(text).replace("\r", " "))


def draw(stream: TextIO, text: str) -> None:
    """Write what was drawn of visible text: its colours get through."""
    getattr(stream, "draw", stream.write)(text)


def disclose(stream: TextIO, text: str) -> None:
    """Write a text with the token that it is meant to hold."""
    getattr(stream, "disclose", stream.write)(text)


class Guarded(io.TextIOWrapper):
    """A stream whose every word is filtered.

    `matters`: what is written is the result, so that a failure is told (once, as MachineTooSmall; a reader that has gone
    is none, and stays a BrokenPipeError). Where it does not, the words are dropped and the work goes on.
    """

    matters = True
    broken = False
    kept: TextIO | None = None  # the stream before: collected, it would close the buffer that both write to
    encoding = "utf-8"  # to whoever asks: click goes around a stream that says ascii. What is written is the true one

    def write(self, text: str) -> int:
        """Write the text without its secrets; its length."""
        if not self.broken:
            try:
                super().write(CONTROL.sub(lambda match: _escaped(match[0]), redact(text)))
            except OSError as error:
                self._fail(error)
        return len(text)

    def draw(self, text: str) -> None:
        """Write what was drawn of `visible` text, with the colours and cursor moves in it."""
        if not self.broken:
            try:
                super().write(redact(text))
            except OSError as error:
                self._fail(error)

    def disclose(self, text: str) -> None:
        """Write what is meant to hold a token: the runner's mask for it, or the local Hub's own."""
        super().write(text)

    def flush(self) -> None:
        """Send what was written."""
        if not self.broken:
            try:
                super().flush()
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.broken = True
        if not self.matters:
            return
        if isinstance(error, BrokenPipeError):
            raise error
        raise MachineTooSmall(
            f"The result cannot be written to standard output: {error.strerror}.",
            remedy="Send it somewhere that has room; what was merged or published stays.",
        ) from error


def _guarded(stream: TextIO | None, number: int, *, matters: bool) -> Guarded:
    raw = getattr(stream, "buffer", None) or open(number, "wb", closefd=False)  # noqa: SIM115  never closed
    made = Guarded(raw, encoding=getattr(stream, "encoding", None) or "utf-8", errors=ERRORS, line_buffering=True)
    made.matters = matters
    made.kept = stream
    return made


def _keep_numbers_free() -> None:
    """A closed 0, 1 or 2 would go to the next file that is opened: a shard, into which a library's prints would then go."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def spelled(error: UnicodeError) -> tuple[str, int]:
    """What a terminal cannot show: in plain letters where those are known, else as JSON escapes it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter) or _escaped(letter) for letter in letters), error.end


def _escaped(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
