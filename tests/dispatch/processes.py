"""`serve` as processes on one state file, whose runs are real but for the command itself.

A sitecustomize on the run's path stands in for `adapter-merge run`: it writes down that it was started, and prints the outcome of a
merge.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
from huggingface_hub import HfApi

from bot.devhub import DevHub
from tests.dispatch.test_payload import payload, ref

SECRET = "a secret of this test"
STUB = """
import json, os, sys, time
at = sys.orig_argv.index("-m") if "-m" in sys.orig_argv else -3
if sys.orig_argv[at + 1 : at + 3] == ["bot", "run"]:
    with open(os.environ["STARTED"], "a") as started:
        started.write(sys.orig_argv[at + 3] + "\\n")
    while os.path.exists(os.environ["STARTED"] + ".hold"):
        time.sleep(0.01)
    print(json.dumps({"status": "published", "publication": {"url": "https://hub.example/merged"}, "report": {"verdict": "verified"}}))
    sys.stdout.flush()
    os._exit(0)
"""


class Bot:
    """`adapter-merge serve` processes on one state file, and what they ran."""

    def __init__(self, folder: Path, hub: DevHub) -> None:
        self.sha = ""  # of the adapter
        self.state, self.started, self.hold = folder / "bot.db", folder / "started", folder / "started.hold"
        (folder / "path").mkdir()
        (folder / "path" / "sitecustomize.py").write_text(STUB)
        self.environment = os.environ | hub.environment() | {
            "ADAPTER_MERGE_WEBHOOK_SECRET": SECRET, "PYTHONPATH": str(folder / "path"), "STARTED": str(self.started),
            "HF_HOME": str(folder / "home"),
        }  # fmt: skip
        self.servers: list[tuple[subprocess.Popen[str], int]] = []

    def start(self, number: int = 1, *options: str) -> None:
        command = [
            sys.executable,
            "-P",
            "-m",
            "bot",
            "serve",
            "--allow",
            "demo/*",
            "--port",
            "0",
            "--state",
            str(self.state),
            *options,
        ]
        begun = [
            subprocess.Popen(
                command, env=self.environment, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
            )
            for _ in range(number)
        ]
        for process in begun:
            assert process.stdout is not None
            line = process.stdout.readline()
            self.servers.append((process, int(line.partition("/webhook")[0].rpartition(":")[2])))

    def kill(self) -> None:
        """All servers, one right after the other."""
        for process, _ in self.servers:
            process.kill()
            process.wait()
        self.servers.clear()

    def two_minutes_pass(self) -> None:
        """While no server runs: every time in the rows is that much longer ago."""
        with sqlite3.connect(self.state, timeout=20) as rows:
            rows.execute("UPDATE requests SET lease = lease - 120, due = due - 120, begun = begun - 120")
        for command in self.state.parent.glob("bot.db.runs/*/command.json"):
            os.utime(command, (time.time() - 120, command.stat().st_mtime - 120))

    def deliver(self, tag: str, name: str, chosen: random.Random) -> int | None:
        """One attempt; None where nobody answered."""
        if not self.servers:
            return None
        _, port = chosen.choice(self.servers)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            headers = {"X-Webhook-Secret": SECRET, "Webhook-Id": name}
            connection.request(
                "POST", "/webhook", json.dumps(payload(ref(f"refs/tags/{tag}", new=self.sha), repo="demo/a")), headers
            )
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def rows(self) -> list[sqlite3.Row]:
        with sqlite3.connect(self.state, timeout=20) as rows:
            rows.row_factory = sqlite3.Row
            return rows.execute("SELECT * FROM requests").fetchall()

    def states(self) -> Counter[str]:
        return Counter(row["state"] for row in self.rows())

    def runs(self) -> list[str]:
        return self.started.read_text().split() if self.started.exists() else []


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def wait_for(condition: Callable[[], bool]) -> None:
    assert wait_until(condition, 60.0), "it did not come to be"


def tagged(bot: Bot, api: HfApi, number: int) -> list[str]:
    api.create_repo("demo/a")
    bot.sha = api.upload_file(path_or_fileobj=b"{}", path_in_repo="adapter_config.json", repo_id="demo/a").oid
    tags = [f"v{each}" for each in range(number)]
    for tag in tags:
        api.create_tag("demo/a", tag=tag)
    return tags


def runner_and_command(bot: Bot) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """The living processes of the runs."""
    runners, commands = [], []
    for process in psutil.process_iter():
        try:
            line, environment = process.cmdline(), process.environ()
        except psutil.Error:
            continue
        if environment.get("STARTED") != str(bot.started):
            continue
        if "bot.dispatch.backends.local_runner" in line:
            runners.append(process)
        elif line[2:5] == ["-m", "bot", "run"]:
            commands.append(process)
    return runners, commands
