"""Merges on GitHub Actions: started once, found again, and followed to their end. The real PyGithub, against the fake GitHub."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bot.devhub import DevHub
from bot.dispatch.backend_choice import BackendOptions, Surroundings, backend_of
from bot.dispatch.backends import Busy, Unsure, github
from bot.dispatch.backends.github import GitHubBackend
from bot.dispatch.dispatcher import TRIES, Dispatcher
from bot.dispatch.records import Fate, Order, Run, RunRequest, tag_key
from bot.dispatch.resolve import Resolved
from bot.dispatch.store import LEASE, Store
from bot.errors import Forbidden, NotFound, Outside, Refused, Usage
from bot.gh.workflows import Workflows
from bot.hub import Hub
from tests.gh.actions import FakeRun, packed
from tests.gh.fake import TOKEN, FakeGitHub

HUB = "https://hub.test"
SHA = "a" * 40
EVENTS = ("workflow_dispatch", "repository_dispatch")
each_event = pytest.mark.parametrize("event", EVENTS)


@pytest.fixture
def fake() -> Iterator[FakeGitHub]:
    with FakeGitHub() as served:
        yield served
        assert served.violations == []


@pytest.fixture(autouse=True)
def _short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(github, "LOOKS", (0.01, 0.2))


@pytest.fixture
def make(fake: FakeGitHub) -> Iterator[Callable[..., GitHubBackend]]:
    opened = []

    def backend(
        event: Any = "workflow_dispatch", *, token: str = TOKEN, workflow: str = "merge.yml", ref: str | None = None
    ) -> GitHubBackend:
        workflows = Workflows(token=token, repo="octo/adapters", api_url=fake.url)
        opened.append(workflows)
        return GitHubBackend(workflows, workflow=workflow, ref=ref, event=event, hub=HUB)

    yield backend
    for workflows in opened:
        workflows.close()


class Clock:
    """Seconds since the epoch, and more on request."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = Store(tmp_path / "bot.db", clock=clock)
    yield opened
    opened.close()


def order(number: int = 0, *options: tuple[str, str], kind: Any = "merge") -> Order:
    adapter = f"acme/lora-{number}"
    return Order(
        key=tag_key(adapter, "v1", SHA),
        kind=kind,
        adapter=adapter,
        revision="v1",
        sha=SHA,
        origin="webhook",
        options=options,
    )


def as_it_is(asked: Order) -> Resolved:
    return Resolved(adapter=asked.adapter, sha=SHA)


def a_request(*options: tuple[str, str], kind: Any = "merge", run: FakeRun | None = None) -> RunRequest:
    now = time.time()
    return RunRequest(
        id="0123456789abcdef", order=order(0, *options, kind=kind), state="sending", created=now, due=now, begun=now,
        run=Run(id=str(run.id)) if run else None,
    )  # fmt: skip


def finished(fake: FakeGitHub, backend: GitHubBackend, outcome: dict[str, str] | None, **end: Any) -> Fate:
    """The fate of a run that was sent and came to this end."""
    request = a_request()
    backend.send(request)
    (run,) = fake.actions.runs
    fake.actions.finish(run, outcome, **end)
    return backend.look(a_request(run=run))


# --- sent -----------------------------------------------------------------------------------------------------------


@each_event
def test_a_merge_is_started_with_its_adapter_its_options_and_the_requests_id(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], event: str
) -> None:
    backend = make(event)
    backend.check()
    run = backend.send(a_request(("dtype", "float16")))
    (started,) = fake.actions.runs
    assert run == Run(id=str(started.id), url=f"https://github.com/octo/adapters/actions/runs/{started.id}")
    assert started.title == "merge acme/lora-0 v1 0123456789abcdef"
    assert started.event == event
    if event == "workflow_dispatch":
        assert started.inputs == {
            "adapter": "acme/lora-0", "adapter-revision": "v1", "request-id": "0123456789abcdef", "dtype": "float16",
        }  # fmt: skip
    else:
        assert started.inputs["options"] == {"dtype": "float16"}
        assert len(started.inputs) <= 10, "GitHub takes no more"


