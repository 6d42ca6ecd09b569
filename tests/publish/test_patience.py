"""A Hub that is busy, away or slow is waited for: by one policy, as long as it asks for, and not for ever."""

from __future__ import annotations

import email.utils
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from bot import signals
from bot.devhub import Fault
from bot.errors import Outside
from bot.events import Note
from bot.hub import HubBusy, retries, session
from bot.hub.retries import MOST, PAUSES, Step, rest, under_way
from tests.publish.given import BASE, TARGET, deliver
from tests.pull.given import hub_client, two_sentences

ROOT = Path(__file__).parents[2]


@pytest.fixture
def waits():
    """The pauses that were made, in seconds, none of which is waited for."""
    return []


@pytest.fixture
def patient(dev, tmp_path, waits):
    return hub_client(dev, tmp_path, patience=PAUSES, sleep=waits.append)


@pytest.mark.parametrize(
    ("headers", "least"),
    [
        ({"RateLimit": '"api";r=0;t=25', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, 25),
        ({"Retry-After": "40"}, 40),
        ({"Retry-After": "a date"}, 80),
    ],
)
@pytest.mark.parametrize("route", ["/commit/main", "/preupload/main", "/api/repos/create", "/api/validate-yaml"])
def test_the_wait_that_the_hub_asks_for_is_kept(dev, patient, waits, owner, folder, document, headers, least, route):
    if "a date" in headers.values():
        headers = {"Retry-After": email.utils.formatdate(time.time() + 90, usegmt=True)}
    dev.faults.add(Fault(path=route, method="POST", status=429, headers=headers))
    assert deliver(folder, document, patient).status == "published"
    assert owner.titles() == ["Merge demo/adapter into demo/base", "initial commit"]
    [waited] = waits
    assert least < waited < least + 15


def test_a_wait_that_is_too_long_is_told_instead(dev, patient, waits, owner, folder, document):
    owner.existing()
    dev.faults.add(Fault(path="/commit/main", status=429, times=None, headers={"Retry-After": f"{MOST:.0f}"}))
    with pytest.raises(HubBusy) as caught:
        deliver(folder, document, patient, how="push")
    two_sentences(caught.value, what="rate limit", do=f"again in {MOST:.0f} seconds")
    assert caught.value.exit_code == 5
    assert waits == []


def test_a_limit_of_another_kind_that_has_something_left_is_no_wait(dev, patient, waits, folder, document):
    dev.faults.add(Fault(path="/commit/main", status=503, headers={"RateLimit": '"api";r=400;t=300'}))
    assert deliver(folder, document, patient).status == "published"
    assert waits[0] < 2


@pytest.mark.parametrize("route", ["/preupload/main", "/upload", "/commit/main", f"/api/models/{TARGET}/tree"])
def test_two_policies_do_not_multiply(dev, patient, waits, owner, folder, document, monkeypatch, route):
    owner.existing()
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("the client waited by itself"))
    fault = dev.faults.add(Fault(path=route, status=500, times=None))
    with pytest.raises(HubBusy):
        deliver(folder, document, patient, how="push")
    shards = 2 if route == "/upload" else 1  # each is a request of its own, side by side
    assert dev.faults.hits(fault) == shards * (1 + len(PAUSES))
    assert len(waits) == shards * len(PAUSES)
    assert sum(waits) < shards * MOST


@pytest.mark.parametrize("status", [401, 403, 404, 422])
def test_what_will_not_pass_is_not_tried_again(dev, patient, waits, owner, folder, document, status):
    owner.existing()
    fault = dev.faults.add(Fault(path="/commit/main", status=status, times=None))
    with pytest.raises(Outside):
        deliver(folder, document, patient, how="push")
    assert dev.faults.hits(fault) == 1
    assert waits == []


def test_a_long_wait_is_told(dev, patient, folder, document):
    notes = []
    dev.faults.add(Fault(path="/commit/main", status=429, headers={"Retry-After": "40"}))
    deliver(folder, document, patient, emit=notes.append)
    [said] = [note.text for note in notes if isinstance(note, Note) and "Trying again" in note.text]
    assert said.startswith(f"Could not commit to {TARGET}: the Hub's rate limit is reached. Trying again in 4")


def test_an_upload_that_the_storage_has_not_told_of_is_made_again(dev, patient, waits, owner, folder, document):
    """The Hub says 400 to a commit whose file its storage lost, or has not reported yet."""
    owner.existing()
    lost = []

    def lose(event):
        if type(event).__name__ == "StepProgress" and event.done and not lost:
            with dev.site.db.write() as rows:
                lost.append(rows.execute("DELETE FROM holding").rowcount)

    assert deliver(folder, document, patient, how="push", emit=lose).status == "published"
    assert lost > [1]
    assert len(waits) == 1
    assert owner.titles()[0] == "Merge demo/adapter into demo/base"


def test_a_place_in_the_storage_that_has_expired_is_asked_for_anew(dev, patient, waits, owner, folder, document):
    fault = dev.faults.add(Fault(path="/upload", method="PUT", origin="cdn", status=403))
    assert deliver(folder, document, patient).status == "published"
    assert dev.faults.hits(fault) == 1
    assert waits == []


def test_a_repo_whose_owner_is_changing_another_is_waited_for(dev, patient, waits, folder, document):
    body = '{"error": "Cannot create repo: another conflicting operation is in progress"}'
    dev.faults.add(Fault(path="/api/repos/create", status=409, body=body, times=2))
    assert deliver(folder, document, patient).status == "published"
    assert len(waits) == 2


