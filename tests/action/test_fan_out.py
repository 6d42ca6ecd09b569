"""Several adapters in one run of merge.yml: what each job is given. The real client, against a local Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants

from bot.action.fan_out import MOST, merges_of
from bot.devhub import DevHub
from bot.errors import NotFound, Usage
from bot.hub import Hub

BASE = "demo/base"
BARRED = ("torch", "numpy", "safetensors", "transformers", "peft", "github", "requests", "starlette", "jinja2")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with DevHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def api(served: DevHub) -> HfApi:
    return HfApi(endpoint=served.url, token=served.token)


@pytest.fixture
def hub(served: DevHub) -> Hub:
    return Hub(endpoint=served.url, read_token=False)


def upload(api: HfApi, repo: str, *, base: str = BASE, name: str = "adapter_config.json", private: bool = False) -> str:
    api.create_repo(repo, private=private)
    card = f"---\nbase_model: {base}\n---\n# {repo}\n"
    files = {"README.md": card.encode(), name: b"{}"}
    operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()]
    api.create_commit(repo, operations, commit_message="Files")
    return repo


def adapters(hub: Hub, adapter: str, **more: str) -> list[str]:
    return [merge["adapter"] for merge in merges_of({"INPUT_ADAPTER": adapter, **more}, hub, lambda text: None)]


def test_named_adapters_get_each_their_own_revision_and_target(hub: Hub) -> None:
    env = {"INPUT_ADAPTER": "a/b, c/d\n./e", "INPUT_ADAPTER_REVISION": "v1,v2,main", "INPUT_TARGET_REPO": "x/1,x/2,x/3"}
    assert merges_of(env, hub, lambda text: None) == [
        {"adapter": "a/b", "adapter-revision": "v1", "target-repo": "x/1"},
        {"adapter": "c/d", "adapter-revision": "v2", "target-repo": "x/2"},
        {"adapter": "./e", "adapter-revision": "main", "target-repo": "x/3"},
    ]
    assert adapters(hub, "a/b,a/b, a/c") == ["a/b", "a/c"], "none twice"


def test_a_collection_stands_for_its_adapters_in_its_order(api: HfApi, hub: Hub) -> None:
    slug = api.create_collection("Ours").slug
    files = {"demo/z": "adapter_config.json", "demo/a": "checkpoint-5/adapter_config.json", "demo/base": "config.json"}
    for repo, name in (files | {"demo/z-merged": "verification.json"}).items():
        api.add_collection_item(slug, upload(api, repo, name=name), "model")
    told: list[str] = []
    merges = merges_of({"INPUT_ADAPTER": f"collection:{slug}"}, hub, told.append)
    assert merges == [{"adapter": "demo/z"}, {"adapter": "demo/a"}]
    assert told == [f"Left out of collection:{slug}, as they hold no adapter: demo/base, demo/z-merged"]


def test_a_base_stands_for_the_authors_adapters_that_name_it(served: DevHub, api: HfApi, hub: Hub) -> None:
    for number in range(3):
        upload(api, f"demo/lora-{number}")
    upload(api, "demo/other", base="demo/another-base")
    upload(api, "demo/lora-merged", name="verification.json")
    upload(api, "demo/hidden", private=True)
    stranger = HfApi(endpoint=served.url, token=served.create_token(served.create_user("stranger")))
    upload(stranger, "stranger/lora")
    wanted = ["demo/lora-0", "demo/lora-1", "demo/lora-2"]
    assert adapters(hub, f"base:{BASE}", INPUT_AUTHOR="demo") == wanted
    assert adapters(hub, f"base:{BASE}", GITHUB_REPOSITORY_OWNER="Demo") == wanted
    assert adapters(hub, f"base:{BASE}", INPUT_AUTHOR="stranger", GITHUB_REPOSITORY_OWNER="demo") == ["stranger/lora"]
    assert "demo/hidden" in adapters(
        Hub(endpoint=served.url, read_token=served.token), f"base:{BASE}", INPUT_AUTHOR="demo"
    )


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"INPUT_ADAPTER": " ,\n"}, "There is no adapter to merge"),
        ({"INPUT_ADAPTER": ",".join(f"a/{number}" for number in range(MOST + 1))}, "These are 257 adapters, and a run"),
        ({"INPUT_ADAPTER": "a/b,c/d", "INPUT_TARGET_REPO": "x/y"}, r"target-repo has 1 entries for 2 adapter\(s\)"),
        ({"INPUT_ADAPTER": "base:a/b", "INPUT_TARGET_REPO": "x/y", "INPUT_AUTHOR": "a"}, "target-repo is given, and base:a/b is"),
        ({"INPUT_ADAPTER": "base:nobody/base", "INPUT_AUTHOR": "demo"}, "names no adapter of demo's"),
        ({"INPUT_ADAPTER": "base:demo/base"}, "needs to know whose adapters"),
        ({"INPUT_ADAPTER": "base:$(id)"}, "names nothing on the Hub"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_makes_no_matrix_is_told_in_a_sentence(hub: Hub, env: dict[str, str], words: str) -> None:
    with pytest.raises(Usage, match=words):
        merges_of(env, hub, lambda text: None)


def test_a_collection_that_is_not_there_is_named(hub: Hub) -> None:
    with pytest.raises(NotFound, match="There is no collection demo/none"):
        adapters(hub, "collection:demo/none")


def test_as_many_as_github_takes_are_one_matrix(hub: Hub) -> None:
    assert len(adapters(hub, ",".join(f"a/{number}" for number in range(MOST)))) == MOST


def test_the_job_writes_the_matrix_for_the_jobs_after_it(served: DevHub, api: HfApi, tmp_path: Path) -> None:
    """As merge.yml calls it: from the checkout, without the package's own libraries but the Hub's client."""
    upload(api, "demo/lora")
    output = tmp_path / "output"
    env = (
        os.environ
        | served.environment()
        | {"INPUT_ADAPTER": f"base:{BASE}\nx/y", "INPUT_AUTHOR": "demo", "GITHUB_OUTPUT": str(output)}
    )
    code = (
        "import runpy, sys\n"
        "class Barred:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {BARRED}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Barred())\n"
        "sys.argv = ['bot.action', 'adapters']\n"
        "runpy.run_module('bot.action', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    name, _, merges = output.read_text().strip().partition("=")
    assert name == "merges"
    assert json.loads(merges) == [{"adapter": "demo/lora"}, {"adapter": "x/y"}]
    failed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=env | {"INPUT_ADAPTER": ","},
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 2
    assert (
        "::error title=adapter-merge::There is no adapter to merge." in failed.stdout
        or "There is no adapter to merge." in failed.stdout + failed.stderr
    )
