"""What an event starts: nothing without one, nothing for what means nothing, and one run for each created tag."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bot.dispatch.job_entry import orders_of
from bot.errors import Forbidden, Usage

ALLOW = {"ADAPTER_MERGE_ALLOW": "demo/*\nacme/lora", "ADAPTER_MERGE_TAGS": "v*"}


def event(repo: str = "demo/lora", **ref: Any) -> str:
    refs = [{"ref": "refs/tags/v1", "oldSha": None, "newSha": "a" * 40} | ref]
    about = {"type": "model", "name": repo}
    return json.dumps({"event": {"action": "update", "scope": "repo.content"}, "repo": about, "updatedRefs": refs})


def test_a_created_tag_becomes_a_run_with_the_options_that_were_installed() -> None:
    orders, why = orders_of(
        ALLOW | {"WEBHOOK_PAYLOAD": event(), "ADAPTER_MERGE_OPTIONS": "dtype=float16\nprivate=true"}
    )
    assert [(order.adapter, order.revision) for order in orders] == [("demo/lora", "v1")]
    assert orders[0].options == (("dtype", "float16"), ("private", "true"))
    assert why == "accepted: v1"


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (event(oldSha="b" * 40), "no tag was created"),
        (event(newSha=None), "no tag was created"),
        (event("xdemo/lora"), "not on the list"),
        (event(ref="refs/tags/w1"), "fits no pattern"),
        ("{", "not a payload"),
        ("[]", "not a payload"),
        ("", "There is no event"),
    ],
)
def test_what_means_nothing_runs_nothing_and_says_why(payload: str, why: str) -> None:
    orders, words = orders_of(ALLOW | {"WEBHOOK_PAYLOAD": payload})
    assert orders == ()
    assert why in words


def test_an_event_with_a_wrong_secret_is_refused() -> None:
    expected = {"ADAPTER_MERGE_WEBHOOK_SECRET": "right"}
    assert orders_of(ALLOW | expected | {"WEBHOOK_PAYLOAD": event(), "WEBHOOK_SECRET": "right"})[0]
    for given in ({}, {"WEBHOOK_SECRET": "wrong"}):
        with pytest.raises(Forbidden, match="does not bear"):
            orders_of(ALLOW | expected | {"WEBHOOK_PAYLOAD": event()} | given)


def test_a_job_that_nobody_may_start_says_so() -> None:
    with pytest.raises(Usage, match="No adapter is allowed"):
        orders_of({"WEBHOOK_PAYLOAD": event()})