def test_a_large_file_goes_on_from_the_part_that_failed(dev, patient, waits, owner, folder, document):
    object.__setattr__(dev.site, "part_size", 100)

    def parts():
        return sum(method == "PUT" and path == "/upload" for method, path, _ in dev.requests)

    before = parts()
    assert deliver(folder, document, patient).status == "published"
    whole = parts() - before
    owner.api.delete_repo(TARGET)
    dev.faults.add(Fault(path="/upload", origin="cdn", status=503, skip=3))
    assert deliver(folder, document, patient).status == "published"
    assert whole > 6
    assert parts() - before - whole == whole + 1
    assert len(waits) == 1


def test_no_call_waits_for_ever(dev, patient, monkeypatch, folder, document):
    """Some of the client's calls ask for no time limit at all."""
    monkeypatch.setattr(session, "QUICK", httpx2.Timeout(0.2))
    dev.faults.add(Fault(path=f"/api/models/{TARGET}$", delay=1.0, times=2))
    began = time.monotonic()
    assert patient.target(TARGET) is None
    assert time.monotonic() - began < 1.5


def test_each_thread_is_in_its_own_step(patient):
    """What one gives up is nothing to the other; a thread of the client, which is in none, belongs to the newest."""
    where = patient.where("look")
    mine, theirs = (Step(patient.patience, where, publishing=False) for _ in range(2))
    entered, done = threading.Event(), threading.Event()

    def other():
        with theirs:
            entered.set()
            done.wait(5)

    def of_the_client():
        found.append(under_way())

    found = []
    thread = threading.Thread(target=other)
    with mine:
        thread.start()
        entered.wait(5)
        assert under_way() is mine
        third = threading.Thread(target=of_the_client)
        third.start()
        third.join(5)
    assert found == [theirs]
    done.set()
    thread.join(5)
    assert under_way() is None


def test_the_token_does_not_follow_a_list_to_another_host(dev, patient, owner):
    owner.existing()
    asked = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Authorization"))
            body = b"[]"
            self.send_response(200)
            if self.path == "/next?p=1":
                self.send_header("Link", f'<http://{self.headers["Host"]}/next?p=2>; rel="next"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
        link = f'<http://127.0.0.1:{elsewhere.server_port}/next?p=1>; rel="next"'
        dev.faults.add(Fault(path="/commits/main", headers={"Link": link}, times=2))
        assert len(patient.commit_messages(TARGET)) == 2
        assert asked == [None, None]
        dev.faults.add(Fault(path="/tree/", headers={"Link": link}))
        assert "model.safetensors" in patient.target(TARGET).files
        assert asked == [None] * 4
        elsewhere.shutdown()


def test_the_token_follows_a_list_on_its_own_host(dev, patient, owner):
    owner.existing()
    owner.api.update_repo_settings(TARGET, private=True)
    link = f'<{dev.url}/api/models/{TARGET}/commits/main?p=7>; rel="next"'
    dev.faults.add(Fault(path="/commits/main", headers={"Link": link}))
    assert len(patient.commit_messages(TARGET)) == 2


@pytest.mark.parametrize("route", ["/upload", "/commit/main"])
def test_an_upload_or_a_commit_that_stalls_is_sent_again(dev, folder, document, tmp_path, monkeypatch, route):
    """With all times a three hundredth of what they are."""
    limit, rate = session.LIMITS.read, 300
    monkeypatch.setattr(session, "LIMITS", httpx2.Timeout(limit / rate))
    monkeypatch.setattr(retries, "MOST", MOST / rate)
    quick = hub_client(dev, tmp_path, patience=tuple(pause / rate for pause in PAUSES))
    fault = dev.faults.add(Fault(path=route, delay=1.3 * limit / rate))
    assert deliver(folder, document, quick).status == "published"
    assert dev.faults.hits(fault) == 1


def test_a_read_of_bytes_that_stalls_is_asked_again(dev, owner, patient, monkeypatch):
    """Planning reads headers so, by the dozen."""
    monkeypatch.setattr(session, "QUICK", httpx2.Timeout(0.2))
    patient.target(BASE)
    sha = owner.api.model_info(BASE).sha
    dev.faults.add(Fault(path="/resolve/", delay=2.0))
    began = time.monotonic()
    assert patient.read_span(BASE, sha, "config.json", 0, 2) == b"{}"
    assert time.monotonic() - began < 1.5


def test_a_wait_in_a_thread_of_the_client_ends_with_the_program(monkeypatch):
    def wait():
        with pytest.raises(KeyboardInterrupt):
            rest(60.0)

    thread = threading.Thread(target=wait)
    thread.start()
    monkeypatch.setattr(signals, "_received", ended := threading.Event())
    ended.set()
    thread.join(timeout=5)
    assert not thread.is_alive()


@pytest.mark.parametrize("route", ["/commit/main", "/upload"])
def test_ctrl_c_ends_a_wait_at_once(dev, folder, document, tmp_path, route):
    """Also one that threads of the client are in."""
    dev.faults.add(Fault(path=route, status=429, times=None, headers={"Retry-After": "200"}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= dev.environment() | {"HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "bot", "publish", str(folder), "--to", TARGET]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT) as run:
        assert run.stderr is not None
        said = next(line for line in run.stderr if "Trying again" in line)
        assert "the Hub's rate limit is reached. Trying again in 20" in said
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=60) == 130
        assert time.monotonic() - began < 4  # of five, after which the program is ended without order
