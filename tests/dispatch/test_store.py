"""The state file: nothing that was promised is lost, nothing is done twice, and what is wrong with the file is told."""

from __future__ import annotations

import resource
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bot.dispatch import store as module
from bot.dispatch.records import Delivery, Fate, Order, Run, RunRequest, tag_key
from bot.dispatch.store import FAR, LEASE, MIGRATIONS, Store
from bot.errors import MachineTooSmall, Outside, Usage

A, B = "a" * 40, "b" * 40


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def delivery(name: str) -> Delivery:
    return Delivery(
        id=name, received=1_800_000_000.0, event="update repo.content", repo="alice/x", verdict="accepted: v1"
    )


def order(tag: str = "v1", sha: str = A) -> Order:
    return Order(key=tag_key("alice/x", tag, sha), adapter="alice/x", revision=tag, sha=sha, origin="webhook")


def accept(store: Store, name: str, *orders: Order) -> tuple[bool, int]:
    """(whether it was new, how many requests it made)."""
    (accepted,) = store.accept([(delivery(name), orders)])
    return accepted.new, len(accepted.requests)


def sending(store: Store) -> RunRequest:
    request = store.claim()
    assert request is not None
    return request


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "bot.db"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[Store]:
    opened = Store(path, clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def second(path: Path, clock: Clock, store: Store) -> Iterator[Store]:
    """Another process's, as far as SQLite can tell."""
    opened = Store(path, clock=clock)
    yield opened
    opened.close()


def test_what_changes_after_the_clock_was_set_back_is_told_too(store: Store, clock: Clock) -> None:
    clock.now += 86_400
    accept(store, "one", order())
    first = store.claim_telling()
    assert first is not None
    store.announce(first, "1/c1", "digest")
    assert store.claim_telling() is None
    clock.now -= 86_000
    store.sent(sending(store), "local", Run(id="r"))
    changed = store.claim_telling()
    assert changed is not None
    assert changed.state == "sent"


# --- once ----------------------------------------------------------------------------------------------------------


def test_a_replay_is_known_by_its_id(store: Store) -> None:
    assert accept(store, "one", order()) == (True, 1)
    assert accept(store, "one", order("v2")) == (False, 0)
    assert len(store.deliveries()) == len(store.requests()) == 1


def test_a_tag_at_one_commit_is_requested_once_whoever_tells_of_it(store: Store) -> None:
    assert accept(store, "one", order()) == (True, 1)
    assert accept(store, "two", order()) == (True, 0)
    assert store.add(order()) is None
    assert accept(store, "three", order(sha=B)) == (True, 1)


def test_a_batch_is_one_transaction(store: Store) -> None:
    class Broken(RuntimeError): ...

    def batch() -> Iterator[tuple[Delivery, tuple[Order]]]:
        yield delivery("one"), (order(),)
        raise Broken

    with pytest.raises(Broken):
        store.accept(batch())  # type: ignore[arg-type]
    assert not store.requests()
    assert not store.deliveries()


def test_two_who_claim_never_get_the_same_request(store: Store, second: Store) -> None:
    for number in range(200):
        accept(store, f"{number}", order(f"v{number}"))
    claimed: list[str] = []

    def claim(from_: Store) -> None:
        while request := from_.claim():
            claimed.append(request.id)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(claim, [store, second, store, second]))
    assert len(claimed) == len(set(claimed)) == 200


def test_what_another_backend_has_is_left_alone(store: Store) -> None:
    accept(store, "one", order())
    request = store.claim(backend="github")
    assert request is not None
    assert request.backend == "github"
    store.sent(request, "github", Run(id="7"))
    assert store.claim_followed(15.0, backend="local") is None
    assert store.next_due("local") is None
    assert store.claim_followed(15.0, backend="github") is not None


# --- leases and clocks -----------------------------------------------------------------------------------------------


