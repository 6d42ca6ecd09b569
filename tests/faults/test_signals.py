"""Ctrl-C, SIGTERM and SIGHUP at any moment: the command ends soon, says so, and the next one goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bot.signals import ENDING, GRACE
from tests.faults.test_kills_full_disks_and_rivals import command, ended_within, hashes, inputs
from tests.stories.conftest import World, tiny, world

__all__ = ["inputs", "tiny", "world"]  # fixtures
SIGNALS = 100
LIMIT = 10.0  # seconds
INTERRUPTED = 130


def default_signals() -> None:
    """In a child: as a terminal would start it. Under nohup, or in a script's background, some would be ignored."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)


def started(arguments: list[str], **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(arguments, preexec_fn=default_signals, **more)


def listens(running: subprocess.Popen[bytes]) -> bool:
    """Whether the process has set its handlers: before that, a signal ends it as any other program."""
    try:
        status = Path(f"/proc/{running.pid}/status").read_text()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt")), 0)
    return bool(caught & 1 << (signal.SIGHUP - 1)) and bool(caught & 1 << (signal.SIGTERM - 1))


def interrupt(running: subprocess.Popen[bytes], number: signal.Signals, after: float) -> float | None:
    """Send the signal some time after the process listens; seconds until it ended. None where it was done before."""
    while not listens(running) and running.poll() is None:
        time.sleep(0.002)
    if ended_within(running, after):
        return None
    running.send_signal(number)
    began = time.monotonic()
    running.wait(timeout=60)
    return time.monotonic() - began


@pytest.mark.slow
def test_a_hundred_signals_at_random_moments_end_a_merge_and_the_next_one_goes_on(inputs, tmp_path: Path) -> None:
    dice, sent, slowest = random.Random(1), 0, 0.0
    began = time.monotonic()
    subprocess.run(command(inputs, tmp_path / "once"), check=True)
    usual, expected = time.monotonic() - began, hashes(tmp_path / "once")
    output = tmp_path / "merged0"
    for turn in range(SIGNALS):
        if output.exists():  # an interrupted merge goes on until it is done, and then the next one begins
            assert hashes(output) == expected
            output = tmp_path / f"merged{turn}"
        running = started(command(inputs, output), stderr=subprocess.PIPE)
        seconds = interrupt(running, dice.choice(ENDING), dice.uniform(0, usual))
        said = running.stderr.read().decode() if running.stderr else ""
        if seconds is None or (running.returncode == 0 and output.exists()):
            assert running.returncode == 0, said
            continue
        assert running.returncode == INTERRUPTED, said
        assert "Interrupted." in said
        sent, slowest = sent + 1, max(slowest, seconds)
    assert sent > SIGNALS // 4, "most commands were done before their signal came"
    assert slowest < LIMIT
    subprocess.run(command(inputs, tmp_path / "merged-last"), check=True)
    assert hashes(tmp_path / "merged-last") == expected


@pytest.mark.slow
def test_signals_at_random_moments_of_a_run_publish_nothing_twice(world: World, tmp_path: Path) -> None:
    given = [sys.executable, "-m", "bot", "run", "demo/adapter", "--verify", "files", "--quiet"]
    env = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    dice = random.Random(2)
    for _ in range(12):
        running = started(given, env=env, stderr=subprocess.PIPE)
        seconds = interrupt(running, dice.choice(ENDING), dice.uniform(0, 3))
        assert running.stderr
        said = running.stderr.read().decode()
        assert running.returncode == (0 if seconds is None else running.returncode), said
        assert running.returncode in (0, INTERRUPTED), said
        assert seconds is None or seconds < LIMIT
    subprocess.run(given, env=env, check=True)
    commits = world.api.list_repo_commits("demo/adapter-merged")
    assert len([commit for commit in commits if "initial" not in commit.title.lower()]) == 1
    assert {tag.name for tag in world.api.list_repo_refs("demo/adapter-merged").tags} == {"v1"}


STUCK = """
import time
from bot.signals import end_on_signals
end_on_signals("said at the end")
while True:
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        pass  # as a library that swallows it
"""


@pytest.mark.parametrize("number", ENDING)
def test_a_program_that_does_not_listen_is_ended_all_the_same(number: signal.Signals) -> None:
    running = started([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout
    assert running.stdout.readline()
    running.send_signal(number)
    began = time.monotonic()
    _, said = running.communicate(timeout=GRACE + 20)
    assert running.returncode == INTERRUPTED
    assert b"said at the end" in said
    assert time.monotonic() - began < LIMIT


def test_a_signal_that_the_parent_ignores_stays_ignored() -> None:
    program = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from bot.signals import end_on_signals, interrupted; "
        "end_on_signals(''); os.kill(os.getpid(), signal.SIGHUP); print(interrupted())"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "False\n")


CHILD = (
    "from bot.signals import end_with_parent; end_with_parent(); print('up', flush=True); import time; time.sleep(60)"
)


@pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")
def test_a_child_process_ends_with_its_parent() -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; one = subprocess.Popen([sys.executable, '-c', {CHILD!r}]); "
            "print(one.pid, flush=True); one.wait()",
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout
    lines = {parent.stdout.readline().decode().strip() for _ in range(2)}
    child = int(next(line for line in lines if line != "up"))
    parent.kill()
    parent.wait()
    for _ in range(500):
        if not Path(f"/proc/{child}").exists() or "Z (zombie)" in Path(f"/proc/{child}/status").read_text():
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child went on")