@pytest.mark.parametrize("details", ["none", "unknown"])
def test_a_server_that_names_no_run_is_asked_for_it_by_its_name(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], details: str
) -> None:
    fake.actions.details = details
    assert make().send(a_request()).id == str(fake.actions.runs[0].id)
    assert len(fake.actions.runs) == 1


def test_a_run_that_is_not_shown_yet_may_have_been_started(
    fake: FakeGitHub, make: Callable[..., GitHubBackend]
) -> None:
    fake.actions.details, fake.actions.hidden = "none", 0.6
    with pytest.raises(Unsure, match="does not show its run yet"):
        make().send(a_request())
    time.sleep(0.6)
    shown = make().find(a_request())
    assert shown
    assert shown.id == str(fake.actions.runs[0].id)


@each_event
def test_an_answer_that_is_lost_is_no_failure(fake: FakeGitHub, make: Callable[..., GitHubBackend], event: str) -> None:
    fake.actions.dropped = 1
    with pytest.raises(Unsure, match="answer was lost"):
        make(event).send(a_request())
    assert make(event).find(a_request())
    assert len(fake.actions.runs) == 1


def test_an_answer_that_does_not_come_in_time_is_no_failure(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.gh.workflows.SECONDS", 1)
    fake.actions.slow = 1.5
    with pytest.raises(Unsure, match="answer was lost"):
        make().send(a_request())


def test_a_github_that_is_down_has_started_nothing(fake: FakeGitHub) -> None:
    workflows = Workflows(token=TOKEN, repo="octo/adapters", api_url="http://127.0.0.1:9")
    backend = GitHubBackend(workflows, workflow="merge.yml", ref=None, event="workflow_dispatch", hub=HUB)
    with pytest.raises(Outside, match="cannot be reached") as raised:
        backend.send(a_request())
    assert not isinstance(raised.value, Unsure | Busy)


def test_a_fault_of_the_server_leaves_open_whether_it_was_started(
    fake: FakeGitHub, make: Callable[..., GitHubBackend]
) -> None:
    fake.actions.refused.append(("POST", "/actions/workflows/merge.yml/dispatches", 502, {}, "Bad Gateway"))
    with pytest.raises(Unsure, match="answered 502"):
        make().send(a_request())


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [0, -9000, 86400 * 365])
@pytest.mark.parametrize("status", [403, 429])
def test_a_primary_limit_is_waited_for_by_githubs_own_clock(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], status: int, skew: int
) -> None:
    fake.skew = skew
    reset = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(time.time() + skew) + 1800)}
    refused = (
        "POST",
        "/actions/workflows/merge.yml/dispatches",
        status,
        reset,
        "API rate limit exceeded for user ID 1.",
    )
    fake.actions.refused.append(refused)
    with pytest.raises(Busy) as raised:
        make().send(a_request())
    assert 1790 < raised.value.seconds < 1810


def test_a_secondary_limit_says_for_how_long(fake: FakeGitHub, make: Callable[..., GitHubBackend]) -> None:
    words = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
    fake.actions.refused.append(("POST", "/actions/workflows/merge.yml/dispatches", 403, {"retry-after": "77"}, words))
    with pytest.raises(Busy) as raised:
        make().send(a_request())
    assert raised.value.seconds == 77
    fake.actions.refused.append(("GET", "/actions/workflows/merge.yml/runs", 403, {}, words))
    with pytest.raises(Busy) as raised:
        make().find(a_request())
    assert raised.value.seconds == 60


def test_the_dispatcher_comes_back_when_github_asks_it_to(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], store: Store, clock: Clock
) -> None:
    fake.actions.refused.append(
        ("POST", "/actions/workflows/merge.yml/dispatches", 429, {"retry-after": "500"}, "Too many")
    )
    request = store.add(order())
    assert request
    dispatcher = Dispatcher(store, make(), as_it_is)
    assert dispatcher.step()
    waiting = store.request(request.id)
    assert waiting
    assert waiting.state == "waiting"
    assert 490 < waiting.due - clock() <= 500
    assert not dispatcher.step()
    clock.ahead = 501
    assert dispatcher.step()
    assert len(fake.actions.runs) == 1


