"""One comment for a tag, whatever happens meanwhile, and nothing in it that others could have meant as markup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from huggingface_hub import DiscussionComment, HfApi

from bot.devhub import DevHub, Fault
from bot.dispatch.announce import Announcer, account_that_comments, mark_of, text_of
from bot.dispatch.background import Background
from bot.dispatch.dispatcher import Dispatcher
from bot.dispatch.records import Fate, Order, Run, RunRequest, tag_key
from bot.dispatch.resolve import resolver
from bot.dispatch.store import Store
from bot.errors import Forbidden, Usage
from bot.events import Event, Note
from bot.hub import Hub
from tests.dispatch.conftest import Notebook


class Clock:
    """Time that passes when a test says so."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = Store(tmp_path / "bot.db", clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def announce(store: Store, hub: Hub) -> Announcer:
    return Announcer(store, hub, lambda event: None)


@pytest.fixture
def sent(store: Store, hub: Hub, notebook: Notebook, new_adapter: Callable[..., str]) -> RunRequest:
    """A request for demo/lora@v1 that runs."""
    sha = new_adapter("demo/lora", "v1")
    return send(store, hub, notebook, sha)


def send(store: Store, hub: Hub, notebook: Notebook, sha: str, tag: str = "v1") -> RunRequest:
    order = Order(key=tag_key("demo/lora", tag, sha), adapter="demo/lora", revision=tag, sha=sha, origin="webhook")
    request = store.add(order)
    assert request is not None
    while Dispatcher(store, notebook, resolver(hub, None)).step():
        pass
    kept = store.request(request.id)
    assert kept is not None
    return kept


def ended(store: Store, request: RunRequest, fate: Fate) -> None:
    """The request's run has come to this."""
    kept = store.request(request.id)
    assert kept is not None
    store.clock.now += 20  # type: ignore[attr-defined]
    store.follow(kept, fate)


def comments(api: HfApi, repo: str = "demo/lora") -> list[str]:
    """All comments of all discussions."""
    return [
        event.content
        for discussion in api.get_repo_discussions(repo)
        for event in api.get_discussion_details(repo, discussion.num).events
        if isinstance(event, DiscussionComment)
    ]


PUBLISHED = Fate(status="published", url="https://hub.example/demo/lora-merged", verdict="verified (full)", exit_code=0)


def test_the_comment_is_edited_as_the_run_goes_on(
    store: Store, announce: Announcer, sent: RunRequest, api: HfApi
) -> None:
    announce()
    (first,) = comments(api)
    assert "The merge of `v1` by `adapter-merge`: running." in first
    assert f"[The run](https://runs.example/{sent.id})" in first
    ended(store, sent, PUBLISHED)
    announce()
    (last,) = comments(api)
    assert "published. [The merged model](https://hub.example/demo/lora-merged). Proof: verified (full)." in last


def test_a_failure_is_told_with_its_remedy(store: Store, announce: Announcer, sent: RunRequest, api: HfApi) -> None:
    ended(store, sent, Fate(status="failed", reason="The disk is full.", remedy="Free some.", exit_code=6))
    announce()
    (text,) = comments(api)
    assert "**failed**" in text
    assert "The disk is full. Free some." in text


def test_another_tag_gets_a_comment_in_the_same_discussion(
    store: Store, hub: Hub, notebook: Notebook, announce: Announcer, sent: RunRequest, api: HfApi
) -> None:
    announce()
    api.create_tag("demo/lora", tag="v2")
    send(store, hub, notebook, sent.order.sha or "", "v2")
    announce()
    assert len(list(api.get_repo_discussions("demo/lora"))) == 1
    assert ["`v1`" in text for text in comments(api)] == [True, False]


def forget(store: Store, request: RunRequest) -> None:
    """As after a kill between the comment and its record; the claim of the killed one has run out."""
    with store._writing() as rows:
        rows.execute(
            "UPDATE requests SET announced = '', comment_digest = '', compared = 0 WHERE id = ?", (request.id,)
        )


def test_a_kill_after_the_comment_was_made_makes_no_second_one(
    store: Store, announce: Announcer, sent: RunRequest, api: HfApi, hub: Hub
) -> None:
    for fate in (Fate(status="running"), PUBLISHED):
        announce()
        forget(store, sent)
        hub.__dict__.pop("_who", None)
        ended(store, sent, fate)
    announce()
    (text,) = comments(api)
    assert "published" in text


def test_a_state_that_was_lost_makes_no_second_comment(
    store: Store,
    announce: Announcer,
    sent: RunRequest,
    api: HfApi,
    hub: Hub,
    notebook: Notebook,
    tmp_path: Path,
    clock: Clock,
) -> None:
    announce()
    other = Store(tmp_path / "other.db", clock=clock)
    send(other, hub, notebook, sent.order.sha or "")
    Announcer(other, hub, lambda event: None)()
    other.close()
    assert len(comments(api)) == 1


