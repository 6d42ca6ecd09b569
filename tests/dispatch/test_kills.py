"""The bot is killed at any moment, as often as may be: each tag is run exactly once, and none is lost."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter

import pytest
from huggingface_hub import HfApi

from bot.devhub import DevHub
from bot.dispatch.backends.local import STARTS
from tests.dispatch.processes import Bot, runner_and_command, tagged, wait_for, wait_until

KILLS = 50


@pytest.mark.slow
def test_fifty_kills_of_two_servers_lose_nothing_and_run_nothing_twice(bot: Bot, api: HfApi) -> None:
    chosen = random.Random()  # another time at every run
    tags = tagged(bot, api, KILLS)
    # Each tag by two webhooks; sent again until it is answered, as the Hub does, and replayed now and then.
    waiting = [(tag, f"{tag} {webhook}") for tag in tags for webhook in ("a", "b")]
    chosen.shuffle(waiting)
    answered: Counter[int] = Counter()
    over = threading.Event()

    def deliver() -> None:
        while waiting and not over.is_set():
            each = chosen.choice(waiting)
            status = bot.deliver(*each, chosen)
            if status is None:
                time.sleep(0.01)
                continue
            answered[status] += 1
            if chosen.random() < 0.8:
                waiting.remove(each)
            time.sleep(0.01)

    killed = 0
    bot.start(2)
    hub = threading.Thread(target=deliver)
    hub.start()
    try:
        while killed < KILLS:
            if chosen.random() < 0.8:  # else before anything was done
                before = bot.states()
                wait_until(lambda: bot.states() != before, 5.0)  # noqa: B023
            time.sleep(chosen.uniform(0.0, 0.2))
            bot.kill()
            killed += 2
            bot.two_minutes_pass()
            bot.start(2)
        hub.join(60)
    finally:
        over.set()
        hub.join(60)
    assert not waiting
    for _ in range(10):
        if bot.states() == {"done": len(tags)}:
            break
        wait_until(lambda: bot.states().keys() <= {"sent", "done"} and not any(runner_and_command(bot)), 20.0)
        again(bot)
        wait_until(lambda: bot.states() == {"done": len(tags)}, 5.0)
    assert bot.states() == {"done": len(tags)}
    assert set(answered) <= {200, 202}
    assert Counter(bot.runs()) == {f"demo/a@{tag}": 1 for tag in tags}
    assert sorted(row["revision"] for row in bot.rows()) == sorted(tags)


def started(bot: Bot, api: HfApi) -> None:
    """One run that is under way, and does not end before `hold` is gone."""
    bot.hold.touch()
    tagged(bot, api, 1)
    bot.start()
    assert bot.deliver("v0", "one", random.Random()) == 202
    wait_for(lambda: bool(bot.runs()) and bot.rows()[0]["state"] == "sent")


def again(bot: Bot) -> None:
    bot.kill()
    bot.two_minutes_pass()
    bot.start()


def test_a_run_outlives_its_server_and_is_followed_by_the_next(bot: Bot, api: HfApi) -> None:
    started(bot, api)
    again(bot)
    bot.hold.unlink()
    wait_for(lambda: not any(runner_and_command(bot)))
    again(bot)
    wait_for(lambda: bot.rows()[0]["state"] == "done")
    assert len(bot.runs()) == 1
    assert json.loads(bot.rows()[0]["fate"])["status"] == "published"


def test_a_runner_that_is_killed_leaves_its_command_alone_at_work(bot: Bot, api: HfApi) -> None:
    """The command has the lock too: as long as it lives, nobody begins again."""
    started(bot, api)
    (runner,), (command,) = runner_and_command(bot)
    runner.send_signal(signal.SIGKILL)
    again(bot)
    time.sleep(1)
    assert len(bot.runs()) == 1
    assert command.is_running()
    bot.hold.unlink()
    command.wait(10)
    again(bot)
    wait_for(
        lambda: len(bot.runs()) == 2
    )  # its end was not written down: the merge itself is the same then, and unchanged
    wait_for(lambda: not any(runner_and_command(bot)))
    again(bot)
    wait_for(lambda: bot.rows()[0]["state"] == "done")


@pytest.mark.parametrize("reboot", [False, True], ids=["the command is killed", "the machine goes down"])
def test_a_run_that_is_killed_again_and_again_is_started_three_times_and_then_failed(
    bot: Bot, api: HfApi, reboot: bool
) -> None:
    started(bot, api)
    for number in range(1, STARTS + 1):
        wait_for(lambda: len(bot.runs()) == number)  # noqa: B023
        wait_for(lambda: all(runner_and_command(bot)))
        runners, commands = runner_and_command(bot)
        if reboot:
            bot.kill()
        for process in (*(runners if reboot else ()), *commands):
            process.send_signal(signal.SIGKILL)
        wait_for(lambda: not any(runner_and_command(bot)))
        again(bot)
    wait_for(lambda: bot.rows()[0]["state"] == "failed")
    assert len(bot.runs()) == STARTS
    row = bot.rows()[0]
    assert "ended from outside" in row["reason"]
    assert "log" in row["remedy"]


def test_it_ends_in_order_and_at_once_and_keeps_what_it_accepted(bot: Bot, api: HfApi) -> None:
    started(bot, api)
    process, _ = bot.servers[0]
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert time.monotonic() - begun < 5
    assert bot.rows()[0]["state"] == "sent"
    assert all(runner_and_command(bot))  # the merge goes on


def test_a_hub_that_hangs_does_not_keep_it_from_ending(bot: Bot, api: HfApi, devhub: DevHub) -> None:
    from bot.devhub.faults import Fault

    tagged(bot, api, 1)
    devhub.faults.add(Fault(path="/api/models/demo/a", delay=8.0, times=None))
    bot.start()
    assert bot.deliver("v0", "one", random.Random()) == 202
    wait_for(lambda: bot.rows()[0]["state"] == "sending")
    process, _ = bot.servers[0]
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert time.monotonic() - begun < 5
    devhub.faults.clear()
    bot.servers.clear()
    bot.two_minutes_pass()
    bot.start()
    wait_for(lambda: bot.runs() == ["demo/a@v0"])
