"""A publication survives any one passing fault in any of its calls, and any two: done once, and as it was asked for.

Every call that a publication makes is found by recording one; it is then spoilt in each way, one publication for each. By default
these are all calls that change something, in every way, and every other route once; and a few pairs that are drawn. The whole, with
so many pairs for each publication: `ADAPTER_MERGE_SWEEP=100 pytest tests/publish/test_sweep.py` (ten minutes).
"""

from __future__ import annotations

import os
import random
import time

import httpx2
import pytest

from bot.devhub import Fault
from bot.hub import session
from tests.publish.scenarios import SCENARIOS, calls_of

WHOLE = "ADAPTER_MERGE_SWEEP" in os.environ
PAIRS = int(os.environ.get("ADAPTER_MERGE_SWEEP", "4"))
LIMIT, SLOW = 0.15, 0.4  # seconds: when the client gives up, and how much later the Hub does what it was asked
WAYS = {
    "429 with a wait": {"status": 429, "headers": {"RateLimit": '"api";r=0;t=25'}},
    "500": {"status": 500},
    "503": {"status": 503, "headers": {"Retry-After": "7"}},
    "cut": {"dropped": True},
    "slow": {"delay": SLOW},
    "lost answer": {"cut_after": 0},
}


@pytest.fixture(autouse=True)
def _no_fault_is_left(place):
    yield
    place.dev.faults.clear()


@pytest.fixture(scope="module")
def calls(place):
    """What each publication asks when nothing goes wrong."""
    return {scenario.name: calls_of(scenario, place) for scenario in SCENARIOS}


def survive(scenario, place, monkeypatch, *spoilt):
    """Publish to a new target with these (call, way) faults, and hold what comes of it; how many of them were met."""
    repo = place.target()
    scenario.before(place, repo)
    faults = [
        place.dev.faults.add(Fault(method=call.method, path=call.pattern(repo), skip=call.nth - 1, **WAYS[way]))
        for call, way in spoilt
    ]
    place.waits.clear()
    told = [f"{call}: {way}" for call, way in spoilt]
    with monkeypatch.context() as patched:
        if any(way == "slow" for _, way in spoilt):
            for name in ("QUICK", "LIMITS"):
                patched.setattr(session, name, httpx2.Timeout(LIMIT))
        done = scenario.publish(place, repo)
    met = sum(place.dev.faults.hits(fault) for fault in faults)
    place.dev.faults.clear()
    if any(way == "slow" for _, way in spoilt):
        time.sleep(SLOW)  # what the Hub does late is done by then
    assert done.status == ("unchanged" if scenario.name == "unchanged" else "published"), told
    assert any(wait > 25 for wait in place.waits) or all(way != "429 with a wait" for _, way in spoilt) or not met, told
    scenario.hold(place, repo)
    return met


def chosen(scenario, calls, way):
    """The calls to spoil in this way: all, or by default those that change something and a share of the others' routes, each of
    which is spoilt in some way in some publication."""
    if WHOLE:
        return calls[scenario.name]
    routes = sorted({(call.method, call.route) for found in calls.values() for call in found if not call.changes})
    mine = routes[list(WAYS).index(way) :: len(WAYS)]
    for found in SCENARIOS[: SCENARIOS.index(scenario)]:  # which the ones before have not had
        mine = [route for route in mine if route not in {(call.method, call.route) for call in calls[found.name]}]
    return [
        call for call in calls[scenario.name] if call.changes or ((call.method, call.route) in mine and call.nth == 1)
    ]


def test_what_is_spoilt_is_what_a_publication_asks(calls):
    """The recording sees all of it; a route that is new is spoilt too."""
    met = {(call.method, call.route) for found in calls.values() for call in found}
    picked = {
        (call.method, call.route)
        for scenario in SCENARIOS
        for way in WAYS
        for call in chosen(scenario, calls, way)
    }  # fmt: skip
    assert picked == met
    assert len(met) > 20


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_any_one_fault_is_survived(place, scenario, way, calls, monkeypatch):
    for call in chosen(scenario, calls, way):
        assert survive(scenario, place, monkeypatch, (call, way)) == 1, str(call)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_any_two_faults_are_survived(place, scenario, calls, monkeypatch):
    drawing = random.Random(scenario.name)
    for _ in range(PAIRS):
        spoilt = [(call, drawing.choice(list(WAYS))) for call in drawing.sample(calls[scenario.name], 2)]
        survive(scenario, place, monkeypatch, *spoilt)