@pytest.mark.parametrize("skew", [-86400 * 400, 3600, 86400 * 400])
def test_a_run_is_found_though_a_clock_is_wrong(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], skew: int
) -> None:
    fake.skew, fake.actions.dropped = skew, 1
    with pytest.raises(Unsure):
        make().send(a_request())
    assert make().find(a_request())


# --- sent once ------------------------------------------------------------------------------------------------------


@each_event
def test_a_run_whose_start_was_not_written_down_is_taken_over(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], store: Store, clock: Clock, event: str
) -> None:
    store.add(order())
    claimed = store.claim()
    assert claimed
    make(event).send(claimed)  # and here the server is killed
    clock.ahead = LEASE + 1
    assert Dispatcher(store, make(event), as_it_is).step()
    adopted = store.request(claimed.id)
    assert adopted
    assert adopted.state == "sent"
    assert adopted.run
    assert adopted.run.id == str(fake.actions.runs[0].id)
    assert len(fake.actions.runs) == 1


@each_event
def test_a_request_that_never_left_is_sent_when_no_run_can_show_up_any_more(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], store: Store, clock: Clock, event: str
) -> None:
    store.add(order())
    claimed = store.claim()  # and here the server is killed
    assert claimed
    dispatcher = Dispatcher(store, make(event), as_it_is)
    clock.ahead = LEASE + 1
    assert dispatcher.step()
    assert not fake.actions.runs, "it may still show up"
    clock.ahead = GitHubBackend.SHOWN_AFTER + LEASE + 1
    assert dispatcher.step()
    assert len(fake.actions.runs) == 1


def test_an_event_that_nobody_hears_is_given_up(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], store: Store, clock: Clock
) -> None:
    backend = make("repository_dispatch")
    fake.actions.texts["main"] = fake.actions.texts["main"].replace("types: [adapter-tag]", "types: [another]")
    request = store.add(order())
    assert request
    dispatcher = Dispatcher(store, backend, as_it_is)
    for _ in range(3 * TRIES):
        dispatcher.step()
        clock.ahead += 4000
    ended = store.request(request.id)
    assert ended
    assert ended.state == "failed"
    assert "does not show its run" in ended.reason


WORKER = """
import sys
from pathlib import Path
from threading import Event
import bot.dispatch.dispatcher as dispatcher, bot.dispatch.store as stores
from bot.dispatch.backends import github
from bot.dispatch.resolve import Resolved
from bot.gh.workflows import Workflows

url, path, event = sys.argv[1:]
stores.LEASE = dispatcher.LEASE = 0.4
dispatcher.IDLE = 0.02
github.LOOKS = (0.02, 0.1)
github.GitHubBackend.SHOWN_AFTER = 5  # more than the fake hides a run for and one call takes, on a busy machine too
workflows = Workflows(token="ghs_aTokenForTests0123456789", repo="octo/adapters", api_url=url)
backend = github.GitHubBackend(workflows, workflow="merge.yml", ref=None, event=event, hub="https://hub.test")
work = dispatcher.Dispatcher(stores.Store(Path(path)), backend, lambda order: Resolved(adapter=order.adapter, sha=order.sha))
print("works", flush=True)
work.run(Event(), Event())
"""


@pytest.mark.slow
@each_event
def test_each_merge_is_started_once_whenever_the_server_is_killed(fake: FakeGitHub, tmp_path: Path, event: str) -> None:
    fake.actions.hidden, fake.actions.slow = 0.9, 0.05
    path, chance = tmp_path / "bot.db", random.Random(14)
    store = Store(path)
    wanted = 12
    for number in range(wanted):
        store.add(order(number))
    kills = 0
    until = time.monotonic() + 240
    while any(request.state in ("waiting", "sending") for request in store.requests()):
        assert time.monotonic() < until
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, fake.url, str(path), event], env=os.environ, stdout=subprocess.PIPE
        )
        assert worker.stdout is not None
        worker.stdout.readline()
        fake.actions.dropped = chance.randrange(2)
        time.sleep(chance.uniform(0.02, 0.5) if kills < 8 else 9)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        kills += 1
    store.close()
    assert kills >= 5
    titles = [run.title for run in fake.actions.runs]
    assert len(titles) == len(set(titles)) == wanted