def test_a_request_is_taken_over_when_its_sender_was_not_heard_of(store: Store, second: Store, clock: Clock) -> None:
    accept(store, "one", order())
    first = sending(store)
    clock.now += LEASE - 1
    assert second.claim() is None
    assert second.claim_stranded() is None
    assert store.renew(first.id)
    clock.now += LEASE - 1
    assert second.claim_stranded() is None
    clock.now += 2
    taken = second.claim_stranded()
    assert taken is not None
    assert taken.id == first.id
    assert taken.begun == first.begun
    assert not store.renew(first.id)


def test_whoever_lost_a_request_can_change_it_no_more(store: Store, second: Store, clock: Clock) -> None:
    accept(store, "one", order())
    lost = sending(store)
    clock.now += LEASE + 1
    assert second.claim_stranded() is not None
    store.sent(lost, "local", Run(id="1"))
    store.fail(lost, Outside("x", remedy="y"))
    store.drop(lost, "z")
    store.wait(lost, Outside("x", remedy="y"), 1.0)
    now = store.request(lost.id)
    assert now is not None
    assert now.state == "sending"
    assert now.run is None


def test_a_clock_that_was_years_ahead_delays_nothing(store: Store, clock: Clock) -> None:
    accept(store, "one", order("v1"))
    accept(store, "two", order("v2"))
    accept(store, "three", order("v3"))
    clock.now += 10 * 365 * 86400
    sending(store)
    store.wait(sending(store), Outside("x", remedy="y"), 3600.0)
    followed = sending(store)
    store.sent(followed, "local", Run(id="1"))
    clock.now -= 10 * 365 * 86400
    assert store.claim_stranded() is not None
    assert store.claim() is not None
    assert store.claim_followed(15.0) is not None


def test_a_clock_that_jumps_back_an_hour_delays_no_more_than_an_hour(store: Store, clock: Clock) -> None:
    accept(store, "one", order())
    sending(store)
    clock.now -= 3600
    assert store.claim_stranded() is None
    clock.now += 3600 + LEASE + 1
    assert store.claim_stranded() is not None
    assert module.FAR == FAR > 2 * 3600


def test_a_clock_that_jumps_ahead_sends_nothing_twice(store: Store, second: Store, clock: Clock) -> None:
    accept(store, "one", order())
    request = sending(store)
    clock.now += 5 * 365 * 86400
    taken = second.claim_stranded()
    assert taken is not None
    assert taken.id == request.id
    assert store.claim() is None


# --- a tag that moves ------------------------------------------------------------------------------------------------


def test_a_tag_that_moved_takes_the_key_of_what_it_means_now(store: Store) -> None:
    accept(store, "one", order(sha=A))
    fresh = store.resolved(sending(store), "alice/x", B)
    assert fresh is not None
    assert fresh.order.sha == B
    assert accept(store, "two", order(sha=B)) == (True, 0)  # the delivery that tells of the move
    assert accept(store, "three", order(sha=A)) == (True, 1)  # and back again


def test_a_tag_that_moved_to_what_another_request_merges_is_dropped(store: Store) -> None:
    accept(store, "one", order(sha=A))
    moved = sending(store)
    accept(store, "two", order(sha=B))
    assert store.resolved(moved, "alice/x", B) is None
    dropped = store.request(moved.id)
    assert dropped is not None
    assert dropped.state == "dropped"
    assert "merges the same commit" in dropped.reason
    assert sending(store).order.sha == B


def test_a_dropped_request_begins_anew_when_its_tag_is_made_again(store: Store) -> None:
    accept(store, "one", order())
    store.drop(sending(store), "The tag is gone.")
    assert accept(store, "one", order()) == (False, 0)  # a replay is no news
    assert accept(store, "two", order()) == (True, 1)
    assert sending(store).reason == ""


def test_a_tag_made_again_while_it_is_being_looked_at_is_not_lost(store: Store) -> None:
    accept(store, "one", order())
    request = sending(store)  # its sender is told that the tag is gone
    assert accept(store, "two", order()) == (True, 0)  # it is back
    store.drop(request, "The tag is gone.")
    again = sending(store)
    assert again.id == request.id
    assert again.reason == ""
    store.drop(again, "The tag is gone.")
    assert store.claim() is None  # heard of once, looked at once more


