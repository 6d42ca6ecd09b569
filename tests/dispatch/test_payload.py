"""What a delivery means: only created tags of allowed models become orders, and nothing that is sent raises."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.dispatch.allow import Allowed
from bot.dispatch.payload import read_payload
from bot.dispatch.records import tag_key

OLD, NEW = "1" * 40, "2" * 40
ALLOWED = Allowed.of(["alice/*"], ["v*"])


def ref(name: str = "refs/tags/v1", old: str | None = None, new: str | None = NEW) -> dict[str, Any]:
    return {"ref": name, "oldSha": old, "newSha": new}


def payload(
    *refs: dict[str, Any], repo: str = "alice/x", kind: str = "model", scope: str = "repo.content"
) -> dict[str, Any]:
    """As the Hub documents it (https://huggingface.co/docs/hub/webhooks), with what version 3 adds."""
    return {
        "event": {"action": "update", "scope": scope},
        "repo": {
            "type": kind, "name": repo, "id": "621ffdc036468d709f17434d", "private": False, "headSha": NEW,
            "url": {"web": f"https://huggingface.co/{repo}", "api": f"https://huggingface.co/api/models/{repo}"},
            "owner": {"id": "628b753283ef59b5be89e937"},
        },
        "webhook": {"id": "6390e855e30d9209411de93b", "version": 3},
        "updatedRefs": list(refs),
    }  # fmt: skip


def test_a_created_tag_becomes_an_order() -> None:
    reading = read_payload(payload(ref()), ALLOWED)
    (order,) = reading.orders
    assert (order.adapter, order.revision, order.sha, order.origin, order.kind) == (
        "alice/x",
        "v1",
        NEW,
        "webhook",
        "merge",
    )
    assert order.key == tag_key("alice/x", "v1", NEW)
    assert (reading.verdict, reading.event, reading.repo) == ("accepted: v1", "update repo.content", "alice/x")


def test_zeros_for_a_commit_say_as_null_does_that_there_was_none() -> None:
    assert read_payload(payload(ref(old="0" * 40)), ALLOWED).orders
    assert not read_payload(payload(ref(new="0" * 40)), ALLOWED).orders


def test_several_tags_in_one_event_are_several_orders() -> None:
    refs = [ref("refs/tags/v1"), ref("refs/heads/main", OLD), ref("refs/tags/v2"), ref("refs/tags/nightly")]
    assert [order.revision for order in read_payload(payload(*refs), ALLOWED).orders] == ["v1", "v2"]


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (payload(ref(old=OLD)), "no tag was created"),
        (payload(ref(old=OLD, new=None)), "no tag was created"),
        (payload(ref("refs/heads/main", OLD)), "no tag was created"),
        (payload(ref("refs/heads/v1")), "no tag was created"),
        (payload(ref("refs/pr/7")), "no tag was created"),  # our own pull request
        (payload(ref("refs/tags/")), "no tag was created"),
        (payload(ref("v1")), "no tag was created"),
        (payload(), "no tag was created"),
        (payload(ref(), kind="dataset"), "a dataset is no model"),
        (payload(ref(), kind="space"), "a space is no model"),
        (payload(ref(), scope="repo.config"), "no tag was created"),
        (payload(ref(), scope="discussion"), "no tag was created"),
        (payload(ref(), repo="xalice/x"), "not on the list"),
        (payload(ref(), repo="alice/x\n"), "not a payload"),
        (payload(ref("refs/tags/nightly")), "nightly fits no pattern"),
        (payload(ref("refs/tags/v" + "1" * 300)), "no tag was created"),
        (payload(ref("refs/tags/v1\n")), "no tag was created"),
        ({}, "not a payload"), ([], "not a payload"), (None, "not a payload"), ("text", "not a payload"), (3, "not a payload"),
    ],
)  # fmt: skip
def test_everything_else_is_ignored_with_the_reason(sent: object, why: str) -> None:
    reading = read_payload(sent, ALLOWED)
    assert not reading.orders
    assert reading.comment is None
    assert reading.verdict.startswith("ignored: ")
    assert why in reading.verdict


def comment(**changed: Any) -> dict[str, Any]:
    sent = payload(scope="discussion.comment")
    sent["event"]["action"] = "create"
    sent["discussion"] = {"id": "639885d811ae2bad2b7ba461", "num": 6, "status": "open", "isPullRequest": False}
    author = {"id": "61d2000c3c2083e1c08af22d"}
    sent["comment"] = {"id": "6398872887bfcfb93a306f18", "author": author, "content": "/merge", "hidden": False}
    sent["comment"] |= changed
    return sent


def test_a_comment_is_handed_on() -> None:
    read = read_payload(comment(), ALLOWED).comment
    assert read is not None
    assert (read.repo, read.number, read.text, read.author) == ("alice/x", 6, "/merge", "61d2000c3c2083e1c08af22d")


@pytest.mark.parametrize("changed", [{"hidden": True}, {"content": None}, {"id": None}, {"content": 3}])
def test_a_comment_that_is_hidden_or_none_is_not(changed: dict[str, Any]) -> None:
    assert read_payload(comment(**changed), ALLOWED).comment is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(JSON)
def test_no_junk_raises_or_orders_anything(junk: object) -> None:
    assert not read_payload(junk, ALLOWED).orders


PLACES = [
    ("event",), ("event", "action"), ("event", "scope"), ("repo",), ("repo", "type"), ("repo", "name"), ("updatedRefs",),
    ("updatedRefs", 0), ("updatedRefs", 0, "ref"), ("updatedRefs", 0, "oldSha"), ("updatedRefs", 0, "newSha"), ("discussion",),
    ("discussion", "num"), ("comment",), ("comment", "id"), ("comment", "content"), ("comment", "author"),
]  # fmt: skip


@settings(max_examples=300)
@given(st.sampled_from(PLACES), JSON, st.booleans())
def test_junk_in_any_place_of_a_payload_raises_nothing(path: tuple[Any, ...], junk: object, speaks: bool) -> None:
    sent = copy.deepcopy(comment() if speaks else payload(ref()))
    if path[0] not in sent:
        return
    within: Any = sent
    for step in path[:-1]:
        if isinstance(within, list) and not within:
            return
        within = within[step]
    if isinstance(within, list) and not within:
        return
    within[path[-1]] = junk
    reading = read_payload(sent, ALLOWED)
    assert reading.verdict.isprintable()
    assert reading.repo.isprintable()
    assert reading.event.isprintable()
    for order in reading.orders:
        assert ALLOWED.repo(order.adapter)
        assert ALLOWED.tag(order.revision or "")
