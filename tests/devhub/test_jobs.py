"""Jobs: processes of this machine, started and followed by the real client."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from bot.devhub import DevHub

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


def run(api: HfApi, code: str, **more: object) -> str:
    job_id: str = api.run_job(image="any/image:1", command=["python", "-c", code], **more).id  # type: ignore[arg-type]
    return job_id


def log(api: HfApi, job_id: str) -> list[str]:
    return list(api.fetch_job_logs(job_id=job_id))


def test_a_job_gets_its_environment_and_its_secrets_and_nothing_of_ours(
    hub: DevHub, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS_ALONE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_not_for_the_job")
    job_id = run(api, SHOW, env={"ASKED": "for"}, secrets={"HIDDEN": "hf_secret"})
    hub.drain_jobs()
    seen = json.loads(log(api, job_id)[-1])
    assert (seen["ASKED"], seen["HIDDEN"], seen["JOB_ID"]) == ("for", "hf_secret", job_id)
    assert seen["HF_ENDPOINT"] == hub.url
    assert not {"OURS_ALONE", "HF_TOKEN"} & seen.keys()
    job = api.inspect_job(job_id=job_id)
    assert (job.status.stage, job.docker_image, job.environment) == ("COMPLETED", "any/image:1", {"ASKED": "for"})
    assert job.secrets is not None
    assert "hf_secret" not in str(job.secrets)
    assert job.finished_at is not None


def test_it_works_in_a_folder_of_its_own_which_is_gone_afterwards(hub: DevHub, api: HfApi) -> None:
    job_id = run(api, "import os; open('left', 'w'); print(os.getcwd())")
    hub.drain_jobs()
    folder = Path(log(api, job_id)[0])
    assert folder != Path.cwd()
    assert not folder.exists()


def test_our_command_is_there_without_an_image(hub: DevHub, api: HfApi) -> None:
    job_id = api.run_job(image="ours", command=["adapter-merge", "--version"]).id
    (job,) = hub.drain_jobs()
    assert job.stage == "COMPLETED", log(api, job_id)
    assert "adapter-merge" in log(api, job_id)[0]


def test_a_job_that_fails_says_with_which_code_and_keeps_its_log(hub: DevHub, api: HfApi) -> None:
    job_id = run(api, "import sys; print('first'); print('last', file=sys.stderr); sys.exit(3)")
    hub.drain_jobs()
    job = api.inspect_job(job_id=job_id)
    assert job.status.stage == "ERROR"
    assert "exit code: 3" in str(job.status.message)
    assert log(api, job_id) == ["first", "last"]
    assert list(api.fetch_job_logs(job_id=job_id, tail=1)) == ["last"]
    nothing = api.run_job(image="ours", command=["no-such-program"]).id
    hub.drain_jobs()
    assert api.inspect_job(job_id=nothing).status.stage == "ERROR"


def test_a_log_is_followed_to_its_end(hub: DevHub, api: HfApi) -> None:
    job_id = run(api, "import time; print(1); time.sleep(0.4); print(2)")
    assert list(api.fetch_job_logs(job_id=job_id, follow=True)) == ["1", "2"]


def test_jobs_are_listed_by_their_labels_and_stages(hub: DevHub, api: HfApi) -> None:
    wanted = run(api, "pass", labels={"request": "abc", "kind": "merge"})
    run(api, "pass", labels={"request": "abd"})
    hub.drain_jobs()
    assert [job.id for job in api.list_jobs(namespace="demo", labels={"request": "abc"})] == [wanted]
    assert len(list(api.list_jobs(namespace="demo", status="COMPLETED"))) == 2
    assert list(api.list_jobs(namespace="demo", status="RUNNING")) == []


def test_many_jobs_are_listed_page_by_page(hub: DevHub, api: HfApi) -> None:
    for number in range(60):
        hub.site.jobs._keep(hub.site.jobs.start("demo", {"command": ["true"]}, {}, {"type": "user", "id": str(number)}))
    assert len(list(api.list_jobs(namespace="demo"))) == 60


def test_a_job_is_canceled_and_one_that_takes_too_long_is_ended(hub: DevHub, api: HfApi) -> None:
    late = run(api, "import time; time.sleep(60)", timeout=1)
    canceled = run(api, "import time; time.sleep(60)", timeout="2h")
    api.cancel_job(job_id=canceled)
    assert {job.id: job.stage for job in hub.drain_jobs(20)} == {late: "ERROR", canceled: "CANCELED"}
    assert api.inspect_job(job_id=late).status.message == "Job timeout"


def test_so_many_run_at_once_and_the_others_wait(hub: DevHub, api: HfApi) -> None:
    jobs = [run(api, "import time; time.sleep(60)") for _ in range(3)]
    until = time.monotonic() + 10
    while [job.stage for job in hub.jobs()].count("RUNNING") < 2:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert [job.stage for job in hub.jobs()] == ["SCHEDULING", "RUNNING", "RUNNING"]
    for job_id in jobs:
        api.cancel_job(job_id=job_id)
    assert {job.stage for job in hub.drain_jobs(20)} == {"CANCELED"}


def test_no_job_outlives_its_hub_and_a_later_hub_knows_of_it(folder: Path) -> None:
    with DevHub(folder) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        job_id = run(api, "import os, time; print(os.getpid()); time.sleep(60)", secrets={"HIDDEN": "hf_secret"})
        while not (lines := hub.site.jobs.lines(hub.jobs()[0])):
            time.sleep(0.02)
    with pytest.raises(ProcessLookupError):
        os.kill(int(lines[0]["data"]), 0)
    with DevHub(folder) as hub:
        job = HfApi(endpoint=hub.url, token=hub.token).inspect_job(job_id=job_id)
        assert job.status.stage == "CANCELED"
    assert all(b"hf_secret" not in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_who_may_not_start_a_job_is_told_so(hub: DevHub, api: HfApi) -> None:
    hub.create_org("acme", members={"demo": "write", "guest": "read"})
    reader = hub.create_token("demo", "read")
    narrow = hub.create_token("demo", "fine-grained", repos=["demo/*"])
    other = hub.create_token(hub.create_user("other"))
    for token in (reader, narrow, other):
        with pytest.raises(HfHubHTTPError) as refused:
            api.run_job(image="ours", command=["true"], namespace="demo", token=token)
        assert refused.value.response.status_code == 403
    fine = hub.create_token("demo", "fine-grained", repos=["demo/*"], permissions=("job.write",))
    api.run_job(image="ours", command=["true"], namespace="demo", token=fine)
    job = api.run_job(image="ours", command=["true"], namespace="acme")
    assert (job.owner.name, job.owner.type) == ("acme", "org")


def test_the_machines_are_listed_with_their_prices(api: HfApi) -> None:
    machines = api.list_jobs_hardware()
    assert (machines[0].name, machines[0].ram, machines[0].unit_label) == ("cpu-basic", "16 GB", "minute")
    assert any(machine.accelerator for machine in machines)


def test_a_webhook_starts_a_job_with_the_event_and_its_own_secrets_only(hub: DevHub, api: HfApi, repo: str) -> None:
    source = run(api, SHOW, env={"ALLOW": "demo/*"}, secrets={"OF_THE_SOURCE": "1"}, flavor="cpu-upgrade")
    hub.drain_jobs()
    watched = [{"type": "model", "name": repo}]
    made = api.create_webhook(
        job_id=source, watched=watched, domains=["repo"], secret="s3cret", secrets={"HF_TOKEN": "hf_of_the_webhook"}
    )
    assert made.job is not None
    assert (made.url, made.job.secrets, made.job.flavor) == (None, ["HF_TOKEN"], "cpu-upgrade")
    api.create_tag(repo, tag="v1")
    (delivery,) = hub.drain_webhooks()
    started = hub.drain_jobs()[0]
    assert (started.id, started.initiator["type"]) == (delivery.job, "webhook")
    seen = json.loads(log(api, started.id)[-1])
    assert json.loads(seen["WEBHOOK_PAYLOAD"])["updatedRefs"][0]["ref"] == "refs/tags/v1"
    assert (seen["WEBHOOK_REPO_ID"], seen["WEBHOOK_REPO_TYPE"], seen["WEBHOOK_ID"]) == (repo, "model", delivery.id)
    assert (seen["WEBHOOK_SECRET"], seen["HF_TOKEN"], seen["ALLOW"]) == ("s3cret", "hf_of_the_webhook", "demo/*")
    assert "OF_THE_SOURCE" not in seen


def test_secrets_of_a_webhook_are_changed_one_by_one(hub: DevHub, api: HfApi, repo: str) -> None:
    source = run(api, "pass")
    watched = [{"type": "model", "name": repo}]
    made = api.create_webhook(job_id=source, watched=watched, secrets={"A": "1", "B": "2"})
    changed = api.update_webhook(made.id, job_id=source, watched=watched, secrets={"A": "", "C": "3"})
    assert changed.job is not None
    assert changed.job.secrets == ["B", "C"]
    moved = api.update_webhook(made.id, watched=watched, url="http://127.0.0.1:1/hook")
    assert (moved.url, moved.job) == ("http://127.0.0.1:1/hook", None)
    with pytest.raises(HfHubHTTPError):
        api.create_webhook(job_id="0" * 24, watched=watched)
