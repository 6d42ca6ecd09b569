"""What is drawn on a terminal, however wide and whatever it can show; and what goes into a pipe, which stays plain."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from bot.events import StepProgress, TextBlock, TextLine, TextTable
from bot.terminal.console import Console
from bot.terminal.drawing import bar, drawn
from bot.terminal.plain import plain
from bot.terminal.screen import Screen
from tests.pull.given import write_adapter, write_base
from tests.untrusted.conftest import ROOT, Started

ESCAPE = "\x1b"
COLOURS = re.compile(r"\x1b\[[\d;]*m")
LONG = "model.layers.0.self_attn.q_proj.weight: 12 of 4,096 differ, twice the delta"
PARTS = (
    TextLine(text="Not verified: one check failed, " + "and this is a long sentence " * 5, tone="bad"),
    TextTable(rows=(("elements that differ", "0 of 90,432"), ("top-1 agreement", "100.0% of 480 positions")), indent=2),
    TextTable(
        head=("check", "result", "measured", "allowed", "why"),
        rows=(("touched", "FAIL", "959 of 357,826,560 differ", "0 differ", f"It is not what it must be.\n  {LONG}"),
              ("generation-config", "pass", "1 file", "same bytes", "As it is.")),
        tones=("bad", "plain"),
    ),
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def a_terminal_with_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "COLORTERM", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def bare(text: str) -> list[str]:
    return COLOURS.sub("", text).splitlines()


def on(stream: io.StringIO) -> str:
    Screen(stream).show(PARTS)
    return stream.getvalue()


# --- width --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 20, 40, 80, 100, 200, 1000])
def test_nothing_is_wider_than_the_terminal_and_nothing_is_left_out(width: int) -> None:
    lines = bare(drawn(PARTS, width))
    assert max(map(len, lines)) <= max(width, 20)
    letters = re.sub(r"\s", "", "".join(lines))
    for cell in (LONG, "959 of 357,826,560 differ", "0 differ", "100.0% of 480 positions", "generation-config"):
        assert re.sub(r"\s", "", cell) in letters


def test_a_wide_terminal_has_a_row_in_a_line_and_a_narrow_one_its_last_cell_below() -> None:
    assert any(
        re.match(r"generation-config +pass +1 file +same bytes +As it is\.", line) for line in bare(drawn(PARTS, 200))
    )
    narrow = bare(drawn(PARTS, 80))
    at = next(number for number, line in enumerate(narrow) if line.startswith("generation-config"))
    assert narrow[at + 1] == "  As it is."


def test_a_word_that_is_wider_than_the_terminal_stays_in_one_piece() -> None:
    address = "http://127.0.0.1:44473/demo/pydoc-answers-merged/tree/5de1ad5545475365a55f0aa6ad82bb25bc9bcc25"
    assert bare(drawn((TextLine(text=f"  {address}"),), 40)) == [f"  {address}"]


@pytest.mark.parametrize("width", [10, 40, 80, 200])
def test_a_bar_is_one_line_that_fits(width: int) -> None:
    for share in (0.0, 0.5, 1.0, None):
        (line,) = bare(bar(share, " 50%  Comparing every weight: 50.0 MB of 100.0 MB, 25.0 MB/s, 2 s left", width))
        assert len(line) <= max(width, 20)


# --- what a terminal can show -------------------------------------------------------------------------------------


def test_a_terminal_has_colours_and_one_that_wants_none_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[1;31m" in on(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[(\d;)?3\dm", on(Terminal()))
    assert bare(on(Terminal()))


def test_a_pipe_gets_plain_text_whatever_the_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = on(io.StringIO())
    assert ESCAPE not in text
    assert text == f"{plain(PARTS)}\n"
    assert max(map(len, text.partition("\ncheck ")[2].splitlines())) <= 100
    assert PARTS[0].text in text.splitlines()  # type: ignore[union-attr]


def test_colours_can_be_asked_for_in_a_pipe_and_never_get_into_a_workflows_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert ESCAPE in on(io.StringIO())
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert ESCAPE not in on(io.StringIO())


def test_a_dumb_terminal_gets_plain_lines_and_no_line_is_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream, now = Terminal(), [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    say = Console(clock=lambda: now[0])
    for done in range(5):
        say(StepProgress(stage="merge", done=done, total=10))
        now[0] += 6.0
    say(TextBlock(parts=PARTS))
    say.close()
    assert ESCAPE not in stream.getvalue()
    assert "\r" not in stream.getvalue()
    assert "of 10 B" in stream.getvalue()


def test_the_width_is_that_of_the_terminal_or_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Screen(Terminal()).width == 80
    ours, theirs = pty.openpty()
    with open(theirs, "w") as stream:  # noqa: PTH123
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 133, 0, 0))
        assert Screen(stream).width == 133
        monkeypatch.setenv("COLUMNS", "61")
        assert Screen(stream).width == 61
    os.close(ours)


# --- strangers' words ---------------------------------------------------------------------------------------------


def test_names_are_no_markup_and_move_no_cursor() -> None:
    name = "[red]o[/red]/:smile: \x1b[31mred\x1b]0;title\x07 \u202egnp.exe [link=http://x]y[/link]\rover"
    text = drawn((TextLine(text=name), TextTable(rows=((name, name),))), 400)
    assert "[red]o[/red]/:smile:" in text
    assert "[link=http://x]y[/link]" in text
    assert "\\u001b[31mred" in text
    assert "\\u202e" in text
    assert not set(COLOURS.sub("", text)) & {ESCAPE, "\x07", "\r", "\u202e"}


def test_a_secret_that_is_wrapped_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_" + "AbCdEfGhIj" * 4
    text = drawn((TextTable(rows=(("a", f"it is {secret}"),)),), 24)
    assert "AbCdEf" not in text


# --- the command ---------------------------------------------------------------------------------------------------


def run_on_a_terminal(*arguments: str | Path, columns: int, home: Path) -> str:
    """What `adapter-merge` writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {"PATH": os.environ["PATH"], "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "bot", *map(str, arguments)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=home) as process:
        os.close(theirs)
        text = b""
        try:
            while piece := os.read(ours, 65536):
                text += piece
        except OSError:  # Linux says so that the other end is closed
            pass
        assert process.wait() == 0, text
    os.close(ours)
    return text.decode()


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_plan_fits_a_real_terminal(tmp_path: Path, columns: int) -> None:
    pair = (write_adapter(tmp_path / "adapter"), "--base", write_base(tmp_path / "base"))
    text = run_on_a_terminal("plan", *pair, columns=columns, home=tmp_path)
    assert "\\u001b" not in text, "our own colours are not spelled"
    lines = [re.split(r"\r\x1b\[K", line)[-1].rstrip("\r") for line in text.split("\n")]
    assert max(len(COLOURS.sub("", line)) for line in lines) <= columns
    assert ESCAPE in text
    assert "fingerprint" in text


def test_a_plan_in_a_pipe_has_a_line_for_each_row(start: Started, tmp_path: Path) -> None:
    ran = start(
        "plan", write_adapter(tmp_path / "adapter"), "--base", write_base(tmp_path / "base"), env={"COLUMNS": "40"}
    )
    assert ESCAPE not in ran.stdout + ran.stderr
    assert all(re.match(r"  [a-z]+ +\S", line) for line in ran.stdout.splitlines())
