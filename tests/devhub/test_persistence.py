"""What was committed is there: after a restart, and after a kill."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi

from bot.devhub import DevHub

ROOT = Path(__file__).resolve().parents[2]
SERVE = """
import sys
from bot.devhub import DevHub
hub = DevHub(sys.argv[1]).open()
print(hub.url, hub.cdn_url, hub.token, flush=True)
hub.serve_forever()
print("stopped", flush=True)
"""


def _serve(folder: Path) -> tuple[subprocess.Popen[str], HfApi, dict[str, int]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SERVE, str(folder)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url, cdn, token = server.stdout.readline().split()
    port, cdn_port = (int(address.rpartition(":")[2]) for address in (url, cdn))
    return server, HfApi(endpoint=url, token=token), {"port": port, "cdn_port": cdn_port}


def test_a_restarted_hub_shows_everything(folder: Path, cache: Path) -> None:
    with DevHub(folder) as hub:
        token = hub.token
        api = HfApi(endpoint=hub.url, token=token)
        repo = api.create_repo("demo/model", private=True).repo_id
        api.upload_file(path_or_fileobj=b"weights", path_in_repo="a.bin", repo_id=repo)
        api.create_tag(repo, tag="v1")
        proposed = api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo, create_pr=True)
    with DevHub(folder) as hub:
        assert hub.token == token
        api = HfApi(endpoint=hub.url, token=token)
        assert Path(api.hf_hub_download(repo, "a.bin", revision="v1", cache_dir=cache)).read_bytes() == b"weights"
        pull = api.get_discussion_details(repo, 1)
        assert (pull.status, api.model_info(repo, revision="refs/pr/1").sha) == ("open", proposed.oid)


def test_a_killed_hub_keeps_what_it_confirmed_and_nothing_half(folder: Path, cache: Path) -> None:
    server, api, ports = _serve(folder)
    repo = api.create_repo("demo/model").repo_id
    confirmed: list[int] = []
    stop = threading.Event()

    def push() -> None:
        for number in range(1000):
            with contextlib.suppress(httpx2.HTTPError, RuntimeError, OSError):
                api.upload_file(path_or_fileobj=_content(number), path_in_repo=f"{number}.bin", repo_id=repo)
                confirmed.append(number)
            if stop.is_set():
                return

    pushing = threading.Thread(target=push)
    pushing.start()
    while len(confirmed) < 4:
        time.sleep(0.01)
    server.kill()
    server.wait()
    stop.set()
    # The same ports: what the client is trying again reaches the new hub, with the URLs that the old one signed.
    with DevHub(folder, **ports):
        pushing.join(timeout=30)
        assert not pushing.is_alive()
        files = {name for name in api.list_repo_files(repo) if name.endswith(".bin")}
        assert {f"{number}.bin" for number in confirmed} <= files
        for name in files:
            got = Path(api.hf_hub_download(repo, name, cache_dir=cache)).read_bytes()
            assert got == _content(int(name.removesuffix(".bin")))
    with contextlib.closing(sqlite3.connect(folder / "hub.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _content(number: int) -> bytes:
    return b"%06d" % number * 200_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serving_stops_quietly_on_a_signal(folder: Path, number: signal.Signals) -> None:
    server, api, _ = _serve(folder)
    assert api.whoami()["name"] == "demo"
    server.send_signal(number)
    assert server.stdout is not None
    said = server.stdout.read()
    server.wait(timeout=60)
    if number == signal.SIGINT:
        assert (said, server.returncode) == ("stopped\n", 0)


def test_starting_and_stopping_are_quick(folder: Path) -> None:
    """In processor seconds, which a busy machine does not stretch: 0.05 for both on two cores of 2026."""
    DevHub(folder).__enter__().close()
    started = time.process_time()
    hub = DevHub(folder).__enter__()
    assert httpx2.get(hub.url).status_code == 200
    hub.close()
    hub.close()
    assert time.process_time() - started < 0.5


def test_a_hub_that_is_not_running_says_so(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="use it as a context manager"):
        _ = DevHub(folder).url


def test_the_hub_needs_neither_torch_nor_the_rest_of_the_package() -> None:
    code = """
import sys
import bot
before = set(sys.modules)
from bot.devhub import DevHub
import bot.devhub.web.app, bot.devhub.xet
loaded = {name for name in set(sys.modules) - before if name.partition(".")[0] in ("torch", "transformers", "bot")}
print(sorted(name for name in loaded if not name.startswith(("bot.devhub", "bot.metadata"))))  # the Hub's own lists
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
