"""A run that is killed between any two steps, and run again, ends in what was asked for: nothing twice, nothing missing."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest

from bot.hub.session import Session
from tests.publish.scenarios import SCENARIOS, calls_of


class Killed(BaseException):
    """Nothing in the code catches it, as nothing catches SIGKILL."""


def kill_after(call, repo, monkeypatch):
    """End the run as soon as this call is answered."""
    send, seen = Session.send, []

    def last(self, request, **how):
        response = send(self, request, **how)
        if request.method == call.method and re.search(call.pattern(repo), unquote(request.url.path)):
            seen.append(request)
            if len(seen) == call.nth:
                raise Killed
        return response

    monkeypatch.setattr(Session, "send", last)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_next_run_brings_it_to_its_end(place, scenario, monkeypatch):
    steps = [call for call in calls_of(scenario, place) if call.changes]
    assert steps
    for step in steps:
        repo = place.target()
        scenario.before(place, repo)
        with monkeypatch.context() as patched:
            kill_after(step, repo, patched)
            with pytest.raises(Killed):
                scenario.publish(place, repo)
        done = scenario.publish(place, repo)
        assert done.status in ("published", "unchanged")
        scenario.hold(place, repo)
        assert scenario.publish(place, repo).status == "unchanged"
