"""`serve` and `dispatch` as a person starts them: what they refuse, what they return, and how they end."""

from __future__ import annotations

import json
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.cli import _guarded
from bot.devhub import DevHub
from bot.devhub.faults import Fault
from tests.dispatch.processes import Bot, tagged, wait_for


@pytest.fixture(autouse=True)
def _environment(devhub: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_MERGE_WEBHOOK_SECRET", "a secret")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def refused(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    capfd.readouterr()
    code = _guarded([str(argument) for argument in arguments])
    return code, capfd.readouterr().err


@pytest.mark.parametrize("secret", ["", "  ", "\n", None])
def test_serve_without_a_secret_does_not_start(
    secret: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if secret is None:
        monkeypatch.delenv("ADAPTER_MERGE_WEBHOOK_SECRET")
    else:
        monkeypatch.setenv("ADAPTER_MERGE_WEBHOOK_SECRET", secret)
    code, error = refused(capfd, "serve", "--allow", "demo/*", "--port", "0")
    assert code == 2
    assert "The webhook's secret is missing" in error
    assert "--secret-file" in error


@pytest.mark.parametrize("held", [b"", b" \n", b"\xff\xfe"])
def test_a_file_that_holds_no_secret_is_told(held: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "secret").write_bytes(held)
    code, error = refused(capfd, "serve", "--allow", "demo/*", "--port", "0", "--secret-file", tmp_path / "secret")
    assert code == 2
    assert "Traceback" not in error
    assert "secret" in error


def test_serve_for_nobody_does_not_start(capfd: pytest.CaptureFixture[str]) -> None:
    code, error = refused(capfd, "serve", "--port", "0")
    assert code == 2
    assert "No adapter is allowed" in error
    assert "'*/*'" in error


def test_a_port_in_use_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, error = refused(capfd, "serve", "--allow", "demo/*", "--port", f"{port}")
    assert code == 2
    assert f"127.0.0.1:{port} cannot be listened at: Address already in use" in error
    assert "--port" in error


@pytest.mark.parametrize("command", [["serve", "--allow", "demo/*", "--port", "0"], ["dispatch", "demo/a"]])
def test_a_state_file_of_a_newer_version_is_told(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(tmp_path / "bot.db") as rows:
        rows.execute("PRAGMA user_version = 99")
    code, error = refused(capfd, *command, "--state", tmp_path / "bot.db")
    assert code == 2
    assert "newer version" in error
    assert "--state" in error


@pytest.mark.parametrize(
    ("adapter", "words"),
    [("/x", "no adapter on the Hub"), ("a/b/c", "no adapter on the Hub"), ("../x", "no adapter")],
)
def test_dispatch_takes_a_name_on_the_hub(adapter: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, error = refused(capfd, "dispatch", adapter)
    assert code == 2
    assert words in error


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("dtype", "has no value"),
        ("dtype=float7", "dtype is"),
        ("nonsense=1", "is no option"),
        ("--yes=1", "is no option"),
        ("force=yes", "true or false"),
    ],
)
def test_dispatch_refuses_options_that_a_run_does_not_have(
    option: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, error = refused(capfd, "dispatch", "demo/a", "--option", option)
    assert code == 2
    assert words in error


def test_dispatch_of_what_is_not_there_is_refused(api: HfApi, capfd: pytest.CaptureFixture[str]) -> None:
    code, error = refused(capfd, "dispatch", "demo/nowhere@v1")
    assert code == 3
    assert "demo/nowhere" in error


def test_dispatch_that_the_hub_does_not_let_is_tried_again_by_the_person(
    bot: Bot, api: HfApi, devhub: DevHub, capfd: pytest.CaptureFixture[str]
) -> None:
    tagged(bot, api, 1)
    devhub.faults.add(Fault(path="/api/models/demo/a", status=403, times=None))
    code, error = refused(capfd, "dispatch", "demo/a@v0", "--state", bot.state)
    assert code == 5
    assert "Traceback" not in error
    assert [row["state"] for row in bot.rows()] == ["dropped"]  # nobody sends it later, unasked


def test_a_server_that_is_started_while_github_is_down_hears_the_hub_all_the_same(bot: Bot, api: HfApi) -> None:
    tagged(bot, api, 1)
    bot.environment |= {"GITHUB_TOKEN": "ghp_of_this_test", "GITHUB_API_URL": "http://127.0.0.1:9"}
    bot.start(1, "--backend", "github", "--github-repo", "octo/adapters")
    assert bot.deliver("v0", "first", random.Random(0)) == 202
    time.sleep(0.5)
    assert [(row["state"], row["attempts"]) for row in bot.rows()] == [("waiting", 0)]


def test_every_run_of_a_server_gets_the_options_that_it_was_started_with(bot: Bot, api: HfApi) -> None:
    tagged(bot, api, 1)
    bot.start(1, "--option", "quantize=nf4", "--option", "publish=pr")
    assert bot.deliver("v0", "first", random.Random(0)) == 202
    assert [json.loads(row["options"]) for row in bot.rows()] == [[["quantize", "nf4"], ["publish", "pr"]]]


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["poll", "--dry-run"]])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--option", "dtype=float7"], "dtype is"),
        (["--option", "nonsense=1"], "is no option"),
        (["--option", "target-repo=--force"], "target-repo is '--force'"),
        (["--option", "target-repo=demo/all"], "several adapters are allowed"),
        (["--allow", "demo/b", "--option", "target-repo=demo/all"], "several adapters are allowed"),
    ],
)
def test_options_that_no_run_could_have_are_refused_at_the_start(
    command: list[str], options: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pattern = "demo/a" if "demo/b" in options else "demo/*"
    code, error = refused(capfd, *command, "--allow", pattern, *options)
    assert code == 2
    assert words in error


@pytest.mark.parametrize("token", ["read", "none"])
def test_a_server_whose_token_may_not_what_it_must_does_not_start(
    token: str, devhub: DevHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = devhub.create_token("demo", role="read") if token == "read" else "hf_no_such_token_at_all"
    monkeypatch.setenv("ADAPTER_MERGE_HUB_TOKEN", bad)
    code, error = refused(capfd, "serve", "--allow", "demo/*", "--port", "0", "--backend", "jobs")
    assert (code, "Listening" in error) == (5, False)


# --- dispatch, as a process ---------------------------------------------------------------------------------------------


def dispatch(bot: Bot, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "bot", "dispatch", "demo/a@v0", "--state", str(bot.state), *options]
    return subprocess.Popen(command, env=bot.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_dispatch_starts_a_run_and_does_not_wait_for_it(bot: Bot, api: HfApi) -> None:
    tagged(bot, api, 1)
    bot.hold.touch()
    ran = dispatch(bot)
    out, _ = ran.communicate(timeout=60)
    assert ran.returncode == 0
    assert out.startswith("dispatched: request ")
    wait_for(lambda: bot.runs() == ["demo/a@v0"])


def test_dispatch_that_waits_ends_as_its_run_did(bot: Bot, api: HfApi) -> None:
    tagged(bot, api, 1)
    ran = dispatch(bot, "--wait", "--json")
    out, _ = ran.communicate(timeout=60)
    assert ran.returncode == 0
    answer = json.loads(out)
    assert (answer["status"], answer["url"], answer["exit_code"]) == ("published", "https://hub.example/merged", 0)
    assert answer["backend"] == "local"


def test_dispatch_that_waits_returns_the_exit_code_and_prints_the_logs_end(bot: Bot, api: HfApi) -> None:
    tagged(bot, api, 1)
    (bot.state.parent / "path" / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if sys.orig_argv[2:5] == ['-m', 'bot', 'run']:\n"
        '    os.write(1, b\'{"error": {"what": "No room.", "remedy": "Make some."}}\')\n'
        "    os.write(2, b'the last words\\n')\n"
        "    os._exit(6)\n"
    )
    ran = dispatch(bot, "--wait")
    out, error = ran.communicate(timeout=60)
    assert ran.returncode == 6
    assert "No room. Make some." in out
    assert "the last words" in error


def test_a_folder_where_the_server_is_started_is_not_taken_for_the_adapter(
    bot: Bot, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagged(bot, api, 1)
    (tmp_path / "here" / "demo" / "a@v0").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    (bot.state.parent / "path" / "sitecustomize.py").write_text(
        "import json, os, sys\n"
        "if sys.orig_argv[2:5] == ['-m', 'bot', 'run']:\n"
        "    what = f'{sys.orig_argv[5]} is here: {os.path.exists(sys.orig_argv[5])}.'\n"
        "    os.write(1, json.dumps({'error': {'what': what, 'remedy': ''}}).encode())\n"
        "    os._exit(5)\n"
    )
    out, _ = dispatch(bot, "--wait").communicate(timeout=60)
    assert "demo/a@v0 is here: False." in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_stops_waiting_is_told_that_the_run_goes_on(bot: Bot, api: HfApi, number: signal.Signals) -> None:
    tagged(bot, api, 1)
    bot.hold.touch()
    ran = dispatch(bot, "--wait")
    wait_for(lambda: bool(bot.runs()) and bot.rows()[0]["state"] == "sent")
    ran.send_signal(number)
    _, error = ran.communicate(timeout=10)
    assert ran.returncode == 130
    assert f"the run of request {bot.rows()[0]['id']} goes on" in error
    bot.hold.unlink()
    runs = bot.state.with_name("bot.db.runs")
    wait_for(lambda: (runs / bot.rows()[0]["id"] / "exit").exists())
    assert (runs / bot.rows()[0]["id"] / "exit").read_text() == "0"
