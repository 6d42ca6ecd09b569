"""The bot's webhook is made once, is brought up to date, is shown with what keeps it from hearing, and goes again."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from bot.cli import _guarded
from bot.devhub import DevHub
from bot.dispatch.records import Delivery, Order
from bot.dispatch.store import Store
from bot.errors import Outside

MAKE = Callable[..., str]
SERVER = "https://merge.example.com"


@pytest.fixture
def ran(
    capfd: pytest.CaptureFixture[str], devhub: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("ADAPTER_MERGE_WEBHOOK_SECRET", "ADAPTER_MERGE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, code: int = 0) -> Any:
        capfd.readouterr()
        ended = _guarded(["bot", *arguments])
        out, err = capfd.readouterr()
        assert ended == code, out + err
        return json.loads(out) if "--json" in arguments else out + err

    return run


def test_a_webhook_for_a_server_is_made_with_a_secret_of_its_own(
    ran: Any, api: HfApi, tmp_path: Path, new_adapter: MAKE
) -> None:
    file = tmp_path / "kept" / "secret"
    allow, github = (
        ("--allow", "demo/lora", "--allow", "demo/*"),
        ("--backend", "github", "--github-repo", "acme/merges"),
    )
    out = ran("install", "--url", SERVER, *allow, "--secret-file", str(file), *github)
    (webhook,) = api.list_webhooks()
    assert (webhook.url, webhook.domains) == (f"{SERVER}/webhook", ["repo", "discussion"])
    assert [(item.type, item.name) for item in webhook.watched] == [("model", "demo/lora"), ("user", "demo")]
    assert file.read_text().strip() == webhook.secret
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert webhook.secret not in out
    assert "gh secret set HF_TOKEN --repo acme/merges" in out
    assert f"--secret-file {file}" in out


def test_a_secret_without_a_file_is_shown_once(ran: Any, api: HfApi) -> None:
    out = ran("install", "--url", SERVER, "--allow", "demo/lora")
    (webhook,) = api.list_webhooks()
    assert f"shown this once: {webhook.secret}" in out
    again = ran("install", "--url", SERVER, "--allow", "demo/lora")
    assert "as it should be already" in again
    assert str(webhook.secret) not in again
    assert api.list_webhooks() == [webhook]


def test_installing_again_changes_the_one_that_is_there(ran: Any, api: HfApi, devhub: DevHub) -> None:
    devhub.create_org("acme", members=["demo"])
    ran("install", "--url", SERVER, "--allow", "demo/lora")
    (before,) = api.list_webhooks()
    api.create_webhook(url="https://elsewhere.example/webhook-of-another", watched=[{"type": "user", "name": "demo"}])
    done = ran("install", "--url", f"{SERVER}/", "--allow", "acme/*", "--json")
    assert (done["action"], done["webhook"], done["why"]) == ("update", before.id, ["it watches other repos"])
    after = api.get_webhook(before.id)
    assert [(item.type, item.name) for item in after.watched] == [("org", "acme")]
    assert after.secret == before.secret
    assert len(api.list_webhooks()) == 2


def test_a_suspended_webhook_is_shown_and_installing_enables_it(ran: Any, api: HfApi) -> None:
    ran("install", "--url", SERVER, "--allow", "demo/lora")
    (webhook,) = api.list_webhooks()
    assert "enabled" in ran("status")
    api.disable_webhook(webhook.id)
    out = ran("status")
    assert "disabled" in out
    assert f"bot install --url {SERVER}/webhook" in out
    done = ran("install", "--url", SERVER, "--allow", "demo/lora", "--json")
    assert done["why"] == ["the Hub or its owner has disabled it"]
    assert not api.get_webhook(webhook.id).disabled


def test_a_dry_run_changes_nothing(
    ran: Any, api: HfApi, devhub: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTER_MERGE_HUB_TOKEN", devhub.token)
    file = tmp_path / "secret"
    assert "would be created" in ran(
        "install", "--url", SERVER, "--allow", "demo/lora", "--secret-file", str(file), "--dry-run"
    )
    assert "would be created" in ran("install", "--jobs", "--allow", "demo/lora", "--dry-run")
    assert (api.list_webhooks(), devhub.jobs(), file.exists()) == ([], [], False)
    ran("install", "--url", SERVER, "--allow", "demo/lora")
    assert "would be removed" in ran("uninstall", "--dry-run")
    assert len(api.list_webhooks()) == 1


def test_uninstalling_removes_ours_and_nobody_elses(ran: Any, api: HfApi) -> None:
    other = api.create_webhook(url="https://elsewhere.example/hook", watched=[{"type": "user", "name": "demo"}])
    ran("install", "--url", SERVER, "--allow", "demo/lora")
    ran("install", "--url", "https://second.example", "--allow", "demo/lora")
    assert "several webhooks" in ran("uninstall", code=2)
    ran("uninstall", "--url", SERVER)
    ran("uninstall")
    assert [webhook.id for webhook in api.list_webhooks()] == [other.id]
    assert "no webhook of the bot" in ran("uninstall", code=5)


def test_what_no_webhook_can_do_is_said(ran: Any) -> None:
    assert "--url" in ran("install", "--allow", "demo/*", code=2)
    assert "It is not clear where" in ran("install", "--url", SERVER, "--jobs", "--allow", "demo/*", code=2)
    assert "No webhook can watch */*" in ran("install", "--url", SERVER, "--allow", "*/*", code=2)
    assert "no address of a server" in ran("install", "--url", "merge.example.com", "--allow", "demo/*", code=2)
    assert "no account nobody" in ran("install", "--url", SERVER, "--allow", "nobody/*", code=5)
    assert "ADAPTER_MERGE_HUB_TOKEN is not set" in ran("install", "--jobs", "--allow", "demo/*", code=2)


def test_status_tells_of_deliveries_and_of_what_is_stuck(ran: Any, tmp_path: Path) -> None:
    assert "There is no state file" in ran("status")
    state = tmp_path / "bot.db"
    store = Store(state)
    order = Order(key="tag a", adapter="demo/lora", revision="v1", sha=None, origin="webhook")
    delivery = Delivery(
        id="1", received=time.time(), event="update repo.content", repo="demo/lora", verdict="accepted: v1"
    )
    store.accept([(delivery, [order])])
    request = store.claim()
    assert request is not None
    store.fail(request, Outside("The Hub is away.", remedy="Wait."))
    store.close()
    out = ran("status", "--state", str(state))
    assert "update repo.content demo/lora: accepted: v1" in out
    assert "Stuck: demo/lora@v1 is failed" in out
    assert "The Hub is away." in out


def test_a_webhook_without_a_server_starts_our_jobs(
    ran: Any, api: HfApi, devhub: DevHub, new_adapter: MAKE, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_adapter("demo/lora")
    monkeypatch.setenv("ADAPTER_MERGE_HUB_TOKEN", devhub.token)
    arguments = (
        "install",
        "--jobs",
        "--allow",
        "demo/*",
        "--tags",
        "v*",
        "--image",
        "ours:1",
        "--option",
        "dtype=float16",
    )
    ran(*arguments)
    (source,) = devhub.drain_jobs()
    assert source.stage == "COMPLETED"  # it ran without an event
    (webhook,) = api.list_webhooks()
    assert webhook.job is not None
    assert (webhook.url, webhook.domains, webhook.job.docker_image) == (None, ["repo"], "ours:1")
    assert webhook.job.secrets == ["ADAPTER_MERGE_WEBHOOK_SECRET", "HF_TOKEN"]
    assert webhook.job.environment == {
        "ADAPTER_MERGE_ALLOW": "demo/*", "ADAPTER_MERGE_TAGS": "v*", "ADAPTER_MERGE_OPTIONS": "dtype=float16",
    }  # fmt: skip
    assert "as it should be already" in ran(*arguments)
    assert len(devhub.jobs()) == 1
    assert "changed" in ran(*arguments[:-1], "dtype=bfloat16")
    assert len(api.list_webhooks()) == 1
    devhub.drain_jobs()
    api.create_tag("demo/lora", tag="latest")
    devhub.drain_webhooks()
    ignored = devhub.drain_jobs()[0]
    assert ignored.initiator["type"] == "webhook"
    assert ignored.stage == "COMPLETED"
    assert [line["data"] for line in devhub.site.jobs.lines(ignored)] == ["ignored: latest fits no pattern of --tags"]
    ran("uninstall", "--jobs")
    assert api.list_webhooks() == []
