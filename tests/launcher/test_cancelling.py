"""A cancelled job signals one process, once; it stops the container and leaves nothing behind."""

from __future__ import annotations

import signal
import time

import pytest

from tests.launcher.conftest import VERSION, Ran, Runner

CLEAN_UP = 1  # action.yml's second step


def names(ran: Ran, verb: str) -> list[str]:
    return [call.arguments[-1] for call in ran.calls if call.name == "docker" and call.arguments[0] == verb]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["preflight", "fetch", "merge", "publish"])
def test_cancelling_stops_the_container_of_the_phase(runner: Runner, phase: str, by: signal.Signals) -> None:
    runner.env["STUB_ENDLESS"] = phase
    began = time.monotonic()
    ran = runner.cancelled(by)
    assert ran.code == 130
    assert time.monotonic() - began < 7.5, "the runner kills after that"
    assert names(ran, "stop") == ran.phases()[phase].values("--name")
    assert list(ran.phases())[-1] == phase
    assert "::warning title=adapter-merge::Cancelled." in ran.log
    cleaned = runner.run(CLEAN_UP)
    assert (cleaned.code, cleaned.log) == (0, "")


def test_a_container_that_does_not_stop_is_removed(runner: Runner) -> None:
    runner.env |= {"STUB_ENDLESS": "merge", "STUB_STOP_CODE": "1"}
    ran = runner.cancelled(signal.SIGINT)
    assert ran.code == 130
    assert names(ran, "rm") == ran.phases()["merge"].values("--name")


def test_cancelling_ends_a_native_child(runner: Runner) -> None:
    runner.env |= {"STUB_ENDLESS": "merge", "STUB_INSTALLED": VERSION}
    ran = runner.cancelled(signal.SIGINT)
    assert ran.code == 130
    assert list(ran.phases())[-1] == "merge"
    assert {call.name for call in ran.calls} == {"python3"}


def test_the_clean_up_step_removes_a_container_whose_launcher_was_killed(runner: Runner) -> None:
    runner.env["STUB_ENDLESS"] = "merge"
    killed = runner.cancelled(signal.SIGKILL)
    name = killed.phases()["merge"].values("--name")
    cleaned = runner.run(CLEAN_UP)
    assert cleaned.code == 0
    assert names(cleaned, "rm") == name
    assert f"Ended the container {name[0]}." in cleaned.log
    assert names(runner.run(CLEAN_UP), "rm") == name, "and not a second time"


@pytest.mark.parametrize("code", ["0", "3"])
def test_the_clean_up_step_has_nothing_to_do_after_a_run_that_ended(runner: Runner, code: str) -> None:
    runner.env["STUB_FETCH_CODE"] = code
    runner.run()
    cleaned = runner.run(CLEAN_UP)
    assert cleaned.code == 0
    assert cleaned.log == ""
    assert names(cleaned, "rm") == []


def test_every_container_has_a_name_of_its_own(runner: Runner) -> None:
    first = runner.run().phases()
    again = runner.run().phases()
    found = [call.values("--name")[0] for call in (*first.values(), *again.values())]
    assert len(set(found)) == len(found) == 8
    assert all(name.startswith("adapter-merge-77-") for name in found)
