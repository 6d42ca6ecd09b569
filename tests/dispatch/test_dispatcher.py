"""The outbox is worked: each request is sent once, whatever fails, and followed to its end."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.devhub import DevHub
from bot.devhub.faults import Fault
from bot.dispatch.allow import Allowed
from bot.dispatch.backends import Busy, Unsure
from bot.dispatch.command import arguments
from bot.dispatch.dispatcher import FIRST, LONGEST, LOST, TRIES, Dispatcher
from bot.dispatch.records import Delivery, Fate, Order, Run, RunRequest, tag_key
from bot.dispatch.resolve import resolver
from bot.dispatch.store import LEASE, Store
from bot.errors import Outside, Refused
from bot.hub import Hub
from tests.dispatch.conftest import Notebook
from tests.dispatch.test_store import Clock

Adapters = Callable[..., str]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = Store(tmp_path / "bot.db", clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def dispatcher(store: Store, notebook: Notebook, hub: Hub) -> Dispatcher:
    return Dispatcher(store, notebook, resolver(hub, Allowed.of(["demo/*"])))


def deliver(store: Store, sha: str, tag: str = "v1", repo: str = "demo/a", name: str = "") -> None:
    order = Order(key=tag_key(repo, tag, sha), adapter=repo, revision=tag, sha=sha, origin="webhook")
    event = Delivery(id=name or f"{repo} {tag} {sha}", received=store.clock(), event="", repo=repo, verdict="")
    store.accept([(event, [order])])


def work(dispatcher: Dispatcher) -> None:
    while dispatcher.step():
        pass


def only(store: Store) -> RunRequest:
    (request,) = store.requests()
    return request


def test_nothing_is_sent_before_the_backend_could_be_asked_whether_it_takes_requests(
    store: Store, dispatcher: Dispatcher, notebook: Notebook, new_adapter: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.dispatch.dispatcher.IDLE", 0.01)
    deliver(store, new_adapter("demo/a", "v1"))
    answers: list[Exception | None] = [Outside("GitHub is away.", remedy="Wait.")] * 2 + [None]
    sent_before: list[int] = []
    stop = threading.Event()

    def check() -> None:
        sent_before.append(len(notebook.sent))
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setattr(notebook, "check", check)
    dispatcher.checked = False
    dispatcher.run(stop, threading.Event(), after=stop.set)
    assert (sent_before, notebook.sent) == ([0, 0, 0], ["demo/a@v1"])


def test_a_clock_that_was_days_ahead_when_it_was_sent_is_waited_for_once(
    store: Store, dispatcher: Dispatcher, notebook: Notebook, new_adapter: Adapters, clock: Clock
) -> None:
    sha = new_adapter("demo/a", "v1")
    clock.now += 3 * 86400
    deliver(store, sha)
    notebook.SHOWN_AFTER = 120.0
    notebook.fails = Unsure("The answer was lost.", remedy="Wait.")
    work(dispatcher)
    clock.now -= 3 * 86400  # set right
    notebook.fails = None
    steps = 0
    while dispatcher.step():
        steps += 1
        assert steps < 10
    assert notebook.sent == []
    clock.now += 121
    work(dispatcher)
    assert notebook.sent == ["demo/a@v1"]


@pytest.mark.parametrize("tag", ["v1,v2", "--json", "$(id)", "🎉", "v1;id"])
def test_a_tag_whose_name_no_run_takes_is_merged_by_its_commit(
    tag: str, store: Store, dispatcher: Dispatcher, notebook: Notebook, new_adapter: Adapters
) -> None:
    sha = new_adapter("demo/a", tag)
    deliver(store, sha, tag)
    work(dispatcher)
    (sent,) = notebook.runs.values()
    assert arguments(sent.order) == ["run", f"demo/a@{sha}", "--json"]
    assert sent.order.revision == tag


# --- the tag looked at again -------------------------------------------------------------------------------------------


def test_a_tag_is_sent_once_and_followed_to_its_end(
    store: Store, dispatcher: Dispatcher, notebook: Notebook, new_adapter: Adapters, clock: Clock
) -> None:
    deliver(store, new_adapter("demo/a", "v1"))
    work(dispatcher)
    assert notebook.sent == ["demo/a@v1"]
    assert only(store).fate == Fate(status="running")
    notebook.fates[only(store).id] = Fate(status="published", url="https://hub.example/demo/a-merged", exit_code=0)
    clock.now += dispatcher.follow_every + 1
    work(dispatcher)
    assert (only(store).state, only(store).fate.url) == ("done", "https://hub.example/demo/a-merged")  # type: ignore[union-attr]
    assert store.next_due() is None


def test_a_tag_that_moved_is_merged_where_it_is_now_and_once(
    store: Store, dispatcher: Dispatcher, notebook: Notebook, new_adapter: Adapters, api: HfApi
) -> None:
    old = new_adapter("demo/a", "v1")
    new = api.upload_file(path_or_fileobj=b"x", path_in_repo="note", repo_id="demo/a").oid
    api.delete_tag("demo/a", tag="v1")
    api.create_tag("demo/a", tag="v1", revision=new)
    deliver(store, old)
    work(dispatcher)
    deliver(store, new)
    deliver(store, old, name="a replay by hand")
    work(dispatcher)
    assert notebook.sent == ["demo/a@v1"]
    assert [request.order.sha for request in store.requests() if request.state == "sent"] == [new]


def test_a_tag_that_was_deleted_is_dropped_and_begins_anew_when_it_is_back(
    store: Store, dispatcher: Dispatcher, notebook: Notebook, new_adapter: Adapters, api: HfApi
) -> None:
    sha = new_adapter("demo/a", "v1")
    api.delete_tag("demo/a", tag="v1")
    deliver(store, sha)
    work(dispatcher)
    assert (only(store).state, notebook.sent) == ("dropped", [])
    assert "v1" in only(store).reason
    api.create_tag("demo/a", tag="v1")
    deliver(store, sha, name="made again")
    work(dispatcher)
    assert (only(store).state, notebook.sent) == ("sent", ["demo/a@v1"])


def test_a_repo_that_was_deleted_is_dropped(
    store: Store, dispatcher: Dispatcher, notebook: Notebook, new_adapter: Adapters, api: HfApi
) -> None:
    deliver(store, new_adapter("demo/a", "v1"))
    api.delete_repo("demo/a")
    work(dispatcher)
    assert (only(store).state, notebook.sent) == ("dropped", [])
    assert "demo/a" in only(store).reason


def test_a_repo_that_was_renamed_is_merged_under_its_name_of_today_and_once(
    store: Store, dispatcher: Dispatcher, notebook: Notebook, new_adapter: Adapters, api: HfApi
) -> None:
    sha = new_adapter("demo/a", "v1")
    deliver(store, sha)
    api.move_repo("demo/a", "demo/b")
    work(dispatcher)
    deliver(store, sha, repo="demo/b")
    work(dispatcher)
    assert notebook.sent == ["demo/b@v1"]


def test_a_repo_that_was_renamed_to_what_is_not_allowed_is_dropped(
    store: Store, notebook: Notebook, hub: Hub, new_adapter: Adapters, api: HfApi
) -> None:
    deliver(store, new_adapter("demo/a", "v1"))
    api.move_repo("demo/a", "demo/other")
    work(Dispatcher(store, notebook, resolver(hub, Allowed.of(["demo/a"]))))
    assert (only(store).state, notebook.sent) == ("dropped", [])
    assert "demo/other now, which is not on the list" in only(store).reason


def test_the_result_of_a_merge_starts_none(
    store: Store, dispatcher: Dispatcher, notebook: Notebook, new_adapter: Adapters, api: HfApi
) -> None:
    new_adapter("demo/a-merged")
    sha = api.upload_file(path_or_fileobj=b"{}", path_in_repo="verification.json", repo_id="demo/a-merged").oid
    api.create_tag("demo/a-merged", tag="v1")
    deliver(store, sha, repo="demo/a-merged")
    work(dispatcher)
    assert (only(store).state, notebook.sent) == ("dropped", [])
    assert only(store).reason == "demo/a-merged is the result of a merge."


def test_what_is_no_adapter_is_dropped(store: Store, dispatcher: Dispatcher, notebook: Notebook, api: HfApi) -> None:
    api.create_repo("demo/a")
    sha = api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="demo/a").oid
    api.create_tag("demo/a", tag="v1")
    deliver(store, sha)
    work(dispatcher)
    assert (only(store).state, notebook.sent) == ("dropped", [])
    assert "holds no adapter" in only(store).reason


# --- what fails ----------------------------------------------------------------------------------------------------------


def test_a_hub_that_is_down_is_tried_again_with_pauses_that_stand_in_the_row(
    store: Store, notebook: Notebook, hub: Hub, devhub: DevHub, new_adapter: Adapters, clock: Clock
) -> None:
    deliver(store, new_adapter("demo/a", "v1"))
    fault = devhub.faults.add(Fault(path="/api/models/demo/a", status=503, times=None))
    for attempt in range(TRIES - 1):
        # Each time a server that was started anew: nothing of the pauses is kept in memory.
        work(Dispatcher(store, notebook, resolver(hub, None)))
        request = only(store)
        assert (request.state, request.attempts) == ("waiting", attempt + 1)
        assert request.due == clock.now + min(LONGEST, FIRST * 2.0**attempt)
        assert request.reason
        assert request.remedy
        clock.now = request.due - 0.5
        assert not Dispatcher(store, notebook, resolver(hub, None)).step()
        clock.now = request.due
    work(Dispatcher(store, notebook, resolver(hub, None)))
    request = only(store)
    assert request.state == "failed"
    assert request.reason
    assert request.remedy
    devhub.faults.clear()
    assert fault.status == 503
    deliver(store, str(request.order.sha), name="the tag again")
    work(Dispatcher(store, notebook, resolver(hub, None)))
    assert notebook.sent == ["demo/a@v1"]


def test_a_hub_that_is_down_is_not_replaced_by_the_cache(
    store: Store, notebook: Notebook, hub: Hub, devhub: DevHub, new_adapter: Adapters
) -> None:
    sha = new_adapter("demo/a", "v1")
    hub.pin("demo/a", "v1")
    hub.download("demo/a", sha, ["adapter_config.json"])
    devhub.faults.add(Fault(path="/api/models/demo/a", status=503, times=None))
    assert hub.pin("demo/a", "v1").online is False  # the cache knows it
    deliver(store, sha)
    work(Dispatcher(store, notebook, resolver(hub, None)))
    assert (only(store).state, notebook.sent) == ("waiting", [])


def test_what_no_further_try_mends_fails_at_once(
    store: Store, dispatcher: Dispatcher, notebook: Notebook, new_adapter: Adapters
) -> None:
    deliver(store, new_adapter("demo/a", "v1"))
    notebook.fails = Refused("There is no such workflow.", remedy="Name another.")
    work(dispatcher)
    request = only(store)
    assert (request.state, request.reason, request.remedy) == ("failed", "There is no such workflow.", "Name another.")
    assert request.fate is not None
    assert request.fate.exit_code == 3


@pytest.mark.parametrize(("asked", "waited"), [(1.0, FIRST), (500.0, 500.0), (1e9, 2 * LONGEST)])
def test_a_backend_that_is_busy_is_left_alone_as_long_as_it_asks_within_reason(
    store: Store,
    dispatcher: Dispatcher,
    notebook: Notebook,
    new_adapter: Adapters,
    clock: Clock,
    asked: float,
    waited: float,
) -> None:
    deliver(store, new_adapter("demo/a", "v1"))
    notebook.fails = Busy("Too many requests.", remedy="Wait.", seconds=asked)
    work(dispatcher)
    assert only(store).due == clock.now + waited


class Deaf(Notebook):
    """Starts the run, or does not, and its answer is lost."""

    SHOWN_AFTER = 30.0
    LOOK_EVERY = 15.0
    starts = True
    asked = 0

    def send(self, request: RunRequest) -> Run:
        self.asked += 1
        if self.starts:
            super().send(request)
        raise Unsure("The answer was lost.", remedy="Wait.")


def test_a_run_whose_answer_was_lost_is_adopted(store: Store, hub: Hub, new_adapter: Adapters, clock: Clock) -> None:
    deaf = Deaf()
    dispatcher = Dispatcher(store, deaf, resolver(hub, None))
    deliver(store, new_adapter("demo/a", "v1"))
    work(dispatcher)
    assert only(store).state == "sending"
    clock.now += 31
    work(dispatcher)
    assert (only(store).state, deaf.sent) == ("sent", ["demo/a@v1"])


def test_a_run_that_a_killed_sender_may_have_started_is_waited_for_before_it_is_sent_again(
    store: Store, hub: Hub, new_adapter: Adapters, clock: Clock
) -> None:
    class Slow(Notebook):
        SHOWN_AFTER = 300.0
        LOOK_EVERY = 15.0

    slow = Slow()
    deliver(store, new_adapter("demo/a", "v1"))
    assert store.claim() is not None  # by a sender that is killed now
    clock.now += LEASE + 1
    work(Dispatcher(store, slow, resolver(hub, None)))
    assert (only(store).state, slow.sent) == ("sending", [])
    clock.now += 300
    work(Dispatcher(store, slow, resolver(hub, None)))
    assert (only(store).state, slow.sent) == ("sent", ["demo/a@v1"])


def test_a_run_that_never_shows_up_is_sent_again_only_when_it_cannot_any_more_and_given_up_in_the_end(
    store: Store, hub: Hub, new_adapter: Adapters, clock: Clock
) -> None:
    deaf = Deaf()
    deaf.starts = False
    dispatcher = Dispatcher(store, deaf, resolver(hub, None))
    deliver(store, new_adapter("demo/a", "v1"))
    work(dispatcher)
    clock.now += 29
    work(dispatcher)
    assert deaf.asked == 1
    for _ in range(100):
        clock.now += 31
        work(dispatcher)
    assert only(store).state == "failed"
    assert deaf.asked == TRIES + 1
    deaf.starts = True
    deaf.runs[only(store).id] = only(store)  # it shows up after all
    deliver(store, str(only(store).order.sha), name="again")
    work(dispatcher)
    assert only(store).state == "sent"
    assert deaf.asked == TRIES + 1


class Blind(Notebook):
    """Runs that cannot be looked at, as long as `away`."""

    away = True

    def look(self, request: RunRequest) -> Fate:
        if self.away:
            raise Outside("GitHub does not answer.", remedy="Wait.")
        return super().look(request)


def test_a_run_that_cannot_be_looked_at_is_given_up_late_and_a_success_between_counts(
    store: Store, hub: Hub, new_adapter: Adapters, clock: Clock
) -> None:
    blind = Blind()
    dispatcher = Dispatcher(store, blind, resolver(hub, None))
    deliver(store, new_adapter("demo/a", "v1"))

    def look(times: int) -> None:
        for _ in range(times):
            work(dispatcher)
            clock.now += 2 * LONGEST

    look(LOST - 1)
    assert only(store).attempts == LOST - 1
    blind.away = False
    look(2)
    assert (only(store).attempts, only(store).reason) == (0, "")
    for away in (True, False):  # and where the run stands as it stood
        blind.away = away
        look(3)
    assert (only(store).attempts, only(store).reason) == (0, "")
    blind.away = True
    look(LOST - 1)
    assert only(store).state == "sent"
    look(3)
    assert (only(store).state, only(store).reason) == ("failed", "GitHub does not answer.")
    assert blind.sent == ["demo/a@v1"]


def test_following_and_sending_take_turns(
    store: Store, dispatcher: Dispatcher, notebook: Notebook, new_adapter: Adapters, clock: Clock
) -> None:
    sha = new_adapter("demo/a", *(f"v{number}" for number in range(6)))
    for number in range(3):
        deliver(store, sha, tag=f"v{number}")
    work(dispatcher)
    for number in range(3, 6):
        deliver(store, sha, tag=f"v{number}")
    clock.now += 3600
    looked_at: list[str] = []
    notebook.look = lambda request: looked_at.append(request.id) or Fate(status="running")  # type: ignore[method-assign,func-returns-value]
    for _ in range(4):
        dispatcher.step()
    assert len(notebook.sent) == 5
    assert len(looked_at) == 2


# --- the loop ---------------------------------------------------------------------------------------------------------


class Loop:
    """`Dispatcher.run` in a thread."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.stop, self.wake = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=dispatcher.run, args=(self.stop, self.wake))
        self.thread.start()

    def end(self) -> None:
        self.stop.set()
        self.wake.set()
        self.thread.join(10)
        assert not self.thread.is_alive()


