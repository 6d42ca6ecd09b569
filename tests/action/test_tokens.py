"""Tokens: each where it belongs, none where anybody could read it; and none at all for a trusted publisher."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from huggingface_hub import HfApi
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from bot.action.tokens import read_tokens
from bot.devhub import DevHub, Fault
from bot.devhub.web.app import Front
from tests.action.conftest import Runner, Step
from tests.gh.fake import TOKEN, FakeGitHub
from tests.stories.conftest import World

Run = Callable[..., Step]
MERGED = "demo/adapter-merged"


def files_below(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            yield path.read_bytes()


def assert_unseen(secret: str, step: Step, runner: Runner, world: World) -> None:
    assert secret not in step.log + step.summary + json.dumps(step.outputs)
    assert not [True for content in files_below(runner.temp) if secret.encode() in content]
    for name in ("README.md", "verification.json"):
        assert secret not in Path(world.api.hf_hub_download(MERGED, name)).read_text()


def test_no_token_is_left_anywhere(run: Run, runner: Runner, world: World, github: FakeGitHub) -> None:
    read = world.hub.create_token("demo", "read")
    step = run(hf_read_token=read, report="check-run, status, hub-comment")
    assert step.code == 0, step.log
    for secret in (world.hub.token, read, TOKEN):
        assert f"::add-mask::{secret}\n" in step.raw
        assert_unseen(secret, step, runner, world)
        assert secret not in str(github.kept)


@pytest.mark.parametrize("broken", ["hf_token", "hf_read_token"])
def test_a_token_that_is_refused_is_not_shown_either(broken: str, run: Run, runner: Runner) -> None:
    secret = "hf_" + "q" * 34
    step = run(**{broken: secret})
    assert step.code == 5
    assert secret not in step.log + step.summary + json.dumps(step.outputs)
    assert not [True for content in files_below(runner.temp) if secret.encode() in content]


def test_the_inputs_are_read_with_one_token_and_the_target_written_with_another(run: Run, world: World) -> None:
    for repo in ("demo/base", "demo/adapter"):
        world.api.update_repo_settings(repo, visibility="private")
    reader = world.hub.create_token("demo", "read", repos=["demo/base", "demo/adapter"])
    publisher = world.hub.create_user("publisher")
    writer = world.hub.create_token(publisher, "write")
    assert run(hf_token=writer, target_repo="publisher/merged").code == 5
    step = run(hf_token=writer, hf_read_token=reader, target_repo="publisher/merged")
    assert step.code == 0, step.log
    assert HfApi(world.hub.url, token=writer).model_info("publisher/merged").private


def test_a_token_that_the_hub_does_not_tell_the_owner_of_can_push(run: Run, world: World) -> None:
    world.hub.faults.add(Fault(path="/api/whoami", status=403, times=None, body='{"error": "not for this token"}'))
    step = run(publish="push")
    assert step.code == 0, step.log
    assert (step.outputs["status"], step.annotations("warning")) == ("published", [])
    world.new_version("v2", seed=5)
    step = run(publish="pr")
    assert step.code == 5
    assert "does not say whose this token is" in step.annotations("error")[0]
    assert "Merging" not in step.log, "it was known before the work"


def test_a_plan_for_strangers_gets_no_token_that_can_write() -> None:
    env = {"INPUT_HF_TOKEN": "w", "HF_TOKEN": "w", "ACTIONS_ID_TOKEN_REQUEST_URL": "u", "INPUT_GITHUB_TOKEN": "g"}
    found = read_tokens(env, plan_only=True)
    assert (found.read, found.write, found.by_identity) == (False, False, False)
    assert read_tokens(env | {"INPUT_HF_READ_TOKEN": "r"}, plan_only=True).read == "r"


def test_tokens_are_not_shown_by_their_record() -> None:
    assert "hf_secret" not in repr(read_tokens({"INPUT_HF_TOKEN": "hf_secret"}, plan_only=False))


# --- trusted publishing -------------------------------------------------------------------------------------------


class TrustingHub:
    """The local Hub with what trusted publishing needs: GitHub's identity tokens, and their exchange on the Hub."""

    def __init__(self, hub: DevHub) -> None:
        self._hub, self._front = hub, Front(hub.site)
        self.trusted: set[str] = set()
        self.asked: list[dict[str, Any]] = []
        self.expires_at = ""  # a regex: the request before which the token that was given last ends
        self._last = ""

    def __enter__(self) -> TrustingHub:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(self._serve, interface="asgi3", lifespan="off", log_level="error", access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if scope["path"] == "/identity":
            assert request.headers["authorization"] == "Bearer ey.request"
            await JSONResponse({"value": f"ey.identity.for.{request.query_params['audience']}"})(scope, receive, send)
        elif scope["path"] == "/oauth/token":
            await self._exchange(await request.json())(scope, receive, send)
        else:
            if self.expires_at and re.search(self.expires_at, f"{scope['method']} {scope['path']}"):
                self._hub.revoke_token(self._last)  # which is answered as one that has ended
                self.expires_at = ""
            await self._front(scope, receive, send)

    def _exchange(self, found: dict[str, Any]) -> JSONResponse:
        self.asked.append(found)
        if found["resource"] not in self.trusted or not found["subject_token"].startswith("ey.identity"):
            words = "no trusted publisher matches the claims"
            return JSONResponse({"error": "invalid_grant", "error_description": words}, status_code=400)
        token = self._hub.create_token("demo", "write", repos=[found["resource"]], identity=True)
        self._last = token
        return JSONResponse({"access_token": token, "token_type": "bearer", "expires_in": 3600})

    def environment(self) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.url,
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.url}/identity",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "ey.request",
        }


