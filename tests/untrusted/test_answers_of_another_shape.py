"""A Hub, or what stands in its place, that answers junk: exit 5, in a sentence, with what it said, cut and escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd

from bot.devhub import DevHub, Fault
from bot.errors import Outside
from bot.hub import Change, Hub
from bot.hub.response_shapes import is_path
from tests.pull.given import hub_client, put, write_adapter

REPO = "demo/x"
SHA = "1" * 40
BODIES: tuple[Any, ...] = (
    None, 5, "x", [], {}, [[1]], {"error": 5}, [{"path": 1}], {"id": 5, "sha": "x", "name": [1], "orgs": 5}, {"sha": SHA},
    {"id": REPO, "sha": "../../x", "siblings": 5}, {"id": REPO, "sha": SHA, "siblings": [{"a": 1}]},
    {"tags": [{"name": 1}], "branches": [{}]},
    {"files": [{"path": 5}]}, {"commitOid": 5, "commitUrl": []}, {"name": "a", "orgs": [5]}, {"name": "a",
    "auth": {"accessToken": {"fineGrained": 5}}},
    {"discussions": [5], "count": "x"}, {"num": "x", "events": [{}]}, b"<html>\x1b[2J<b>proxy</b>", b"\xff\xfe",
    b'{"a": "\\ud800"}', b"[" * 100_000,
)  # fmt: skip


def change() -> Change:
    return Change(repo=REPO, revision="main", parent=SHA, title="t", text="x", delete=())


def addition() -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path_in_repo="config.json", path_or_fileobj=b"{}")]


CALLS: dict[str, tuple[str, Callable[[Hub, Path], object]]] = {
    "whoami": ("/api/whoami", lambda hub, _: hub.whoami()),
    "info": (f"/api/models/{REPO}$", lambda hub, _: hub.pin(REPO)),
    "target": (f"/api/models/{REPO}$", lambda hub, _: hub.target(REPO)),
    "privacy": (f"/api/models/{REPO}$", lambda hub, _: hub.privacy(REPO)),
    "head": (f"/api/models/{REPO}/revision", lambda hub, _: hub.head(REPO)),
    "tree": ("/tree/", lambda hub, _: hub.target_files(REPO, "main")),
    "refs": ("/refs", lambda hub, _: hub.tags(REPO)),
    "preupload": ("/preupload/", lambda hub, folder: hub.upload(REPO, "main",
    {"x": folder / "adapter_config.json"}, pull_request=False, sent=print)),
    "commit": ("/commit/", lambda hub, _: hub.commit(change(), addition())),
    "create": ("/api/repos/create", lambda hub, _: hub.create("demo/new")),
    "discussions": ("/discussions", lambda hub, _: list(hub.my_pulls(REPO))),
    "discussion": ("/discussions/1", lambda hub, _: hub.pull(REPO, 1)),
    "open": ("/discussions", lambda hub, _: hub.open_draft(REPO, "t", "x")),
    "card": ("/api/validate-yaml", lambda hub, _: hub.check_card("---\na: b\n---\n")),
}  # fmt: skip


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("spoilt")
    with DevHub(root / "devhub") as dev:
        folder = write_adapter(root / "adapter")
        put(dev, REPO, folder)
        yield dev, hub_client(dev, root), folder


@pytest.fixture(autouse=True)
def honest(spoilt: tuple[DevHub, Hub, Path]) -> Iterator[None]:
    yield
    spoilt[0].faults.clear()


def attempt(call: Callable[[], object]) -> Outside | None:
    try:
        call()
    except Outside as error:
        return error
    return None


@pytest.mark.parametrize("name", CALLS)
def test_an_answer_of_another_shape_is_told(name: str, spoilt: tuple[DevHub, Hub, Path]) -> None:
    dev, hub, folder = spoilt
    path, call = CALLS[name]
    told = 0
    for body in BODIES:
        hub._who = None
        dev.faults.clear()
        text = body.decode("latin-1") if isinstance(body, bytes) else json.dumps(body)
        status = 400 if name == "card" else 200
        fault = dev.faults.add(
            Fault(path=path, status=status, times=None, body=text, headers={"Content-Type": "application/json"})
        )
        error = attempt(lambda: call(hub, folder))
        assert dev.faults.hits(fault), "nothing was spoilt"
        if error is not None:
            told += 1
            assert len(error.what) < 700
            assert error.what.isprintable()
            assert error.remedy
    assert told >= len(BODIES) / 2  # some is good enough an answer to some question


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a\\..\\x",
        "x\x00",
        "\ud800",
        "",
        ".",
        "a//b",
        "n" * 256,
        "d/" * 600 + "x",
        5,
    ],
)
def test_a_tree_that_leads_out_of_its_folder_is_no_tree(name: object, spoilt: tuple[DevHub, Hub, Path]) -> None:
    dev, hub, _ = spoilt
    entry = {"type": "file", "path": name, "size": 1, "oid": SHA}
    dev.faults.add(Fault(path="/tree/", status=200, times=None, body=json.dumps([entry])))
    with pytest.raises(Outside, match="what no Hub would") as caught:
        hub.pin(REPO)
    assert caught.value.what.isprintable()
    assert not is_path(name)


def test_the_sentence_quotes_what_was_said(spoilt: tuple[DevHub, Hub, Path]) -> None:
    dev, hub, _ = spoilt
    body = json.dumps({"message": "Sign in to the company\u2028proxy \x1b[2J hf_" + "a" * 34 + " " + "z" * 5000})
    dev.faults.add(Fault(path=f"/api/models/{REPO}$", status=200, times=None, body=body))
    with pytest.raises(Outside) as caught:
        hub.pin(REPO)
    assert "Sign in to the company" in caught.value.what
    assert "hf_a" not in caught.value.what
    assert len(caught.value.what) < 500


def test_ordinary_names_are_paths() -> None:
    for name in ("config.json", "a/b/c.safetensors", "chat template.jinja", "模型.txt", "LICENSE", "..."):
        assert is_path(name), name