class Killed(BaseException):
    """The process ends here."""


class MortalHub(Hub):
    """Ends the process before or after its n-th call to the Hub."""

    def __init__(self, *, dies_at: int, after: bool, **more: Any) -> None:
        super().__init__(**more)
        self.left, self.after = dies_at, after

    def patiently(self, *given: Any, **more: Any) -> Any:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        answer = super().patiently(*given, **more)
        if self.left == 0:
            raise Killed
        return answer


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("dies_at", range(1, 7))
def test_a_kill_at_any_call_makes_no_second_comment(
    store: Store, hub: Hub, notebook: Notebook, sent: RunRequest, api: HfApi, devhub: DevHub, clock: Clock,
    dies_at: int, after: bool,
) -> None:  # fmt: skip
    """Killed while the discussion is opened, while it is gone on with, and while a comment is edited."""
    api.create_tag("demo/lora", tag="v2")
    kills = 0
    for tag in ("v1", "v2"):
        request = sent if tag == "v1" else send(store, hub, notebook, sent.order.sha or "", tag)
        for fate in (None, PUBLISHED):
            if fate:
                ended(store, request, fate)
            mortal = MortalHub(dies_at=dies_at, after=after, endpoint=devhub.url, write_token=devhub.token, patience=())
            try:
                Announcer(store, mortal, lambda event: None)()
            except Killed:
                kills += 1
            clock.now += 301
            Announcer(store, hub, lambda event: None)()
    texts = comments(api)
    assert kills or dies_at > 5
    assert [sum(f"`{tag}`" in text for text in texts) for tag in ("v1", "v2")] == [1, 1]
    assert ["published" in text for text in texts] == [True, True]


@pytest.mark.parametrize("path", [r"/discussions$", r"/comment$", r"/edit$"])
@pytest.mark.parametrize("how", ["lost", "busy"])
def test_an_answer_that_was_lost_makes_no_second_comment(
    store: Store, announce: Announcer, sent: RunRequest, api: HfApi, devhub: DevHub, clock: Clock, path: str, how: str,
    hub: Hub, notebook: Notebook,
) -> None:  # fmt: skip
    api.create_tag("demo/lora", tag="v2")
    fault = (
        Fault(method="POST", path=path, cut_after=0) if how == "lost" else Fault(method="POST", path=path, status=503)
    )
    devhub.faults.add(fault)
    announce()
    clock.now += 61
    announce()
    send(store, hub, notebook, sent.order.sha or "", "v2")
    announce()
    clock.now += 61
    announce()
    ended(store, sent, PUBLISHED)
    announce()
    clock.now += 61
    announce()
    assert sorted("`v1`" in text for text in comments(api)) == [False, True]
    assert "published" in next(text for text in comments(api) if "`v1`" in text)


