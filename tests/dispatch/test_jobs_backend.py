"""Runs as Hugging Face Jobs: one for each request, on a machine that fits, with a token that may do it, found again by its label."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.devhub import DevHub, Fault
from bot.dispatch.backends import Busy, Unsure
from bot.dispatch.backends.jobs import IMAGE, JobsBackend, JobSettings, costs, jobs_backend, seconds_in
from bot.dispatch.backends.sizing import Needs, cheapest, needs_of, seconds_for
from bot.dispatch.command import fate_of_log
from bot.dispatch.dispatcher import Dispatcher
from bot.dispatch.records import Fate, Order, RunRequest
from bot.dispatch.resolve import resolver
from bot.dispatch.store import Store
from bot.errors import AdapterMergeError, Forbidden, Refused, Usage
from bot.hub import Hub
from bot.hub.jobs import job_machines

MAKE = Callable[..., str]
RELEASE = Path(__file__).parents[2] / ".github" / "workflows" / "release.yml"
NAMED = JobSettings(image="ours:1", flavor="cpu-upgrade", timeout=5400)
ORDER = Order(key="hand 1", adapter="demo/lora", revision="v1", sha=None, origin="hand")


def backend(devhub: DevHub, settings: JobSettings = NAMED, token: str | None = None) -> JobsBackend:
    environment = dict(os.environ) | {"ADAPTER_MERGE_HUB_TOKEN": devhub.token if token is None else token}
    made = jobs_backend(settings, environment, endpoint=devhub.url)
    made.hub.patience.pauses = ()
    return made


def taken(store: Store, order: Order = ORDER) -> RunRequest:
    """A request for this order, ours to send."""
    store.add(order)
    request = store.claim()
    assert request is not None
    return request


def ended(devhub: DevHub, jobs: JobsBackend, request: RunRequest) -> Fate:
    devhub.drain_jobs()
    return jobs.look(request)


@pytest.mark.parametrize(("flavor", "suffix"), [("cpu-upgrade", ""), ("t4-small", "-cuda")])
def test_a_machine_with_a_gpu_gets_the_image_that_can_use_it(
    flavor: str, suffix: str, devhub: DevHub, api: HfApi, store: Store, new_adapter: MAKE
) -> None:
    new_adapter("demo/lora", "v1")
    jobs = backend(devhub, JobSettings(flavor=flavor, timeout=5400))
    jobs.send(taken(store))
    (job,) = devhub.jobs()
    assert api.inspect_job(job_id=job.id).docker_image == f"{IMAGE}{suffix}"
    assert f"suffix: {suffix}\n" in RELEASE.read_text() or not suffix


def test_a_run_is_a_job_with_its_label_its_machine_its_time_and_its_token(
    devhub: DevHub, api: HfApi, store: Store, new_adapter: MAKE
) -> None:
    new_adapter("demo/lora", "v1")
    jobs = backend(devhub)
    request = taken(store, replace(ORDER, options=(("dtype", "float16"),)))
    run = jobs.send(request)
    (job,) = devhub.jobs()
    shown = api.inspect_job(job_id=job.id)
    assert shown.command == ["adapter-merge", "run", "demo/lora@v1", "--json", "--dtype=float16"]
    assert shown.labels == {"adapter-merge": request.id, "name": "merge-lora"}
    assert (shown.docker_image, shown.flavor, job.spec["timeoutSeconds"]) == ("ours:1", "cpu-upgrade", 5400)
    assert shown.secrets is not None
    assert list(shown.secrets) == ["HF_TOKEN"]
    assert (run.id, run.url) == (f"demo/{job.id}", shown.url)
    assert run.note == "cpu-upgrade, $0.03 an hour ($0.0005 a minute), at most 1.5 h, $0.05"
    assert jobs.find(request) is not None
    fate = ended(devhub, jobs, replace(request, run=run))
    # The Job itself says it, in the JSON at the end of its log.
    assert (fate.status, fate.exit_code) == ("refused", 3)
    assert "holds no adapter weights" in fate.reason
    assert any("no adapter weights" in line for line in jobs.log(replace(request, run=run), 5))


def test_a_lost_answer_leads_to_no_second_job(
    devhub: DevHub, hub: Hub, store: Store, new_adapter: MAKE, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_adapter("demo/lora", "v1")
    jobs = backend(devhub)
    monkeypatch.setattr(jobs, "SHOWN_AFTER", 0.2)
    devhub.faults.add(Fault(path=r"/api/jobs/demo$", method="POST", cut_after=0))
    store.add(ORDER)
    dispatcher = Dispatcher(store, jobs, resolver(hub, None))
    dispatcher.step()
    (request,) = store.requests()
    assert (request.state, len(devhub.jobs())) == ("sending", 1)
    time.sleep(0.3)
    dispatcher.step()
    (request,) = store.requests()
    assert request.state == "sent"
    assert request.run is not None
    assert [f"demo/{job.id}" for job in devhub.jobs()] == [request.run.id]


def test_a_job_that_was_not_started_after_all_is_started_later(
    devhub: DevHub, hub: Hub, store: Store, new_adapter: MAKE, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_adapter("demo/lora", "v1")
    jobs = backend(devhub)
    monkeypatch.setattr(jobs, "SHOWN_AFTER", 0.2)
    devhub.faults.add(Fault(path=r"/api/jobs/demo$", method="POST", dropped=True))
    store.add(ORDER)
    dispatcher = Dispatcher(store, jobs, resolver(hub, None))
    dispatcher.step()
    assert devhub.jobs() == []
    time.sleep(0.3)
    dispatcher.step()
    assert (len(devhub.jobs()), store.requests()[0].state) == (1, "sent")


@pytest.mark.parametrize(
    ("status", "headers", "error", "words"),
    [
        (429, {"Retry-After": "77"}, Busy, "rate limit"),
        (503, {}, Unsure, "503"),
        (402, {}, Forbidden, "no credit"),
    ],
)
def test_what_the_hub_answers_decides_whether_it_is_tried_again(
    status: int,
    headers: dict[str, str],
    error: type[Exception],
    words: str,
    devhub: DevHub,
    store: Store,
    new_adapter: MAKE,
) -> None:
    new_adapter("demo/lora", "v1")
    devhub.faults.add(Fault(path=r"/api/jobs/demo$", method="POST", status=status, headers=headers))
    with pytest.raises(error, match=words) as raised:
        backend(devhub).send(taken(store))
    if isinstance(raised.value, Busy):
        assert raised.value.seconds == 77
    assert devhub.jobs() == []


def test_a_token_that_may_not_start_jobs_is_refused_before_any_work(devhub: DevHub) -> None:
    fine = devhub.create_token("demo", "fine-grained", repos=["demo/*"])
    for token, words in ((devhub.create_token("demo", "read"), "can only read"), (fine, "lacks job.write")):
        with pytest.raises(Forbidden, match=words):
            backend(devhub, token=token).check()
    with pytest.raises(Usage, match="ADAPTER_MERGE_HUB_TOKEN is not set"):
        backend(devhub, token="").check()
    with pytest.raises(Forbidden, match="not in it"):
        backend(devhub, replace(NAMED, namespace="acme")).check()
    with pytest.raises(Usage, match="--flavor tpu is no machine"):
        backend(devhub, replace(NAMED, flavor="tpu")).check()
    devhub.create_org("acme", members=["demo"])
    backend(devhub, replace(NAMED, namespace="acme")).check()


def test_a_token_that_may_not_write_the_result_starts_no_job(devhub: DevHub, store: Store, new_adapter: MAKE) -> None:
    new_adapter("demo/lora", "v1")
    narrow = devhub.create_token(
        "demo", "fine-grained", repos=["demo/*"], permissions=("job.write", "repo.content.read")
    )
    jobs = backend(devhub, token=narrow)
    jobs.check()
    with pytest.raises(Forbidden, match="demo/lora-merged does not exist"):
        jobs.send(taken(store))
    assert devhub.jobs() == []


def test_a_canceled_job_and_one_whose_time_was_over_say_so(
    devhub: DevHub, api: HfApi, store: Store, new_adapter: MAKE
) -> None:
    new_adapter("demo/lora", "v1")
    jobs = backend(devhub, replace(NAMED, timeout=1))
    late = taken(store)
    late = replace(late, run=jobs.send(late))
    canceled = taken(store, replace(ORDER, key="hand 2"))
    canceled = replace(canceled, run=jobs.send(canceled))
    assert canceled.run is not None
    api.cancel_job(job_id=canceled.run.id.partition("/")[2])
    assert ended(devhub, jobs, canceled).reason == "The Job was canceled."
    fate = ended(devhub, jobs, late)
    # A fast machine has looked at the adapter before that, and refused it.
    status = {"failed": "time was over", "refused": "no adapter weights"}
    assert status[fate.status] in fate.reason


def test_the_cheapest_machine_that_fits_is_taken(hub: Hub) -> None:
    machines = job_machines(hub)
    assert [machine.hourly for machine in machines] == sorted(machine.hourly for machine in machines)
    gigabyte = 10**9

    def fits(memory: int, disk: int) -> str:
        return cheapest(machines, Needs(memory=memory * gigabyte, disk=disk * gigabyte, moved=0)).flavor

    assert fits(2, 10) == "cpu-basic"
    assert fits(20, 10) == "cpu-upgrade"
    assert fits(2, 60) == "t4-medium"  # more disk than the cheaper ones have
    assert fits(2, 300) == "cpu-xl"
    with pytest.raises(Refused, match="No machine for Jobs has"):
        fits(2, 5000)


def test_a_run_gets_time_by_what_it_moves() -> None:
    assert seconds_for(Needs(memory=0, disk=0, moved=0)) == 30 * 60
    assert seconds_for(Needs(memory=0, disk=0, moved=4 * 16 * 10**9)) == 15 * 60 + 3200 + 40
    assert seconds_for(Needs(memory=0, disk=0, moved=10**15)) == 24 * 3600
    assert [seconds_in(text) for text in ("90m", "2h", "45", "1d")] == [5400, 7200, 45, 86400]
    for text in ("", "0", "2 hours", "-1"):
        with pytest.raises(Usage):
            seconds_in(text)


def test_what_a_job_costs_is_told_by_the_hour_and_by_the_minute(hub: Hub) -> None:
    machine = next(machine for machine in job_machines(hub) if machine.flavor == "t4-small")
    assert costs(machine, 7200) == "t4-small, $0.40 an hour ($0.0067 a minute), at most 2.0 h, $0.80"


def test_a_plan_that_cannot_be_made_starts_no_job(devhub: DevHub, store: Store, new_adapter: MAKE) -> None:
    new_adapter("demo/lora", "v1")
    with pytest.raises(AdapterMergeError, match="holds no adapter weights"):
        needs_of(ORDER, dict(os.environ))
    assert devhub.jobs() == []


def test_the_last_json_of_a_log_tells_the_fate() -> None:
    answer = {
        "status": "published",
        "publication": {"pr_url": "https://hub/pr/1"},
        "report": {"verdict": "verified", "level": "full"},
    }
    log = ["▸ Merging", "{", "not json", "}", *json.dumps(answer, indent=2).splitlines(), "  204.3 kB", "done"]
    fate = fate_of_log("run", 0, log)
    assert fate is not None
    assert (fate.status, fate.url, fate.verdict) == ("published", "https://hub/pr/1", "verified (full)")
    assert fate_of_log("run", None, log) == fate  # also where nobody knows the exit code
    assert fate_of_log("run", None, ["nothing", "of use"]) is None
    refused = json.dumps({"status": "refused", "refusals": [{"reason": "No.", "remedy": "Do."}]}, indent=2).splitlines()
    fate = fate_of_log("run", None, refused)
    assert fate is not None
    assert (fate.status, fate.reason, fate.exit_code) == ("refused", "No.", 3)


def test_however_it_is_killed_a_request_becomes_one_job(
    devhub: DevHub, hub: Hub, tmp_path: Path, new_adapter: MAKE, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_adapter("demo/lora", "v1")
    path = tmp_path / "killed.db"
    command = [sys.executable, "-P", "-m", "bot", "dispatch", "demo/lora@v1", "--backend", "jobs", "--state", str(path)]
    environment = os.environ | {"ADAPTER_MERGE_HUB_TOKEN": devhub.token, "HF_HUB_DISABLE_XET": "1"}
    chance = random.Random(14)
    for _ in range(6):
        # The answer comes late, so that the kill falls before it as well as after.
        devhub.faults.add(Fault(path=r"/api/jobs/demo$", method="POST", delay=0.3))
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            [*command, "--flavor", "cpu-basic", "--timeout", "1h"], env=environment, stdout=quiet, stderr=quiet
        )  # fmt: skip
        time.sleep(chance.uniform(0.8, 2.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        devhub.faults.clear()
    time.sleep(2)  # what was on its way arrives: the backend gives it a minute, and this clock jumps over that
    hours = [0.1]
    late = Store(path, clock=lambda: time.time() + 3600 * hours[0])
    dispatcher = Dispatcher(late, backend(devhub), resolver(hub, None))
    while any(request.state in ("waiting", "sending") for request in late.requests()):
        if not dispatcher.step():
            hours[0] += 0.1
        assert hours[0] < 10, late.requests()
    labels = [job.spec["labels"]["adapter-merge"] for job in devhub.jobs()]
    assert labels, [(each.state, each.reason) for each in late.requests()]
    assert sorted(labels) == sorted(request.id for request in late.requests()), late.requests()
    late.close()