# --- how it ends ----------------------------------------------------------------------------------------------------


def test_a_run_is_queued_then_running_then_published(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], store: Store
) -> None:
    request = store.add(order())
    assert request
    dispatcher = Dispatcher(store, make(), as_it_is)
    dispatcher.follow_every = 0.0
    seen = []
    for status in ("queued", "in_progress"):
        dispatcher.step()
        dispatcher.step()
        fake.actions.runs[0].status = status
        dispatcher.step()
        now = store.request(request.id)
        assert now
        assert now.fate
        seen.append(now.fate.status)
    assert seen == ["queued", "running"]
    link = f"{HUB}/acme/x/discussions/3"
    fake.actions.finish(
        fake.actions.runs[0], {"status": "published", "verified": "true", "repo": "acme/x", "pr-url": link}
    )
    dispatcher.step()
    done = store.request(request.id)
    assert done
    assert done.state == "done"
    assert done.fate == Fate(status="published", url=link, verdict="verified", exit_code=0)


@pytest.mark.parametrize(
    ("outcome", "fate"),
    [
        ({"status": "unchanged", "verified": "true", "repo": "acme/x", "revision": SHA},
         Fate(status="unchanged", url=f"{HUB}/acme/x/tree/{SHA}", verdict="verified", exit_code=0)),
        ({"status": "dry-run", "verified": "true"}, Fate(status="dry-run", verdict="verified", exit_code=0)),
        ({"status": "published", "repo": "acme/x", "pr-url": "https://evil.test/a/b/discussions/1"},
         Fate(status="published", url=f"{HUB}/acme/x", exit_code=0)),
        ({"status": "published", "repo": '"><script>', "pr-url": "javascript:alert(1)"}, Fate(status="published", exit_code=0)),
    ],
)  # fmt: skip
def test_a_run_that_ended_well_says_what_it_published(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], outcome: dict[str, str], fate: Fate
) -> None:
    assert finished(fake, make(), outcome) == fate


@pytest.mark.parametrize(("status", "code"), [("refused", 3), ("not-verified", 4), ("failed", 5)])
def test_a_run_that_failed_says_why(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], status: str, code: int
) -> None:
    log = "##[group]Run\n##[error]The adapter's rank is 0. Train it again.\n##[error]Process completed with exit code 3.\nbye"
    fate = finished(fake, make(), {"status": status, "verified": "false"}, conclusion="failure", log=log)
    assert fate.status == status
    assert fate.exit_code == code
    assert fate.reason == "The adapter's rank is 0. Train it again."


@pytest.mark.parametrize(
    ("conclusion", "reason"),
    [
        ("failure", "The run failed."), ("cancelled", "The run was cancelled on GitHub."),
        ("timed_out", "The run took longer than its time limit."),
        ("skipped", "GitHub skipped the run's job."), ("startup_failure", "GitHub could not start the run."),
    ],
)  # fmt: skip
def test_a_run_without_an_outcome_ends_by_githubs_conclusion(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], conclusion: str, reason: str
) -> None:
    fate = finished(fake, make(), None, conclusion=conclusion)
    assert (fate.status, fate.exit_code, fate.reason) == ("failed", 5, reason)


@pytest.mark.parametrize(
    "content",
    [b"no zip", packed({"other.json": b"{}"}), packed({"outcome.json": b"[]"}), packed({"outcome.json": b'{"status": "great"}'}),
     packed({"outcome.json": b"0" * (2 << 20)}), packed({"outcome.json": b"x"})[:40]],
    ids=["no zip", "another file", "a list", "an unknown word", "too much", "cut"],
)  # fmt: skip
def test_an_outcome_that_is_none_is_not_believed(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], content: bytes
) -> None:
    backend, request = make(), a_request()
    backend.send(request)
    (run,) = fake.actions.runs
    fake.actions.finish(run, conclusion="failure")
    run.artifacts[f"adapter-merge-outcome-{request.id}"] = content
    assert backend.look(a_request(run=run)).status == "failed"


