"""How fast the bot answers: `adapter-merge serve` in a process of its own, deliveries over HTTP from another one.

    python bench/bot.py [--deliveries 5000] [--clients 16]

Prints the seconds from the start of the process to its first line and to its first answer, the deliveries per second that it sustains
(each on the disk before it is answered), the latencies, its memory afterwards, and checks that nothing was lost or doubled. The
dispatcher works beside it: the Hub that it asks does not answer, so that every request stays in the outbox.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

SECRET = "bench"


def payload(tag: str) -> bytes:
    """A tag was created, as the Hub tells it."""
    return json.dumps({
        "event": {"action": "update", "scope": "repo.content"},
        "repo": {"type": "model", "name": "demo/adapter", "id": "621ffdc036468d709f17434d", "private": False, "headSha": "a" * 40,
                 "url": {"web": "https://huggingface.co/demo/adapter", "api": "https://huggingface.co/api/models/demo/adapter"},
                 "owner": {"id": "628b753283ef59b5be89e937"}},
        "webhook": {"id": "6390e855e30d9209411de93b", "version": 3},
        "updatedRefs": [{"ref": f"refs/tags/{tag}", "oldSha": None, "newSha": "a" * 40}],
    }).encode()  # fmt: skip


def deliver(connection: http.client.HTTPConnection, name: str, tag: str) -> int:
    """One delivery; the answer's status."""
    connection.request("POST", "/webhook", payload(tag), {"X-Webhook-Secret": SECRET, "Webhook-Id": name})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def burst(port: int, numbers: range, clients: int, results: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    """Deliver these from `clients` threads; each delivery a connection of its own, as the Hub's are."""
    todo = iter(numbers)
    lock, took, statuses = threading.Lock(), [], []

    def work() -> None:
        while True:
            with lock:
                number = next(todo, None)
            if number is None:
                return
            begun = time.perf_counter()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            status = deliver(connection, f"id {number}", f"v{number}")
            connection.close()
            with lock:
                took.append(time.perf_counter() - begun)
                statuses.append(status)

    begun = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((time.perf_counter() - begun, sorted(took), statuses))


def main() -> None:
    """Measure, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deliveries", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=16)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "bot.db"
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
            str(state),
        ]
        environment = os.environ | {"ADAPTER_MERGE_WEBHOOK_SECRET": SECRET, "HF_ENDPOINT": "http://127.0.0.1:9"}
        begun = time.perf_counter()
        server = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert server.stdout is not None
        line = server.stdout.readline()
        listening = time.perf_counter() - begun
        port = int(line.partition("/webhook")[0].rpartition(":")[2])
        first = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        assert deliver(first, "first", "first") == 202
        answered = time.perf_counter() - begun
        before = psutil.Process(server.pid).memory_info().rss
        results: multiprocessing.Queue = multiprocessing.Queue()  # type: ignore[type-arg]
        sender = multiprocessing.Process(target=burst, args=(port, range(chosen.deliveries), chosen.clients, results))
        sender.start()
        seconds, took, statuses = results.get()
        sender.join()
        after = psutil.Process(server.pid).memory_info().rss
        cpu = sum(psutil.Process(server.pid).cpu_times()[:2])
        server.terminate()
        code = server.wait(30)
        with sqlite3.connect(state) as rows:
            kept = rows.execute("SELECT count(*), count(DISTINCT key) FROM requests").fetchone()
            deliveries = rows.execute("SELECT count(*) FROM deliveries").fetchone()[0]
    assert statuses == [202] * chosen.deliveries, set(statuses)
    assert kept == (chosen.deliveries + 1, chosen.deliveries + 1), kept
    assert deliveries == chosen.deliveries + 1
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    print(f"start to the first line {listening:.2f} s, to the first answer {answered:.2f} s")
    print(
        f"{chosen.deliveries} deliveries by {chosen.clients} clients in {seconds:.2f} s: {chosen.deliveries / seconds:.0f} per second"
    )
    print(
        f"median {took[len(took) // 2] * 1e3:.1f} ms, 99 % {took[len(took) * 99 // 100] * 1e3:.1f} ms, slowest {took[-1] * 1e3:.1f} ms"
    )
    print(
        f"memory {before / 2**20:.0f} MiB before, {after / 2**20:.0f} MiB after; {cpu:.1f} processor seconds; ended with {code}"
    )


if __name__ == "__main__":
    main()
