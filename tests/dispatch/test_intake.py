"""Deliveries over real HTTP: what is answered, and what is on the disk by then."""

from __future__ import annotations

import http.client
import json
import random
import resource
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bot.dispatch import webhook_intake
from bot.dispatch.allow import Allowed
from bot.dispatch.server import Settings, listen, make_app, make_server
from bot.dispatch.store import Store
from bot.dispatch.webhook_intake import LARGEST
from tests.dispatch.test_payload import OLD, payload, ref

SECRET = "a sécret of this test"
SETTINGS = Settings(secret=SECRET, allowed=Allowed.of(["alice/*"]), hub="https://hub.example")
Answer = tuple[int, dict[str, Any]]


class Client:
    """Delivers to the server at a port, as the Hub does."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.woken = threading.Event()

    def deliver(self, body: object, name: str | None = "one", secret: str | None = SECRET) -> Answer:
        headers = {"Content-Type": "application/json"}
        if secret is not None:
            headers["X-Webhook-Secret"] = secret.encode().decode("latin-1")
        if name is not None:
            headers["Webhook-Id"] = name
        return self.send(body if isinstance(body, bytes) else json.dumps(body).encode(), headers)

    def send(self, body: bytes, headers: dict[str, str], method: str = "POST", path: str = "/webhook") -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text.startswith(b"{") else {"text": text.decode()}
        finally:
            connection.close()

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


def head(length: int, secret: str = SECRET) -> bytes:
    return (
        f"POST /webhook HTTP/1.1\r\nHost: x\r\nX-Webhook-Secret: {secret}\r\nWebhook-Id: slow\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def serve(store: Store) -> Iterator[Client]:
    listener = listen("127.0.0.1", 0)
    client = Client(listener.getsockname()[1])
    server = make_server(make_app(store, SETTINGS, lambda comment: (), client.woken.set))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield client
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()
    listener.close()


@pytest.fixture
def client(store: Store) -> Iterator[Client]:
    yield from serve(store)


def test_a_tag_is_on_the_disk_when_it_is_answered(client: Client, store: Store) -> None:
    status, answer = client.deliver(payload(ref()))
    (request,) = store.requests()
    assert (status, answer) == (202, {"status": "accepted", "requests": [request.id]})
    assert client.woken.wait(5)
    (kept,) = store.deliveries()
    assert (kept.id, kept.repo, kept.verdict) == ("one", "alice/x", "accepted: v1")


def test_a_replay_is_answered_with_200_and_starts_nothing(client: Client, store: Store) -> None:
    client.deliver(payload(ref()))
    assert client.deliver(payload(ref()))[0] == 200
    assert client.deliver(payload(ref("refs/tags/v2"))) == (
        200,
        {"status": "ignored", "reason": "this delivery came before"},
    )
    assert len(store.requests()) == 1


def test_a_tag_that_is_known_from_another_delivery_is_answered_so(client: Client, store: Store) -> None:
    client.deliver(payload(ref()))
    assert client.deliver(payload(ref()), "two") == (
        200,
        {"status": "ignored", "reason": "all of it was asked for before"},
    )
    assert len(store.requests()) == 1


@pytest.mark.parametrize(
    "secret", [None, "", "wrong", SECRET + "x", SECRET[:-1], SECRET.upper(), "wröng", "\N{SNOWMAN}", "x" * 8000]
)
def test_a_wrong_secret_is_answered_with_401_and_leaves_no_trace(
    client: Client, store: Store, secret: str | None
) -> None:
    assert client.deliver(payload(ref()), secret=secret) == (401, {"status": "unauthorized"})
    assert not store.deliveries()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"), (b"no JSON", "not JSON"), (b"\xff\xfe{", "not JSON"), (b'{"a": NaN', "not JSON"), (b"[" * 5000, "not JSON"),
        (b'"\\ud800"', "not JSON"), (b"{}", "not a payload"), (payload(ref(old=OLD)), "no tag was created"),
        (payload(ref(), repo="mallory/x"), "not on the list"), (payload(ref(), kind="dataset"), "a dataset is no model"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_answered_with_200_and_the_reason(
    client: Client, store: Store, body: Any, reason: str
) -> None:
    status, answer = client.deliver(body)
    assert status == 200
    assert reason in answer["reason"]
    assert not store.requests()
    assert len(store.deliveries()) == 1  # shown on the page


def test_without_an_id_the_same_body_is_the_same_delivery(client: Client, store: Store) -> None:
    assert client.deliver(payload(ref()), name=None)[0] == 202
    assert client.deliver(payload(ref()), name="")[0] == 200
    assert client.deliver(payload(ref("refs/tags/v2")), name="i" * 1000)[0] == 202
    assert len(store.requests()) == 2


def test_a_megabyte_is_read_and_a_byte_more_is_ignored(client: Client, store: Store) -> None:
    body = json.dumps(payload(ref())).encode()
    assert client.deliver(body + b" " * (LARGEST - len(body)))[0] == 202
    status, answer = client.deliver(body + b" " * (LARGEST - len(body) + 1), name="two")
    assert (status, answer["reason"]) == (200, "larger than 1 MiB")
    status, answer = client.deliver(b" " * (20 * LARGEST), name="three")
    assert (status, answer["reason"]) == (200, "larger than 1 MiB")
    assert len(store.requests()) == 1


def test_a_body_that_does_not_come_is_given_up(client: Client, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_intake, "SLOWEST", 0.5)
    with client.raw() as slow:
        begun = time.monotonic()
        slow.sendall(head(100) + b"{")
        for _ in range(20):  # drop by drop: that counts as slow too
            time.sleep(0.05)
            slow.sendall(b" ")
            if time.monotonic() - begun > 0.45:
                break
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begun < 2
    assert not store.deliveries()
    assert client.deliver(payload(ref()))[0] == 202


def test_a_head_that_does_not_come_is_not_waited_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.dispatch.server.SLOWEST", 0.3)
    with client.raw() as silent, client.raw() as dribbling:
        dribbling.sendall(b"POST /webhook HT")
        assert silent.recv(1) == b""
        assert dribbling.recv(1) == b""


def test_a_client_that_goes_away_disturbs_nobody(client: Client, store: Store) -> None:
    for sent in (b"", b"POST", head(100), head(100) + b"{", head(2) + b"{}"):
        client.raw().close()
        with client.raw() as gone:
            gone.sendall(sent)
    assert client.deliver(payload(ref()))[0] == 202
    assert len(store.requests()) == 1


def test_other_methods_and_paths_do_nothing(client: Client, store: Store) -> None:
    assert client.send(b"", {}, "GET")[0] == 405
    assert client.send(b"", {}, "POST", "/")[0] == 405
    assert client.send(b"", {}, "GET", "/nowhere")[0] == 404
    assert client.send(b"", {}, "GET", "/healthz") == (200, {"status": "ok"})
    assert not store.deliveries()


def test_a_burst_with_replays_in_any_order_makes_one_request_for_each_tag(client: Client, store: Store) -> None:
    tags = 200
    chosen = random.Random(14)
    # Each tag by two webhooks, each of which retries and replays: five deliveries of it.
    sent = [(f"v{tag}", f"{tag}-{webhook}") for tag in range(tags) for webhook in ("a", "a", "a", "b", "b")]
    chosen.shuffle(sent)
    assert len(sent) == 1000

    def deliver(each: tuple[str, str]) -> int:
        return client.deliver(payload(ref(f"refs/tags/{each[0]}")), name=each[1])[0]

    with ThreadPoolExecutor(16) as pool:
        answers = Counter(pool.map(deliver, sent))
    assert answers == {202: tags, 200: 1000 - tags}
    requests = store.requests(10_000)
    assert sorted(str(request.order.revision) for request in requests) == sorted(f"v{tag}" for tag in range(tags))
    assert store.counts() == {"waiting": tags, "deliveries": 2 * tags}


def test_a_full_disk_is_answered_with_503_and_the_retry_with_202(client: Client, store: Store) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        status, answer = client.deliver(payload(ref()))
        health, _ = client.send(b"", {}, "GET", "/healthz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 503
    assert "cannot be written" in answer["reason"]
    assert health == 503
    assert not store.deliveries()
    assert client.deliver(payload(ref()))[0] == 202
    assert client.send(b"", {}, "GET", "/healthz")[0] == 200


def test_a_database_that_another_process_holds_is_waited_for(client: Client, store: Store) -> None:
    with sqlite3.connect(store.path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.deliver, payload(ref()))
            time.sleep(0.3)
            assert not answer.done()
            other.execute("COMMIT")
            assert answer.result(10)[0] == 202


def test_the_page_and_the_metrics_tell_of_what_came(client: Client, store: Store) -> None:
    client.deliver(payload(ref()))
    client.deliver(payload(ref()), secret="wrong")
    page = client.send(b"", {}, "GET", "/")[1]["text"]
    assert "alice/x" in page
    assert "sécret" not in page
    metrics = client.send(b"", {}, "GET", "/metrics")[1]["text"]
    assert 'adapter_merge_requests{state="waiting"} 1.0' in metrics
    assert 'adapter_merge_answers_total{status="202"} 1.0' in metrics
    assert 'adapter_merge_answers_total{status="401"} 1.0' in metrics