def test_a_tag_moved_back_while_it_is_being_looked_at_is_looked_at_again(store: Store) -> None:
    accept(store, "one", order(sha=A))
    request = sending(store)  # its sender is told B
    accept(store, "two", order(sha=A))  # it is A again
    assert store.resolved(request, "alice/x", B) is None
    assert sending(store).order.sha == A


def test_a_renamed_repo_keeps_its_request(store: Store) -> None:
    accept(store, "one", order())
    fresh = store.resolved(sending(store), "alice/new-name", A)
    assert fresh is not None
    assert fresh.order.adapter == "alice/new-name"
    assert fresh.order.key == tag_key("alice/new-name", "v1", A)


# --- ends --------------------------------------------------------------------------------------------------------------


def test_what_was_given_up_for_sure_begins_anew_under_another_id(store: Store) -> None:
    accept(store, "one", order())
    request = sending(store)
    store.fail(request, Outside("No.", remedy="Do."))
    accept(store, "two", order())
    again = sending(store)
    assert again.id != request.id
    assert again.attempts == 0
    assert again.fate is None


@pytest.mark.parametrize("runs", [False, True])
def test_what_may_run_all_the_same_is_looked_for_under_its_id(store: Store, runs: bool) -> None:
    accept(store, "one", order())
    request = sending(store)
    if runs:
        store.sent(request, "github", Run(id="7"))
        request = store.request(request.id) or request
    store.fail(request, Outside("Nobody answers.", remedy="Wait."), unsure=True)
    assert accept(store, "two", order()) == (True, 1)
    assert store.claim() is None
    again = store.claim_followed(15.0) if runs else store.claim_stranded()
    assert again is not None
    assert again.id == request.id
    assert again.fate is None
    assert again.begun == request.begun


def test_a_failed_request_is_settled_by_a_later_one_that_merged_the_same_commit(store: Store) -> None:
    accept(store, "w1", order("v1"))
    accept(store, "w2", order("v2"))
    for _ in range(2):
        store.fail(sending(store), Outside("No.", remedy="Later."))
    by_hand = store.add(Order(key="hand 1", adapter="Alice/x", revision="v1", sha=A, origin="hand"))
    assert by_hand is not None
    taken = sending(store)
    store.sent(taken, "local", Run(id="1"))
    sent = store.request(taken.id)
    assert sent is not None
    store.follow(sent, Fate(status="running"))
    assert store.counts()["failed"] == 2
    store.follow(sent, Fate(status="published"))
    assert store.counts() == {"done": 1, "dropped": 1, "failed": 1, "deliveries": 2}
    dropped = store.by_key(tag_key("alice/x", "v1", A))
    assert dropped is not None
    assert dropped.reason == f"RunRequest {taken.id} merged it."


def test_a_request_that_ended_is_not_begun_again(store: Store) -> None:
    accept(store, "one", order())
    store.sent(sending(store), "local", Run(id="1"))
    followed = store.claim_followed(15.0)
    assert followed is not None
    store.follow(followed, Fate(status="refused", reason="r", remedy="d", exit_code=3))
    assert accept(store, "two", order()) == (True, 0)
    done = store.request(followed.id)
    assert done is not None
    assert done.state == "done"
    assert (done.reason, done.remedy) == ("r", "d")


def test_deliveries_are_forgotten_after_ninety_days_and_requests_are_not(store: Store, clock: Clock) -> None:
    accept(store, "one", order())
    clock.now += 91 * 86400
    accept(store, "later")
    assert [kept.id for kept in store.deliveries()] == []  # both are dated by the test's own time
    assert len(store.requests()) == 1


# --- the file ----------------------------------------------------------------------------------------------------------


