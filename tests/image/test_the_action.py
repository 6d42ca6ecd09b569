"""A tag is pushed, and the action runs as on a runner: its launcher, Docker's client, this image, a Hub."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from bot.devhub.faults import Fault
from tests.image.conftest import CALLER, Engine, Job
from tests.stories.test_bad_input import edit_json, edit_tensors, put

pytestmark = pytest.mark.slow
MERGED = "demo/adapter-merged"


def test_a_pushed_tag_becomes_a_published_model_and_the_next_run_finds_it_there(
    job: Job, engine: Engine, tmp_path: Path
) -> None:
    step = job.run()
    assert step.code == 0, step.raw
    outputs = step.outputs
    assert (outputs["status"], outputs["verified"], outputs["repo"], outputs["tag"]) == (
        "published",
        "true",
        MERGED,
        "v1",
    )
    assert outputs["revision"] == job.api.model_info(MERGED, revision="v1").sha
    published = Path(
        snapshot_download(MERGED, endpoint=job.hub.url, token=job.hub.token, local_dir=tmp_path / "merged")
    )
    assert json.loads((published / "verification.json").read_text())["verdict"] == "verified"
    assert Path(outputs["report-path"]).read_bytes() == (published / "verification.json").read_bytes()
    assert Path(outputs["checksums-path"]).is_file()
    assert MERGED in step.summary

    files = [path for path in job.runner.root.rglob("*") if not path.is_symlink()]
    assert {path.stat().st_uid for path in files} == {CALLER}, "nothing is left that only root can remove"
    searched = [path for path in files + list(published.rglob("*")) if path.is_file()]
    assert len(searched) > 30
    for secret in job.secrets:
        assert secret not in step.log
        assert not [path for path in searched if secret.encode() in path.read_bytes()]
    assert engine.containers() == []

    again = job.run()
    assert again.code == 0, again.raw
    assert again.outputs["status"] == "unchanged"
    assert again.outputs["revision"] == outputs["revision"]


def test_an_input_that_makes_no_sense_ends_with_2(job: Job) -> None:
    step = job.run(dtype="int3")
    assert step.code == 2
    assert "dtype cannot be 'int3'" in step.annotations("error")[0]


def test_a_refusal_ends_with_3(job: Job) -> None:
    edit_json(job.own(job.adapter, "adapter") / "adapter_config.json", peft_type="PROMPT_TUNING")
    step = job.run(adapter="./adapter", target_repo="demo/never")
    assert step.code == 3
    assert step.outputs["status"] == "refused"
    assert "Refused" in step.summary
    assert not job.api.repo_exists("demo/never")


def test_a_merge_that_is_not_proven_ends_with_4_and_is_not_published(job: Job) -> None:
    base = job.own(job.base, "base")
    edit_tensors(base / "model-00004-of-00004.safetensors", put("", float("nan")))
    step = job.run(base_model="./base", target_repo="demo/never")
    assert step.code == 4, step.raw
    assert (step.outputs["status"], step.outputs["verified"]) == ("not-verified", "false")
    assert not job.api.repo_exists("demo/never")


def test_a_hub_that_says_no_ends_with_5(job: Job) -> None:
    step = job.run(adapter="demo/nobody-made-this")
    assert step.code == 5
    assert "demo/nobody-made-this" in step.annotations("error")[0]


def test_a_runner_with_too_little_memory_ends_with_6(job: Job) -> None:
    job.runner.env["RUNNER_MEMORY"] = "250m"
    step = job.run()
    assert step.code == 6, step.raw
    assert "of memory and" in step.annotations("error")[0]
    assert not job.api.repo_exists(MERGED)


def test_a_job_in_the_image_needs_no_docker(job: Job, engine: Engine) -> None:
    root = job.runner.root
    inputs = {"INPUT_ADAPTER": "demo/adapter", "INPUT_HF_TOKEN": job.hub.token, "INPUT_VERIFY": "weights"}
    known = {name: value for name, value in job.runner.env.items() if name not in ("PATH", "HOME", "DOCKER_HOST")}
    settings = [flag for name, value in (known | inputs).items() for flag in ("--env", f"{name}={value}")]
    said = engine.podman(
        "run", "--rm", "--network", "host", "--volume", f"{root}:{root}", "--workdir", str(job.runner.workspace),
        *settings, "--entrypoint", "bash", engine.image, f"{root}/action/bot/launch.sh",
    )  # fmt: skip
    assert "published" in said
    assert job.api.file_exists(MERGED, "verification.json")


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_job_ends_its_container_at_once_and_publishes_nothing(
    job: Job, engine: Engine, by: signal.Signals
) -> None:
    stuck = job.hub.faults.add(Fault(path="api/models/demo/adapter", skip=2, delay=60))
    started = job.start()
    while not job.hub.faults.hits(stuck):
        assert started.poll() is None, job.ended(started).raw
        time.sleep(0.05)
    assert len(engine.containers()) == 1
    began = time.monotonic()
    started.send_signal(by)
    step = job.ended(started)
    assert step.code == 130
    assert time.monotonic() - began < 7.5
    assert engine.containers() == []
    assert "::error title=adapter-merge::Interrupted." in step.log, "it ended by itself, without being killed"
    assert not job.api.repo_exists(MERGED)
