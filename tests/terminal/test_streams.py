"""Any terminal and any pipe: what cannot be shown is spelled, what cannot be written is told, and no work is lost to it."""

from __future__ import annotations

import codecs
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bot.events import Note, StepProgress
from bot.terminal.console import Console
from bot.terminal.streams import ERRORS, Guarded, spelled
from tests.pull.given import write_adapter, write_base
from tests.untrusted.conftest import ROOT, Started


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str | Path, ...]:
    return (write_adapter(tmp_path / "adapter"), "--base", write_base(tmp_path / "base"))


def test_a_full_disk_behind_standard_output_is_told(start: Started, pair: tuple[Path, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        ran = start("plan", *pair, "--json", stdout=full)
    assert ran.returncode == 6, ran.stderr
    assert "✗ The result cannot be written to standard output: No space left on device." in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_full_disk_behind_standard_error_stops_nothing(start: Started, pair: tuple[Path, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        ran = start("plan", *pair, "--json", stderr=full)
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["refusals"] == []


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_stops_nothing_and_its_number_goes_to_no_file(closed: str, tmp_path: Path) -> None:
    code = (
        "from bot.terminal.streams import guard_streams; guard_streams()\n"
        "import os, sys; number = os.open('made', os.O_CREAT | os.O_WRONLY); print('said'); sys.stdout.flush()\n"
        "print('also', file=sys.stderr); os._exit(number)"
    )
    command = f'"{sys.executable}" -c "{code}" {closed}'
    ran = subprocess.run(["bash", "-c", command], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=False, timeout=60)
    assert ran.returncode > 2
    assert (tmp_path / "made").read_bytes() == b""


def test_closed_output_is_no_crash_of_the_command(start: Started, pair: tuple[Path, ...]) -> None:
    ran = start("plan", *pair, preexec_fn=lambda: os.close(1), stdout=None)
    assert (ran.returncode, "Traceback" in ran.stderr) == (0, False), ran.stderr


def test_a_terminal_that_is_not_utf_8_gets_every_sentence(start: Started, tmp_path: Path) -> None:
    env = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"}
    ran = start("plan", tmp_path / "gôné-😀", env=env)
    assert ran.returncode == 5, ran.stderr
    assert "x The folder" in ran.stderr
    assert "g\\u00f4n\\u00e9-\\ud83d\\ude00 does not exist" in ran.stderr
    assert start("plan", tmp_path / "gôné", "--json", env=env).stdout.isascii()


def test_what_is_not_text_is_spelled_as_in_json() -> None:
    buffer = io.BytesIO()
    stream = guarded(buffer)
    stream.write(json.dumps({"name": "a\udc80b", "é": 1}, ensure_ascii=False) + "\n")
    assert json.loads(buffer.getvalue()) == {"name": "a\udc80b", "é": 1}


def test_a_strangers_words_move_no_cursor_and_are_no_workflow_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", guarded(buffer))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    say = Console(clock=itertools.count(step=5).__next__)
    say(StepProgress(stage="merge", what="::error::z", done=1, total=2))
    say(StepProgress(stage="merge", what="::error::z", done=2, total=2))
    say(Note(text="a\n::add-mask::x\x1b]0;title\x07\x1b[2J"))
    say(Note(text="b\n::stop-commands::y", level="warning"))
    lines = buffer.getvalue().decode().splitlines()
    assert "\x1b" not in buffer.getvalue().decode()
    assert any(line.startswith("  : :error::z") for line in lines)
    assert [line.split("::")[1] for line in lines if line.lstrip().startswith("::")] == ["warning"]


def guarded(buffer: io.BytesIO) -> Guarded:
    codecs.register_error(ERRORS, spelled)
    return Guarded(buffer, encoding="utf-8", errors=ERRORS, line_buffering=True)