def test_the_end_of_the_log_is_shown_without_githubs_stamps(
    fake: FakeGitHub, make: Callable[..., GitHubBackend]
) -> None:
    backend = make()
    backend.send(a_request())
    (run,) = fake.actions.runs
    assert backend.log(a_request(run=run), 2) == [], "not while it runs"
    fake.actions.finish(run, log="a\nb\nc")
    assert backend.log(a_request(run=run), 2) == ["b", "c"]
    run.log_lasts = False
    assert backend.log(a_request(run=run), 2) == []


# --- what cannot be -------------------------------------------------------------------------------------------------


def changed(fake: FakeGitHub, old: str, new: str) -> None:
    assert old in fake.actions.texts["main"]
    fake.actions.texts["main"] = fake.actions.texts["main"].replace(old, new)


def test_a_workflow_that_does_not_exist_is_named(make: Callable[..., GitHubBackend]) -> None:
    with pytest.raises(NotFound, match=r"octo/adapters has no workflow merged.yml"):
        make(workflow="merged.yml").check()


def test_a_workflow_that_lacks_the_event_is_named_before_and_when_it_is_sent(
    fake: FakeGitHub, make: Callable[..., GitHubBackend]
) -> None:
    fake.actions.texts["main"] = "on: push\nrun-name: ${{ inputs.request-id }}\njobs: {}\n"
    for event in EVENTS:
        with pytest.raises(Usage, match=f"has no {event} at main"):
            make(event).check()
    with pytest.raises(Refused, match="does not have 'workflow_dispatch' trigger") as raised:
        make().send(a_request())
    assert "workflow_dispatch" in raised.value.remedy


def test_a_workflow_that_does_not_know_an_input_is_named_before_and_when_it_is_sent(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], store: Store
) -> None:
    with pytest.raises(Refused, match="Unexpected inputs provided"):
        make().send(a_request(("density", "0.5")))
    fake.actions.texts["main"] = fake.actions.texts["main"].replace("      request-id:\n", "      request:\n")
    with pytest.raises(Usage, match="does not know the input request-id"):
        make().check()
    request = store.add(order())
    assert request
    Dispatcher(store, make(), as_it_is).step()
    ended = store.request(request.id)
    assert ended
    assert ended.state == "failed"
    assert ended.remedy.startswith("Add these inputs")


def test_a_workflow_that_hears_other_events_is_named(fake: FakeGitHub, make: Callable[..., GitHubBackend]) -> None:
    changed(fake, "types: [adapter-tag]", "types: [another]")
    with pytest.raises(Usage, match="does not run on the event type adapter-tag"):
        make("repository_dispatch").check()


def test_a_workflow_whose_runs_cannot_be_found_again_is_named(
    fake: FakeGitHub, make: Callable[..., GitHubBackend]
) -> None:
    changed(fake, "${{ inputs.request-id || github.event.client_payload.request_id }}", "")
    with pytest.raises(Usage, match="does not carry the request's id"):
        make().check()


def test_a_workflow_that_is_disabled_is_named_before_and_when_it_is_sent(
    fake: FakeGitHub, make: Callable[..., GitHubBackend]
) -> None:
    fake.actions.state = "disabled_inactivity"
    with pytest.raises(Refused, match=r"is disabled \(disabled_inactivity\)"):
        make().check()
    with pytest.raises(Refused, match="disabled workflow"):
        make().send(a_request())


def test_a_ref_that_does_not_exist_is_named_before_and_when_it_is_sent(make: Callable[..., GitHubBackend]) -> None:
    with pytest.raises(Usage, match="octo/adapters has no branch or tag nowhere"):
        make(ref="nowhere").check()
    with pytest.raises(Refused, match="No ref found for: nowhere"):
        make(ref="nowhere").send(a_request())
    with pytest.raises(Usage, match="always runs the default branch"):
        make("repository_dispatch", ref="main")


def test_a_repo_that_is_archived_is_named(fake: FakeGitHub, make: Callable[..., GitHubBackend]) -> None:
    fake.actions.archived = True
    with pytest.raises(Refused, match="The GitHub repo octo/adapters is archived"):
        make().check()
    words = "Repository was archived so is read-only."
    fake.actions.refused.append(("POST", "/actions/workflows/merge.yml/dispatches", 403, {}, words))
    with pytest.raises(Refused, match="archived"):
        make().send(a_request())


