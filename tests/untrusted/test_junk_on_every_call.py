"""Whatever the Hub answers to whichever call of a command, it ends with exit 0 or 5 and in sentences, never as our bug."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from bot.devhub import Fault
from tests.stories.conftest import Command, World, adapter_merge, tiny, world

__all__ = ["adapter_merge", "tiny", "world"]
SHA = "1" * 40
JUNK = (
    "null", "5", '"x"', "[]", "{}", "[[1]]", '{"error": {"a": [1]}}', '[{"path": 1}]', '{"id": 5, "sha": [], "name": {}}',
    f'{{"id": "demo/adapter", "sha": "{SHA}", "siblings": [{{"a": 1}}], "private": "yes"}}', '{"tags": 5, "branches": {"a": 1}}',
    '{"files": [5], "commitOid": []}', '{"name": "a", "auth": [1], "orgs": {"a": 5}}',
    '{"name": "a", "auth": {"accessToken": {"role": [], "fineGrained": {"scoped": [5], "global": 7}}}}',
    '{"discussions": {"a": 5}, "count": [], "start": "x"}', '{"num": [], "events": 5, "title": null}',
    '{"objects": [{"actions": 5}], "transfer": 7}', "<html>\x1b[2Ja proxy</html>", "",
)  # fmt: skip
# One form of each call that a first run makes, and of those that a later one makes.
NEW = (
    r"GET /api/whoami-v2",
    r"GET /api/models/demo/adapter$",
    r"GET /api/models/demo/adapter/tree/",
    r"GET /api/models/demo/adapter/refs",
    r"GET /api/models/demo/base$",
    r"GET /api/models/demo/base/tree/",
    r"GET /api/models/demo/adapter-merged(\?|$)",
    r"POST /api/repos/create",
    r"POST /api/validate-yaml",
    r"POST .*/preupload/",
    r"POST .*/info/lfs/objects/batch",
    r"POST .*/commit/main",
    r"GET /api/models/demo/adapter-merged/(tree|revision|refs|commits)",
    r"(GET|HEAD) .*/resolve(-cache)?/",
)
OLD = (
    r"GET .*/discussions\?", r"GET .*/discussions/\d", r"POST .*/discussions$", r"POST .*/status$", r"POST .*/commit/refs",
    r"GET .*/auth-check", r"GET /api/models/demo/adapter-merged/tree/", r"GET .*/commits/",
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two worlds that were made within one second have the same commits: what one has fetched, the other would not ask for."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))


def some_of(bodies: tuple[str, ...], call: str) -> tuple[str, ...]:
    """A third of them, another third for other calls: all of them for every call takes minutes."""
    return bodies[len(call) % 3 :: 3]


def spoil(world: World, call: str, body: str, status: int) -> Fault:
    world.hub.faults.clear()
    method, _, path = call.partition(" ")
    name = None if "|" in method else method
    headers = {"Content-Type": "application/json"}
    return world.hub.faults.add(
        Fault(path=path, method=name, status=status, times=None, body=body, headers=headers, origin="hub")
    )


def ends_well(adapter_merge: Command, *arguments: str | Path) -> int:
    ran = adapter_merge(*arguments)
    assert ran.code in (0, 3, 5), f"{ran.code}: {ran.err[-2000:]}"  # 3: an empty list is an answer, of an empty repo
    assert "Traceback" not in ran.err
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", ran.err.replace("\r", "")), "what it said was not escaped"
    return ran.code


@pytest.mark.parametrize("call", NEW)
def test_a_first_run(call: str, world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    spoilt = 0
    for number, body in enumerate(some_of(JUNK, call)):
        fault = spoil(world, call, body, 400 if number % 5 == 4 else 200)
        target = f"demo/merged-{number}" if "adapter-merged" not in call else "demo/adapter-merged"
        ends_well(adapter_merge, "run", "demo/adapter", "--to", target, "--verify", "files", "--quiet")
        spoilt += world.hub.faults.hits(fault)
    assert spoilt, [path for _, path, _ in world.hub.requests[-40:]]


@pytest.mark.parametrize("call", OLD)
def test_a_run_on_a_target_that_exists(
    call: str, world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    world.api.create_repo("demo/adapter-merged")
    world.api.upload_file(repo_id="demo/adapter-merged", path_in_repo="notes.txt", path_or_fileobj=b"mine")
    how = "push" if "auth-check" in call else "auto"
    for number, body in enumerate(some_of(JUNK, call)):
        spoil(world, call, body, 400 if number % 5 == 4 else 200)
        ends_well(adapter_merge, "run", "demo/adapter", "--publish", how, "--verify", "files", "--quiet")


@pytest.mark.parametrize("call", [r"GET /api/models/demo/base", r"GET /api/models/demo/adapter/", r"GET .*/commits/"])
def test_plan_and_verify(
    call: str, world: World, adapter_merge: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    made = tmp_path / "made"
    assert adapter_merge("merge", "demo/adapter", "-o", made, "--verify", "files", "--quiet").code == 0
    for body in some_of(JUNK, call):
        spoil(world, call, body, 200)
        ends_well(adapter_merge, "plan", "demo/adapter", "--quiet")
        ends_well(adapter_merge, "verify", made, "--verify", "files", "--quiet")
        ends_well(adapter_merge, "publish", made, "--to", "demo/new", "--dry-run", "--quiet")


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries."""
    monkeypatch.setattr("bot.hub.retries.rest", lambda seconds: None)
    monkeypatch.setattr("bot.hub.connection.rest", lambda seconds: None, raising=False)
    monkeypatch.setattr("bot.hub.connection.Patience.__init__.__defaults__", ((), lambda seconds: None))
