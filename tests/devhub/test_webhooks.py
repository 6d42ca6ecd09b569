"""Webhooks: their settings, and real deliveries."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi, WebhookPayload
from huggingface_hub.errors import HfHubHTTPError

from bot.devhub import DevHub


class Receiver(http.server.ThreadingHTTPServer):
    """Notes what is posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Note)
        self.received: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.answers: list[int] = []  # the next ones; then 204

    @property
    def url(self) -> str:
        """Where to post."""
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Note(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Receiver)
        self.server.received.append((dict(self.headers), json.loads(body)))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the tests quiet."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A server that takes deliveries."""
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def _events(receiver: Receiver) -> list[tuple[str, str]]:
    return [(body["event"]["scope"], body["event"]["action"]) for _, body in receiver.received]


def test_a_tag_push_is_delivered_with_its_secret_and_the_ref(
    hub: DevHub, api: HfApi, repo: str, receiver: Receiver
) -> None:
    made = api.create_webhook(
        url=receiver.url, watched=[{"type": "model", "name": repo}], domains=["repo"], secret="s3cret"
    )
    commit = api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo)
    api.create_tag(repo, tag="v1.0")
    api.delete_tag(repo, tag="v1.0")
    api.create_discussion(repo, "not of this domain")
    assert [d.status for d in hub.drain_webhooks()] == [204, 204, 204]
    assert _events(receiver) == [("repo.content", "update")] * 3
    headers, tagged = receiver.received[1]
    assert headers["X-Webhook-Secret"] == "s3cret"
    assert tagged["updatedRefs"] == [{"ref": "refs/tags/v1.0", "oldSha": None, "newSha": commit.oid}]
    assert tagged["repo"]["headSha"] == commit.oid
    assert tagged["webhook"] == {"id": made.id, "version": 3}
    assert receiver.received[2][1]["updatedRefs"][0]["newSha"] is None
    payload = WebhookPayload(**tagged)
    assert (payload.repo.name, payload.event.scope) == (repo, "repo.content")


def test_pull_requests_and_comments_are_delivered(hub: DevHub, api: HfApi, repo: str, receiver: Receiver) -> None:
    api.create_webhook(url=receiver.url, watched=[{"type": "user", "name": "demo"}], domains=["discussion"])
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo, create_pr=True)
    said = api.comment_discussion(repo, 1, "well done")
    api.merge_pull_request(repo, 1)
    hub.drain_webhooks()
    assert _events(receiver) == [("discussion", "create"), ("discussion.comment", "create"), ("discussion", "update")]
    bodies = [WebhookPayload(**body) for _, body in receiver.received]
    assert bodies[1].comment is not None
    assert (bodies[1].comment.id, bodies[1].comment.content) == (said.id, "well done")
    assert bodies[2].discussion is not None
    assert (bodies[2].discussion.num, bodies[2].discussion.status) == (1, "merged")


def test_repos_that_come_move_and_go_are_delivered(hub: DevHub, api: HfApi, receiver: Receiver) -> None:
    api.create_webhook(url=receiver.url, watched=[{"type": "user", "name": "demo"}], domains=["repo"])
    api.create_repo("demo/new")
    api.update_repo_settings("demo/new", private=True)
    api.move_repo("demo/new", "demo/newer")
    api.delete_repo("demo/newer")
    hub.drain_webhooks()
    expected = [("repo", "create"), ("repo.config", "update"), ("repo", "move"), ("repo", "delete")]
    assert _events(receiver) == expected
    assert receiver.received[2][1]["movedTo"]["name"] == "demo/newer"


def test_a_delivery_that_fails_is_recorded_and_disturbs_nobody(hub: DevHub, api: HfApi, repo: str) -> None:
    for url in ("http://127.0.0.1:1/hook", hub.url + "/nothing/here/at/all", "not a url"):
        api.create_webhook(url=url, watched=[{"type": "model", "name": repo}])
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo)
    log = hub.drain_webhooks()
    first = [d for d in log if d.attempt == 1]
    assert [d.status for d in first] in ([None, 404, None], [None, 405, None])
    assert all(d.error for d in log)