def wait_for(condition: Callable[[], bool], loop: Loop) -> None:
    for _ in range(500):
        if condition():
            return
        loop.wake.set()
        threading.Event().wait(0.02)
    raise AssertionError("it did not come to be")


def test_a_full_disk_does_not_end_the_dispatcher_and_sends_nothing_twice(
    tmp_path: Path, notebook: Notebook, hub: Hub, new_adapter: Adapters
) -> None:
    sha = new_adapter("demo/a", "v1")
    store = Store(tmp_path / "bot.db")
    deliver(store, sha)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen: list[RunRequest] = []

    class Filling(Notebook):
        def send(self, request: RunRequest) -> Run:
            run = super().send(request)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # full between the run's start and its record
            return run

        def find(self, request: RunRequest) -> Run | None:
            seen.append(request)
            return super().find(request)

    filling = Filling()
    notes: list[object] = []
    loop = Loop(Dispatcher(store, filling, resolver(hub, None), notes.append))
    try:
        wait_for(lambda: any("cannot be written" in str(note) for note in notes), loop)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store._rows.execute("UPDATE requests SET lease = 0")  # a minute later
        wait_for(lambda: only(store).state == "sent", loop)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        loop.end()
        store.close()
    assert len(seen) == 1
    assert not any("Traceback" in str(note) for note in notes)
    assert filling.sent == ["demo/a@v1"]


def test_a_fault_of_ours_does_not_end_the_dispatcher(
    store: Store, notebook: Notebook, hub: Hub, new_adapter: Adapters
) -> None:
    sha = new_adapter("demo/a", "v1", "v2")
    failed: list[Order] = []
    resolve = resolver(hub, None)

    def broken(order: Order) -> object:
        if order.revision == "v1":
            failed.append(order)
            raise KeyError("nobody thought of this")
        return resolve(order)

    notes: list[object] = []
    deliver(store, sha, "v1")
    loop = Loop(Dispatcher(store, notebook, broken, notes.append))  # type: ignore[arg-type]
    try:
        wait_for(lambda: bool(failed), loop)
        deliver(store, sha, "v2")
        wait_for(lambda: notebook.sent == ["demo/a@v2"], loop)
    finally:
        loop.end()
    assert any("nobody thought of this" in str(note) for note in notes)