@each_event
def test_a_repo_that_was_renamed_is_followed(fake: FakeGitHub, make: Callable[..., GitHubBackend], event: str) -> None:
    fake.actions.renamed = "octo/new-name"
    backend = make(event)
    backend.check()
    backend.send(a_request())
    assert backend.workflows.repo == "octo/new-name"
    assert len(fake.actions.runs) == 1


@pytest.mark.parametrize(("event", "lacks", "grant"), [
    ("workflow_dispatch", "actions", "Actions: read and write"), ("repository_dispatch", "contents", "Contents: read and write"),
])  # fmt: skip
def test_a_token_without_the_right_is_told_which_it_needs(
    fake: FakeGitHub, make: Callable[..., GitHubBackend], event: str, lacks: str, grant: str
) -> None:
    fake.denied.add(lacks)
    with pytest.raises(Forbidden, match="the token may not do that") as raised:
        make(event).send(a_request())
    assert grant in raised.value.remedy
    assert "job" not in raised.value.remedy


def test_a_token_for_actions_alone_is_enough(fake: FakeGitHub, make: Callable[..., GitHubBackend]) -> None:
    fake.denied.add("contents")
    backend = make()
    backend.check()
    backend.send(a_request())
    assert len(fake.actions.runs) == 1


def test_a_token_that_is_none_is_told_so(make: Callable[..., GitHubBackend]) -> None:
    with pytest.raises(Forbidden, match="does not accept the token") as raised:
        make(token="ghp_wrong").check()
    assert "GITHUB_TOKEN" in raised.value.remedy


def test_a_workflow_only_merges(make: Callable[..., GitHubBackend]) -> None:
    with pytest.raises(Refused, match="A workflow on GitHub merges, and verify was asked for"):
        make().send(a_request(kind="verify"))


@pytest.mark.parametrize(
    ("chosen", "environment", "words"),
    [
        ({}, {"GITHUB_TOKEN": "x"}, "needs a repo"),
        ({"github_repo": "octo"}, {"GITHUB_TOKEN": "x"}, "'octo' is no repo on GitHub"),
        ({"github_repo": "octo/adapters"}, {}, "GITHUB_TOKEN is not set"),
    ],
)
def test_the_backend_says_what_it_lacks(
    tmp_path: Path, chosen: dict[str, str], environment: dict[str, str], words: str
) -> None:
    around = Surroundings(state=tmp_path / "bot.db", hub=Hub(endpoint=HUB), environment=environment)
    with pytest.raises(Usage, match=words):
        backend_of(BackendOptions(backend="github", **chosen), around)  # type: ignore[arg-type]


def test_dispatch_by_hand_waits_for_the_run_and_ends_with_its_exit_code(fake: FakeGitHub, tmp_path: Path) -> None:
    with DevHub(tmp_path / "hub") as hub:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("demo/lora")
        api.upload_file(repo_id="demo/lora", path_in_repo="adapter_config.json", path_or_fileobj=b"{}")
        command = [
            sys.executable,
            "-P",
            "-m",
            "bot",
            "dispatch",
            "demo/lora",
            "--backend",
            "github",
            "--github-repo",
            "octo/adapters",
        ]
        environment = os.environ | hub.environment() | {"GITHUB_TOKEN": TOKEN, "GITHUB_API_URL": fake.url}
        state = ["--state", str(tmp_path / "bot.db")]
        running = subprocess.Popen(
            [*command, *state, "--wait", "--json"], env=environment, stdout=subprocess.PIPE, text=True
        )
        until = time.monotonic() + 30
        while not fake.actions.runs:
            assert time.monotonic() < until
            time.sleep(0.05)
        fake.actions.finish(
            fake.actions.runs[0], {"status": "refused"}, conclusion="failure", log="##[error]No. Do this."
        )
        output, _ = running.communicate(timeout=60)
    answer = json.loads(output)
    assert (running.returncode, answer["status"], answer["reason"]) == (3, "refused", "No. Do this.")
