"""What is told while a run works: every step moves, at its own speed, in a terminal, a log and the Actions log."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from pathlib import Path

import pytest

from bot.checks.behaviour.forward_counts import Forwards, read_forwards
from bot.events import Event, Note, Stage, StepProgress, beating
from bot.terminal.console import Console
from bot.terminal.progress import LOG_EVERY, Progress, duration

MB = 1_000_000


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def moved(done: int, total: int = 100 * MB, what: str = "", **more: object) -> StepProgress:
    return StepProgress(stage="merge", done=done, total=total, what=what, **more)  # type: ignore[arg-type]


def told(events: list[tuple[float, StepProgress]], *, terminal: bool = False) -> list[str]:
    """The lines of events at their seconds."""
    clock = Clock()
    progress = Progress(terminal=terminal, clock=clock)
    lines = []
    for at, event in events:
        clock.now = 1000.0 + at
        line = progress.take(event)
        lines += [line.text] if line else []
    return lines


def test_a_rate_is_that_of_the_steps_own_work_and_not_of_the_imports_before_it() -> None:
    events = [(0.0, moved(0, 0, "Preparing")), (15.0, moved(0)), (17.0, moved(100 * MB))]
    assert told(events)[-1] == "100.0 MB in 2.0 s, 50.0 MB/s"


def test_a_step_that_counts_less_than_the_one_before_never_goes_backwards() -> None:
    # Weights were counted as bytes after bytes: -2.1 kB/s.
    events = [(0.0, moved(0, what="Comparing every weight")), (20.0, moved(100 * MB, what="Comparing every weight"))]
    events += [(20.0 + n, moved(n, 40, "Comparing quantised weights", unit="weights")) for n in range(41)]
    events += [(70.0, moved(0, 50)), (85.0, moved(10, 50)), (99.0, moved(50, 50))]
    lines = told(events, terminal=True)
    assert not [line for line in lines if re.search(r"-\d", line)]
    assert "Comparing quantised weights: 40 weights in 40.0 s" in lines
    assert any("Comparing quantised weights: 10 of 40 weights, 30 s left" in line for line in lines)


def test_what_was_there_before_is_no_measure_of_speed() -> None:
    assert told([(0, moved(0)), (0, moved(90 * MB, kept=90 * MB)), (10.0, moved(95 * MB, kept=90 * MB))]) == [
        " 95%  95.0 MB of 100.0 MB, 500.0 kB/s, 10 s left"
    ]
    assert told([(5.0, moved(90 * MB)), (15.0, moved(95 * MB))]) == [" 95%  95.0 MB of 100.0 MB, 500.0 kB/s, 10 s left"]


def test_a_log_gets_a_line_in_ten_seconds_at_most_and_a_terminal_ten_in_one() -> None:
    events = [(tick / 20, moved(tick * MB // 20)) for tick in range(1200)]
    assert len(told(events)) == 60 // LOG_EVERY - 1
    assert 400 < len(told(events, terminal=True)) <= 600
    short = [(n / 2, moved(done, 10, f"Check {n}")) for n in range(60) for done in (0, 10)]
    assert not told(short), "a named step of no time leaves no line"


def test_a_step_of_unknown_length_tells_how_long_it_has_taken() -> None:
    events = [(float(second), moved(0, 0, "Running the unmerged model")) for second in range(75)]
    assert told(events)[0] == "Running the unmerged model: 10 s"
    assert told(events)[-1] == "Running the unmerged model: 1 min 10 s"
    assert [duration(s) for s in (48.4, 185, 7800)] == ["48 s", "3 min 5 s", "2 h 10 min"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_keeps_the_lines_of_finished_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", stream)
    say = Console(clock=clock)
    say(Stage(name="merge", title="Merging"))
    for _ in range(5):
        clock.now += 1
        say(moved(0, 0, "Preparing"))
    say(Note(text="Something to read."))
    say(moved(0))
    for done in (50, 100):
        clock.now += 2
        say(moved(done * MB))
    say.close()
    text = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())
    shown = [re.split(r"\r\x1b\[K", line)[-1] for line in text.split("\n")]
    assert shown == ["", "▸ Merging", "  Something to read.", "  100.0 MB in 4.0 s, 25.0 MB/s", ""]
    assert "50%  50.0 MB of 100.0 MB, 25.0 MB/s, 2 s left" in text


def test_actions_gets_folds_and_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), Clock()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    say = Console(clock=clock)
    say(Stage(name="merge", title="Merging"))
    say(moved(0))
    clock.now += 10
    say(moved(50 * MB))
    say.close()
    assert stream.getvalue().splitlines() == [
        "::group::Merging",
        "   50%  50.0 MB of 100.0 MB, 5.0 MB/s, 10 s left",
        "::endgroup::",
    ]


def test_work_that_is_silent_for_long_is_still_seen_to_go_on() -> None:
    heard: list[Event] = []
    three = threading.Event()

    def listen(event: Event) -> None:
        heard.append(event)
        if len([one for one in heard if isinstance(one, StepProgress) and one.done == 7]) == 3:
            three.set()

    with beating(listen, "merge", "Preparing", beat=0.01) as tell:
        while len(heard) < 3:  # it says nothing by itself
            time.sleep(0.01)
        tell(moved(7))
        assert three.wait(20), "the last word is said again"
    count = len(heard)
    time.sleep(0.05)
    assert len(heard) == count, "and no more when the work is over"
    assert set(heard) == {moved(0, 0, "Preparing"), moved(7)}


def test_a_worker_writes_down_how_many_of_its_model_runs_are_done(tmp_path: Path) -> None:
    path, forwards = tmp_path / "reference.forwards", Forwards()
    forwards.ran()
    assert read_forwards(path) == (0, 0)
    forwards.begin(path)
    forwards.expect(24)
    forwards.ran()
    assert read_forwards(path) == (2, 24)
    path.write_text("[1,")
    assert read_forwards(path) == (0, 0)


def test_every_long_step_of_a_run_moves_from_nothing_to_all(tmp_path: Path) -> None:
    from bot.hub import Hub
    from bot.pipeline import run
    from bot.records import Options, Ref, Request
    from tests.factory import save_adapter, save_base

    base = save_base("llama", tmp_path / "base")
    adapter = save_adapter(base, "llama", tmp_path / "adapter")
    heard: list[Event] = []
    request = Request(
        adapter=Ref(text=str(adapter), folder=adapter),
        base=Ref(text=str(base), folder=base),
        output=tmp_path / "out",
        publish="none",
        options=Options(verify="full", quantize="nf4"),
    )
    run(request, Hub(), heard.append)
    steps: dict[tuple[str, str], list[StepProgress]] = {}
    for event in heard:
        if isinstance(event, StepProgress):
            steps.setdefault((event.stage, event.what), []).append(event)
    measured = [
        ("pull", "Hashing the base"),
        ("merge", ""),
        ("verify", "Hashing the result"),
        ("verify", "Comparing every weight"),
        ("verify", "Comparing quantised weights"),
        ("verify", "Running the unmerged model"),
    ]
    for name in measured:
        assert name in steps, f"{name} of {list(steps)}"
        assert steps[name][0].done == 0, name
        assert steps[name][-1].done == steps[name][-1].total > 0, name
        assert [one.done for one in steps[name]] == sorted(one.done for one in steps[name]), name


def test_from_the_very_first_of_it_nothing_is_said_of_the_rest() -> None:
    # "35 min left" after one weight of 168, of a step that took four minutes.
    first, later = told([(0, moved(0)), (13.0, moved(MB)), (26.0, moved(10 * MB))])
    assert first == "  1%  1.0 MB of 100.0 MB, 76.9 kB/s, 13 s so far"
    assert later == " 10%  10.0 MB of 100.0 MB, 384.6 kB/s, 3 min 54 s left"