def test_it_is_written_through_to_the_disk(store: Store, path: Path) -> None:
    with sqlite3.connect(path) as rows:
        assert rows.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert store._rows.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_a_file_of_the_first_version_is_brought_up_to_date(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIGRATIONS", MIGRATIONS[:1])
    old = Store(path)
    old._rows.execute(
        "INSERT INTO requests (id, key, kind, adapter, revision, sha, origin, options, state, created, due, changed) "
        f"VALUES ('x', '{order().key}', 'merge', 'alice/x', 'v1', '{A}', 'webhook', '[]', 'waiting', 1, 1, 1)"
    )
    old.close()
    monkeypatch.undo()
    new = Store(path)
    assert sending(new).id == "x"
    new.close()


def test_a_file_of_a_newer_version_is_left_alone(store: Store, path: Path) -> None:
    store._rows.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = path.read_bytes()
    with pytest.raises(Usage, match="newer version") as raised:
        Store(path)
    assert "--state" in raised.value.remedy
    assert path.read_bytes() == before


def test_a_look_at_its_health_leaves_the_version_that_a_newer_program_wrote(store: Store) -> None:
    store._rows.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    store.check()
    assert store._rows.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS) + 1


@pytest.mark.parametrize(
    "held",
    [b"a text that is no database, and long enough to be looked at" * 20, b"SQLite format 3\x00" + b"\xff" * 4096],
)
def test_what_is_no_database_is_left_alone(tmp_path: Path, held: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(held)
    with pytest.raises(Usage, match="is not a state file"):
        Store(path)
    assert path.read_bytes() == held


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as rows:
        rows.execute("CREATE TABLE deliveries (parcel TEXT)")
    with pytest.raises(Usage, match="is not a state file"):
        Store(path)
    with sqlite3.connect(path) as rows:
        assert [row[0] for row in rows.execute("SELECT name FROM sqlite_master")] == ["deliveries"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineTooSmall, match="cannot be written"):
        Store(tmp_path / "file" / "bot.db")
    with pytest.raises(MachineTooSmall, match="cannot be written"):
        Store(tmp_path)  # a folder


def test_a_disk_that_fills_up_loses_nothing_and_is_written_again_when_there_is_room(store: Store) -> None:
    """The limit on a file's size stands for the disk: the system refuses the write in the same way."""
    store.accept([(delivery(f"{number}"), (order(f"v{number}"),)) for number in range(50)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, hard))
    try:
        with pytest.raises(MachineTooSmall, match="cannot be written") as raised:
            store.accept([(delivery(f"more {number}"), (order(f"w{number}"),)) for number in range(500)])
        with pytest.raises(MachineTooSmall):
            store.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "space" in raised.value.remedy
    assert store.counts() == {"waiting": 50, "deliveries": 50}
    store.check()
    assert accept(store, "more 1", order("w1")) == (True, 1)


def test_a_file_that_may_only_be_read_is_told(store: Store, path: Path, tmp_path: Path) -> None:
    accept(store, "one", order())
    store._rows.execute("PRAGMA query_only = 1")  # root may write any file, so that no mode would do
    with pytest.raises(MachineTooSmall, match="cannot be written: attempt to write a readonly database"):
        accept(store, "two", order("v2"))


def test_two_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bot.db"
    code = """
        import sys
        from pathlib import Path
        from bot.dispatch.records import Delivery, Order, tag_key
        from bot.dispatch.store import Store
        store, me = Store(Path(sys.argv[1])), sys.argv[2]
        for number in range(100):
            order = Order(key=tag_key("a/b", f"v{number}", "c"), adapter="a/b", revision=f"v{number}", sha="c", origin="webhook")
            delivery = Delivery(id=f"{me} {number}", received=store.clock(), event="", repo="", verdict="")
            store.accept([(delivery, [order])])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    both = [subprocess.Popen([*command, name]) for name in ("first", "second")]
    assert [process.wait(60) for process in both] == [0, 0]
    store = Store(path)
    assert store.counts() == {"waiting": 100, "deliveries": 200}
    store.close()


def test_a_power_cut_leaves_what_was_accepted(store: Store, path: Path, tmp_path: Path) -> None:
    """What lies on the disk at any moment, write-ahead log included, holds every answered delivery."""
    accept(store, "one", order())
    copy = Path(shutil.copytree(path.parent, tmp_path / "after the cut"))
    (copy / "bot.db-shm").unlink()  # memory, that no power cut leaves
    after = Store(copy / "bot.db")
    assert after.counts() == {"waiting": 1, "deliveries": 1}
    after.close()