def test_what_is_refused_is_sent_again_under_the_same_id(
    hub: DevHub, api: HfApi, repo: str, receiver: Receiver
) -> None:
    receiver.answers = [500, 302, 202]
    api.create_webhook(url=receiver.url, watched=[{"type": "model", "name": repo}], domains=["repo"])
    api.create_tag(repo, tag="v1")
    log = hub.drain_webhooks()
    assert [(d.status, d.attempt) for d in log] == [(500, 1), (302, 2), (202, 3)]
    assert len({headers["Webhook-Id"] for headers, _ in receiver.received}) == 1
    api.create_tag(repo, tag="v2")
    assert len({d.id for d in hub.drain_webhooks()}) == 2


def test_a_replay_has_the_id_of_what_it_repeats_and_goes_where_the_webhook_leads_now(
    hub: DevHub, api: HfApi, repo: str, receiver: Receiver
) -> None:
    watched = [{"type": "model", "name": repo}]
    made = api.create_webhook(url=receiver.url, watched=watched, domains=["repo"], secret="old")
    api.create_tag(repo, tag="v1")
    (delivery,) = hub.drain_webhooks()
    api.update_webhook(made.id, watched=watched, secret="new")
    hub.replay(delivery.id)
    hub.drain_webhooks()
    (first, body), (again, same) = receiver.received
    assert (first["Webhook-Id"], body) == (again["Webhook-Id"], same)
    assert (first["X-Webhook-Secret"], again["X-Webhook-Secret"]) == ("old", "new")


def test_a_webhook_that_is_refused_again_and_again_is_suspended_until_it_is_enabled(
    hub: DevHub, api: HfApi, repo: str, receiver: Receiver
) -> None:
    receiver.answers = [400] * hub.site.deliveries.suspended_after
    made = api.create_webhook(url=receiver.url, watched=[{"type": "model", "name": repo}], domains=["repo"])
    for number in range(hub.site.deliveries.suspended_after):
        assert not api.get_webhook(made.id).disabled or not receiver.answers
        api.create_tag(repo, tag=f"v{number}")
        hub.drain_webhooks(0.05)
    hub.drain_webhooks()
    assert api.get_webhook(made.id).disabled
    assert len(receiver.received) == hub.site.deliveries.suspended_after
    assert not api.enable_webhook(made.id).disabled
    api.create_tag(repo, tag="again")
    assert hub.drain_webhooks()[-1].status == 204


def test_an_author_of_a_comment_can_be_told_by_the_id_in_the_event(
    hub: DevHub, api: HfApi, repo: str, receiver: Receiver
) -> None:
    hub.create_org("acme", members=["demo"])
    api.create_webhook(url=receiver.url, watched=[{"type": "model", "name": repo}], domains=["discussion"])
    api.create_discussion(repo, "hello")
    api.comment_discussion(repo, 1, "/merge")
    hub.drain_webhooks()
    author = receiver.received[-1][1]["comment"]["author"]["id"]
    assert author == api.whoami()["id"]
    overview = httpx2.get(f"{hub.url}/api/users/demo/overview").json()
    members = httpx2.get(f"{hub.url}/api/organizations/acme/members").json()
    assert author == overview["_id"] == members[0]["_id"]
    assert [member.username for member in api.list_organization_members("acme")] == ["demo"]


def test_webhooks_are_listed_changed_switched_and_deleted(
    hub: DevHub, api: HfApi, repo: str, receiver: Receiver
) -> None:
    watched = [{"type": "model", "name": repo}]
    made = api.create_webhook(url=receiver.url, watched=watched, domains=["repo", "discussion"], secret="one")
    assert api.get_webhook(made.id) == made
    assert api.update_webhook(made.id, url=receiver.url + "2", watched=watched, secret="two").secret == "two"
    assert api.disable_webhook(made.id).disabled
    api.create_tag(repo, tag="v1")
    assert hub.drain_webhooks() == []
    assert not api.enable_webhook(made.id).disabled
    assert [w.id for w in api.list_webhooks()] == [made.id]
    other = hub.create_token(hub.create_user("other"))
    assert api.list_webhooks(token=other) == []
    with pytest.raises(HfHubHTTPError):
        api.get_webhook(made.id, token=other)
    api.delete_webhook(made.id)
    assert api.list_webhooks() == []


def test_a_private_repos_events_go_to_its_own_watchers_only(hub: DevHub, api: HfApi, receiver: Receiver) -> None:
    api.create_repo("demo/secret", private=True)
    spy = HfApi(endpoint=hub.url, token=hub.create_token(hub.create_user("spy")))
    spy.create_webhook(url=receiver.url, watched=[{"type": "model", "name": "demo/secret"}])
    api.create_tag("demo/secret", tag="v1")
    assert hub.drain_webhooks() == []