def test_two_servers_on_one_database_make_one_comment(
    store: Store, sent: RunRequest, api: HfApi, devhub: DevHub, tmp_path: Path, clock: Clock
) -> None:
    stores = [Store(tmp_path / "bot.db", clock=clock) for _ in range(4)]
    barrier = Barrier(4)

    def tell(each: Store) -> None:
        hub = Hub(endpoint=devhub.url, write_token=devhub.token, patience=())
        barrier.wait()
        Announcer(each, hub, lambda event: None)()

    threads = [Thread(target=tell, args=(each,)) for each in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in stores:
        each.close()
    assert len(comments(api)) == 1


def test_a_moved_tag_keeps_its_one_comment(
    store: Store, hub: Hub, notebook: Notebook, announce: Announcer, sent: RunRequest, api: HfApi, clock: Clock
) -> None:
    announce()
    sha = api.upload_file(path_or_fileobj=b"2", path_in_repo="weights", repo_id="demo/lora").oid
    api.delete_tag("demo/lora", tag="v1")
    api.create_tag("demo/lora", tag="v1")
    clock.now += 5
    newer = send(store, hub, notebook, sha)
    announce()
    ended(store, sent, Fate(status="failed", reason="Too old.", remedy="Never mind."))
    announce()
    (text,) = comments(api)
    assert newer.id in text
    assert "Too old" not in text


def test_a_discussion_that_its_owner_closed_is_left_alone(
    store: Store, hub: Hub, notebook: Notebook, announce: Announcer, sent: RunRequest, api: HfApi
) -> None:
    announce()
    (discussion,) = api.get_repo_discussions("demo/lora")
    api.change_discussion_status("demo/lora", discussion.num, "closed")
    api.create_tag("demo/lora", tag="v2")
    send(store, hub, notebook, sent.order.sha or "", "v2")
    announce()
    assert len(comments(api)) == 1


def test_somebody_elses_copy_of_our_mark_is_not_edited(
    store: Store, hub: Hub, notebook: Notebook, announce: Announcer, sent: RunRequest, api: HfApi, devhub: DevHub
) -> None:
    announce()
    api.create_tag("demo/lora", tag="v2")
    second = send(store, hub, notebook, sent.order.sha or "", "v2")
    stranger = HfApi(endpoint=devhub.url, token=devhub.create_token(devhub.create_user("stranger")))
    (discussion,) = api.get_repo_discussions("demo/lora")
    copy = f"Mine {mark_of(second)}"
    stranger.comment_discussion("demo/lora", discussion.num, copy)
    announce()
    assert copy in comments(api)
    assert len(comments(api)) == 3


def test_a_hub_that_says_no_is_a_warning_and_asked_once(
    store: Store, sent: RunRequest, devhub: DevHub, api: HfApi, clock: Clock
) -> None:
    notes: list[Event] = []
    token = devhub.create_token(
        devhub.create_user("bot"), "fine-grained", repos=["demo/other"], permissions=("discussion.write",)
    )
    announce = Announcer(store, Hub(endpoint=devhub.url, write_token=token, patience=()), notes.append)
    announce()
    clock.now += 100
    announce()
    assert [isinstance(note, Note) and "demo/lora was not told" in note.text for note in notes] == [True]
    assert comments(api) == []


def test_a_comment_that_the_owner_hid_is_left_alone(
    store: Store, hub: Hub, sent: RunRequest, api: HfApi, clock: Clock
) -> None:
    notes: list[Event] = []
    announce = Announcer(store, hub, notes.append)
    announce()
    (discussion,) = api.get_repo_discussions("demo/lora")
    (comment,) = api.get_discussion_details("demo/lora", discussion.num).events
    api.hide_discussion_comment("demo/lora", discussion.num, comment.id)
    ended(store, sent, PUBLISHED)
    for _ in range(3):
        announce()
        clock.now += 100
    assert len(notes) == 1
    assert len(comments(api)) == 1


def test_what_was_before_comments_were_asked_for_is_not_told(
    store: Store, announce: Announcer, sent: RunRequest, api: HfApi, clock: Clock
) -> None:
    clock.now += 8 * 86400
    announce()
    assert comments(api) == []


def request_with(**fate: str) -> RunRequest:
    order = Order(key="tag a/b v1 c", adapter="a/b", revision="v`1`", sha="c" * 40, origin="webhook")
    ending = Fate(status="failed", **fate)  # type: ignore[arg-type]
    return RunRequest(
        id="0", order=order, state="failed", created=0, due=0, fate=ending, reason=ending.reason, remedy=ending.remedy,
        run=Run(id="1", url=fate.get("url", "")),
    )  # fmt: skip


@pytest.mark.parametrize(
    "text", ["[click](https://evil.example)", "<img src=x>", "@everybody look", "# big\n# text", "`x`|*y*"]
)
def test_words_of_strangers_are_no_markup(text: str) -> None:
    shown = text_of(request_with(reason=text, remedy=text, verdict=text))
    assert text not in shown
    assert "\n# " not in shown
    assert " @everybody" not in shown


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "https://a.example/) [x](https://evil.example", "data:text/html,x", "https://a\nb"]
)
def test_an_address_that_is_none_is_no_link(url: str) -> None:
    assert url not in text_of(request_with(url=url))


def test_no_secret_is_told(store: Store, announce: Announcer, sent: RunRequest, api: HfApi) -> None:
    token = "hf_" + "a" * 34
    ended(store, sent, Fate(status="failed", reason=f"{token} is wrong.", remedy="Get another."))
    announce()
    (text,) = comments(api)
    assert token not in text


def test_a_token_that_may_not_comment_is_refused_at_the_start(devhub: DevHub) -> None:
    with pytest.raises(Usage, match="ADAPTER_MERGE_HUB_TOKEN is not set"):
        account_that_comments({}, lambda event: None)
    user = devhub.create_user("bot")
    for role, words in (("read", "can only read"), ("fine-grained", "lacks discussion.write")):
        more = {} if role == "read" else {"permissions": ("repo.content.read",), "repos": ["demo/*"]}
        token = devhub.create_token(user, role, **more)  # type: ignore[arg-type]
        with pytest.raises(Forbidden, match=words):
            account_that_comments({"ADAPTER_MERGE_HUB_TOKEN": token}, lambda event: None)


def test_whoever_calls_does_not_wait_and_nothing_is_done_twice_at_once() -> None:
    barrier, done = Barrier(2), []

    def do() -> None:
        barrier.wait(10)
        done.append(1)

    beside = Background(do)
    beside()
    beside()
    barrier.wait(10)
    assert beside.finish(10)
    assert done == [1]