@pytest.fixture
def trusting(world: World) -> Iterator[TrustingHub]:
    with TrustingHub(world.hub) as hub:
        yield hub


def test_a_trusted_publisher_needs_no_token(
    trusting: TrustingHub, runner: Runner, world: World, tmp_path: Path
) -> None:
    world.api.create_repo(MERGED)
    trusting.trusted.add(MERGED)
    runner.environment |= trusting.environment() | {"HF_HOME": str(tmp_path / "home")}
    step = runner.process("all", adapter="demo/adapter@v1", verify="weights")
    assert step.code == 0, step.log
    assert (step.outputs["status"], step.outputs["tag"]) == ("published", "v1")
    assert {found["resource"] for found in trusting.asked} == {MERGED}
    assert trusting.asked[0]["subject_token"] == f"ey.identity.for.{trusting.url}"
    assert "hf_" not in step.raw


def test_an_identity_that_the_hub_does_not_trust_says_what_it_claims(
    trusting: TrustingHub, runner: Runner, world: World, tmp_path: Path
) -> None:
    runner.environment |= trusting.environment() | {"HF_HOME": str(tmp_path / "home")}
    step = runner.process("all", adapter="demo/adapter@v1", verify="weights")
    assert step.code == 5
    (error,) = step.annotations("error")
    for words in (f"trusted publisher of {MERGED}", "no trusted publisher matches", "octo/adapters", "merge.yml"):
        assert words in error
    assert "Merging" not in step.log, "it was known before the work"


def exchanged(trusting: TrustingHub, runner: Runner, tmp_path: Path) -> Run:
    """The action as a trusted publisher of the merged repo."""
    trusting.trusted.add(MERGED)
    runner.environment |= trusting.environment() | {"HF_HOME": str(tmp_path / "home")}
    return lambda **inputs: runner.process("all", verify="weights", **inputs)


def test_whose_an_identitys_token_is_the_hub_need_not_say(
    trusting: TrustingHub, runner: Runner, world: World, tmp_path: Path
) -> None:
    """The second version is proposed, the third run finds that without a download: our commits on main say who we are."""
    world.api.create_repo(MERGED)
    run = exchanged(trusting, runner, tmp_path)
    assert run(adapter="demo/adapter@v1").outputs["status"] == "published"
    world.new_version("v2", seed=5)
    step = run(adapter="demo/adapter@v2")
    assert step.code == 0, step.log
    assert (step.outputs["status"], step.outputs["pr-number"]) == ("published", "1")
    step = run(adapter="demo/adapter@v2")
    assert (step.outputs["status"], step.outputs["pr-number"]) == ("unchanged", "1")
    assert "Merging" not in step.log
    refused = [status for _, path, status in world.hub.requests if "whoami" in path]
    assert set(refused) == {403}


def test_a_filled_target_that_is_not_ours_gets_a_pull_request_from_a_nameless_identity(
    trusting: TrustingHub, runner: Runner, world: World, tmp_path: Path
) -> None:
    world.api.create_repo(MERGED)
    world.api.upload_file(path_or_fileobj=b"theirs", path_in_repo="notes.txt", repo_id=MERGED)
    step = exchanged(trusting, runner, tmp_path)(adapter="demo/adapter@v1")
    assert step.code == 0, step.log
    assert (step.outputs["status"], step.outputs["pr-number"]) == ("published", "1")


@pytest.mark.parametrize("when", [r"POST .*/commit/", r"POST .*/preupload/", r"\.git/info/lfs"])
def test_a_token_that_ends_while_it_publishes_is_exchanged_once_more(
    when: str, trusting: TrustingHub, runner: Runner, world: World, tmp_path: Path
) -> None:
    world.api.create_repo(MERGED)
    run = exchanged(trusting, runner, tmp_path)
    trusting.expires_at = when
    step = run(adapter="demo/adapter@v1")
    assert step.code == 0, step.log
    assert trusting.expires_at == "", "it has ended"
    assert (step.outputs["status"], step.outputs["tag"]) == ("published", "v1")
    assert len(world.api.list_repo_commits(MERGED)) == 2, "the first of the repo, and ours"


def test_an_identity_is_exchanged_anew_when_publishing_begins(
    trusting: TrustingHub, runner: Runner, world: World, tmp_path: Path
) -> None:
    """In one process, too: the token of the preflight may have minutes left."""
    world.api.create_repo(MERGED)
    step = exchanged(trusting, runner, tmp_path)(adapter="demo/adapter@v1")
    assert step.code == 0, step.log
    assert [found["resource"] for found in trusting.asked] == [MERGED, MERGED]


def test_an_identity_that_is_no_longer_trusted_ends_with_its_own_words(
    trusting: TrustingHub, runner: Runner, world: World, tmp_path: Path
) -> None:
    world.api.create_repo(MERGED)
    run = exchanged(trusting, runner, tmp_path)
    assert runner.process("preflight", adapter="demo/adapter@v1", verify="weights").code == 0
    for phase in ("fetch", "merge"):
        assert runner.process(phase, adapter="demo/adapter@v1", verify="weights").code == 0
    trusting.trusted.clear()
    step = runner.process("publish", adapter="demo/adapter@v1", verify="weights")
    assert step.code == 5
    assert "did not accept this job as a trusted publisher" in step.annotations("error")[0]
    assert step.outputs["status"] == "failed"
    assert (Path(step.outputs["folder"]) / "verification.json").exists()
    assert run  # the same job


def test_a_token_that_is_given_wins_over_the_identity(trusting: TrustingHub, run: Run, runner: Runner) -> None:
    runner.environment |= trusting.environment()
    step = run()
    assert step.code == 0, step.log
    assert trusting.asked == []
