"""Adapters deeper in a repo, as trainers and PEFT leave them: named like a repo with a folder behind it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.factory import save_adapter, save_card
from tests.stories.conftest import World, name_base
from tests.stories.test_bad_input import assert_said

STEPS = (500, 1000)


@pytest.fixture
def trained(world: World) -> World:
    """demo/run as a Trainer leaves it: two checkpoints, each with its optimizer; a tokenizer, a card and a license at the root."""
    for seed, step in enumerate(STEPS, 11):
        folder = world.adapter.with_name("run") / f"checkpoint-{step}"
        save_adapter(world.base, "llama", folder, seed=seed)
        name_base(folder, "demo/base")
        save_card(folder, base_model="demo/base", library_name="peft")
        (folder / "optimizer.pt").write_bytes(os.urandom(50_000))
    root = world.adapter.with_name("run")
    save_card(root, license="apache-2.0", base_model="demo/base")
    (root / "LICENSE").write_text("of the adapters")
    shutil.copy(world.base / "tokenizer.json", root)
    config = json.loads((world.base / "tokenizer_config.json").read_text())
    (root / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ 'trained' }}"}))
    world.api.create_repo("demo/run")
    world.api.upload_folder(repo_id="demo/run", folder_path=root)
    world.api.create_tag("demo/run", tag="v2")
    return world


def downloaded(world: World, repo: str) -> set[str]:
    """The files of a repo that were asked for."""
    start = f"/{repo}/resolve/"
    return {path.partition(start)[2].partition("/")[2] for _, path, _ in world.hub.requests if start in path}


def test_a_checkpoint_is_merged_and_proven_and_published_under_its_own_name(trained, adapter_merge, tmp_path):
    ran = adapter_merge("run", "demo/run/checkpoint-1000@v2", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["publication"]["repo"] == "demo/run-checkpoint-1000-merged"
    assert found["publication"]["tag"] == "v2"
    sha = trained.api.repo_info("demo/run").sha
    pin = {"repo": "demo/run", "sha": sha, "subfolder": "checkpoint-1000", "revision": "v2"}
    assert found["adapter"] == found["report"]["inputs"]["adapter"] == pin
    assert not [name for name in downloaded(trained, "demo/run") if "500" in name or "optimizer" in name]
    merged = Path(trained.api.snapshot_download("demo/run-checkpoint-1000-merged", local_dir=tmp_path / "there"))
    card = (merged / "README.md").read_text()
    assert f"tree/{sha}/checkpoint-1000" in card
    assert f"adapter-merge merge demo/run/checkpoint-1000@{sha}" in card
    assert "license: apache-2.0" in card, "the repo's license counts for what lies in it"
    assert (merged / "LICENSE.adapter").read_text() == "of the adapters"
    assert "trained" in (merged / "tokenizer_config.json").read_text(), "a tokenizer beside the checkpoints is theirs"


def test_a_published_checkpoint_is_proven_again_by_its_report_alone(trained, adapter_merge):
    assert adapter_merge("run", "demo/run/checkpoint-500", "--verify", "files").code == 0
    again = adapter_merge("verify", "demo/run-checkpoint-500-merged", "--verify", "weights")
    assert again.code == 0, again.out + again.err
    assert "demo/run/checkpoint-500 @" in again.out
    words = ("--adapter", "demo/run/checkpoint-1000", "--verify", "files", "--json")
    other = adapter_merge("verify", "demo/run-checkpoint-500-merged", *words)
    assert other.code == 4
    pins = next(check for check in json.loads(other.out)["checks"] if check["id"] == "pins")
    assert "adapter.subfolder checkpoint-500" in pins["why"]


def test_checkpoints_of_one_commit_are_other_merges(trained, adapter_merge):
    prints = {
        json.loads(adapter_merge("plan", ref, "--json").out)["fingerprint"]
        for ref in ("demo/run/checkpoint-500", "demo/run/checkpoint-1000", "demo/run/checkpoint-500@v2")
    }
    assert len(prints) == 2
    assert adapter_merge("run", "demo/run/checkpoint-500", "--to", "demo/one", "--verify", "files").code == 0
    assert "unchanged" in adapter_merge("run", "demo/run/checkpoint-500", "--to", "demo/one").out
    ran = adapter_merge("run", "demo/run/checkpoint-1000", "--to", "demo/one", "--verify", "files")
    assert "pull request" in ran.out, "the other checkpoint is another merge, not `unchanged`"


def test_each_checkpoint_becomes_a_model_of_its_own_and_two_become_one(trained, adapter_merge, tmp_path):
    refs = [f"demo/run/checkpoint-{step}" for step in STEPS]
    ran = adapter_merge("run", *refs, "--each", "--publish", "none", "--output", tmp_path / "all", "--verify", "files")
    assert ran.code == 0, ran.err
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["run-checkpoint-1000", "run-checkpoint-500"]
    both = adapter_merge("merge", *refs, "--weights", "0.5,0.5", "-o", tmp_path / "both", "--verify", "files")
    assert both.code == 0, both.err
    report = json.loads((tmp_path / "both" / "verification.json").read_text())
    assert [pin["subfolder"] for pin in report["inputs"]["adapters"]] == ["checkpoint-500", "checkpoint-1000"]
    assert adapter_merge("verify", tmp_path / "both", "--verify", "weights").code == 0


def test_the_same_checkpoint_in_a_folder_gives_the_same_weights(trained, adapter_merge, tmp_path):
    folder = trained.adapter.with_name("run") / "checkpoint-500"
    assert adapter_merge("merge", folder, "-o", tmp_path / "of-a-folder", "--verify", "files").code == 0
    assert (
        adapter_merge("merge", "demo/run/checkpoint-500", "-o", tmp_path / "of-the-hub", "--verify", "files").code == 0
    )
    for path in (tmp_path / "of-a-folder").glob("*.safetensors"):
        one, other = load_file(path), load_file(tmp_path / "of-the-hub" / path.name)
        assert all(one[key].equal(other[key]) for key in one)


def test_a_pickled_checkpoint_is_converted_where_that_is_allowed(trained, adapter_merge, tmp_path):
    import torch

    folder = trained.adapter.with_name("old") / "a" / "last"
    shutil.copytree(trained.adapter, folder)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    trained.api.create_repo("demo/old")
    trained.api.upload_folder(repo_id="demo/old", folder_path=trained.adapter.with_name("old"))
    assert_said(adapter_merge("plan", "demo/old/a/last"), 3, "pickle")
    ran = adapter_merge("merge", "demo/old/a/last", "--allow-pickle", "-o", tmp_path / "out", "--verify", "files")
    assert ran.code == 0, ran.err


# --- what is said -------------------------------------------------------------------------------------------------


def test_a_repo_without_an_adapter_at_its_root_names_all_that_lie_deeper(trained, adapter_merge):
    ran = adapter_merge("plan", "demo/run@v2")
    assert_said(ran, 3, "has no adapter_config.json")
    assert "(checkpoint-500, checkpoint-1000)" in ran.err
    assert "demo/run/checkpoint-1000@v2" in ran.err


def test_a_folder_without_an_adapter_names_all_that_lie_deeper(trained, adapter_merge):
    root = trained.adapter.with_name("run")
    ran = adapter_merge("plan", root)
    assert_said(ran, 3, "has no adapter_config.json")
    assert f"{root}/checkpoint-1000" in ran.err


def test_an_adapter_at_the_root_is_taken_and_the_others_are_noted_once(trained, adapter_merge):
    trained.api.upload_folder(repo_id="demo/run", folder_path=trained.adapter)
    ran = adapter_merge("plan", "demo/run")
    assert ran.code == 0
    assert ran.err.count("holds other adapters too (checkpoint-500, checkpoint-1000)") == 1
    assert "other adapters" not in adapter_merge("plan", "demo/run/checkpoint-500").err


@pytest.mark.parametrize("ref", ["demo/run/checkpoint-2000", "demo/adapter/checkpoint-500"])
def test_a_folder_that_is_not_there_is_answered_with_those_that_are(trained, adapter_merge, ref):
    ran = adapter_merge("plan", ref)
    assert_said(ran, 5, "is not there")
    assert ("checkpoint-500, checkpoint-1000" if "run" in ref else "write demo/adapter.") in ran.err


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "demo/adapter", "--base", "demo/run/checkpoint-500"),
        ("verify", "demo/run/checkpoint-500"),
        ("compare", "demo/base", "demo/run/checkpoint-500"),
    ],
)
def test_only_an_adapter_may_lie_deeper(trained, adapter_merge, words):
    assert_said(adapter_merge(*words), 2, "only an adapter can lie in a folder of a repo")


@pytest.mark.parametrize("folder", ["..", "a/../../b", "/a", "a//b", "./a", "a\\b", ".git", "a/..", "-x"])
def test_no_way_leads_out_of_a_repo(trained, adapter_merge, folder):
    before = trained.answers()
    assert adapter_merge("plan", f"demo/run/{folder}").code == 2
    assert trained.answers() == before


def test_a_report_that_names_a_way_out_of_the_repo_is_not_followed(trained, adapter_merge, tmp_path):
    assert adapter_merge("merge", "demo/run/checkpoint-500", "-o", tmp_path / "out", "--verify", "files").code == 0
    path = tmp_path / "out" / "verification.json"
    report = json.loads(path.read_text())
    report["inputs"]["adapter"]["subfolder"] = "../checkpoint-500"
    path.write_text(json.dumps(report))
    assert_said(adapter_merge("verify", tmp_path / "out"), 2, "as the adapter")


def test_a_checkpoint_is_not_published_onto_the_repo_it_lies_in(trained, adapter_merge):
    assert_said(adapter_merge("run", "demo/run/checkpoint-500", "--to", "demo/run", "--verify", "files"), 2, "demo/run")
    assert "adapter_config.json" not in trained.api.list_repo_files("demo/run")
    assert "model.safetensors.index.json" not in trained.api.list_repo_files("demo/run")
