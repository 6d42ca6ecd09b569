"""From an adapter on the Hub to a published, proven model: pushed, then proposed, then unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from bot.devhub import DevHub
from tests.stories.conftest import Command, World

MERGED = "demo/adapter-merged"


def published(world: World, file: str, revision: str = "main") -> Path:
    return Path(world.api.hf_hub_download(MERGED, file, revision=revision))


def test_a_new_target_is_created_pushed_to_tagged_and_carries_its_proof(world: World, adapter_merge: Command) -> None:
    ran = adapter_merge("run", "demo/adapter@v1")
    assert ran.code == 0, ran.err
    assert "✓ verified and published: pushed to demo/adapter-merged, tag v1" in ran.out
    report = json.loads(published(world, "verification.json").read_text())
    assert report["verdict"] == "verified"
    assert {check["id"]: check["status"] for check in report["checks"]}["behaviour"] == "pass"
    assert report["inputs"]["base"]["sha"] == world.api.model_info("demo/base").sha
    tree = {file.path: file for file in world.api.list_repo_tree(MERGED) if hasattr(file, "size")}
    for name, sha256 in report["subject"]["files"].items():
        lfs = getattr(tree[name], "lfs", None)
        assert lfs is None or lfs.sha256 == sha256
    assert "adapter_config.json" not in tree
    assert [tag.name for tag in world.api.list_repo_refs(MERGED).tags] == ["v1"]
    card = ModelCard.load(published(world, "README.md"))
    assert card.data.base_model == "demo/base"
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert card.data.license == "mit"


def test_the_published_model_loads_and_answers_like_base_plus_adapter(world: World, adapter_merge: Command) -> None:
    import torch
    from huggingface_hub import snapshot_download
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert adapter_merge("run", "demo/adapter", "--verify", "weights").code == 0
    folder = snapshot_download(MERGED, endpoint=world.hub.url, token=world.hub.token)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32)
    unmerged = PeftModel.from_pretrained(base, world.adapter).eval()
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(merged(tokens).logits, unmerged(tokens).logits, atol=2e-2)
        assert not torch.allclose(merged(tokens).logits, base.base_model(tokens).last_hidden_state.mean(), atol=2e-2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "merge"}], tokenize=False)
    assert chat == "<|user|>merge<|assistant|>"


def test_merging_twice_publishes_once(world: World, adapter_merge: Command) -> None:
    assert adapter_merge("run", "demo/adapter", "--verify", "weights").code == 0
    commits = world.api.list_repo_commits(MERGED)
    before = world.answers()
    ran = adapter_merge("run", "demo/adapter", "--verify", "weights")
    assert ran.code == 0
    assert "✓ unchanged" in ran.out
    assert world.api.list_repo_commits(MERGED) == commits
    assert not [
        path for method, path, _ in world.hub.requests[before:] if method in ("POST", "PUT") and "commit" in path
    ]
    assert not [path for _, path, _ in world.hub.requests[before:] if path.endswith("adapter_model.safetensors")][1:]


def test_a_new_version_of_the_adapter_becomes_one_open_pull_request(world: World, adapter_merge: Command) -> None:
    assert adapter_merge("run", "demo/adapter@v1", "--verify", "weights").code == 0
    world.new_version("v2", seed=5)
    for _ in range(2):
        ran = adapter_merge("run", "demo/adapter@v2", "--verify", "weights")
        assert ran.code == 0, ran.err
    assert "✓ unchanged: Pull request 1 already proposes this merge." in ran.out
    pulls = list(world.api.get_repo_discussions(MERGED))
    assert [(pull.num, pull.status, pull.is_pull_request) for pull in pulls] == [(1, "open", True)]
    details = world.api.get_discussion_details(MERGED, 1)
    assert len([event for event in details.events if event.type == "commit"]) == 1
    assert "Feel free to close" in details.events[0].content
    report = json.loads(published(world, "verification.json", "refs/pr/1").read_text())
    assert report["inputs"]["adapter"]["revision"] == "v2"


def test_the_next_version_updates_the_open_pull_request(world: World, adapter_merge: Command) -> None:
    assert adapter_merge("run", "demo/adapter@v1", "--verify", "weights").code == 0
    for seed, tag in ((5, "v2"), (6, "v3")):
        world.new_version(tag, seed=seed)
        assert adapter_merge("run", f"demo/adapter@{tag}", "--verify", "weights").code == 0
    assert len(list(world.api.get_repo_discussions(MERGED))) == 1
    report = json.loads(published(world, "verification.json", "refs/pr/1").read_text())
    assert report["inputs"]["adapter"]["revision"] == "v3"


def test_a_pull_request_that_its_owner_closed_is_not_opened_again(world: World, adapter_merge: Command) -> None:
    assert adapter_merge("run", "demo/adapter@v1", "--verify", "weights").code == 0
    world.new_version("v2", seed=5)
    assert adapter_merge("run", "demo/adapter@v2", "--verify", "weights").code == 0
    world.api.change_discussion_status(MERGED, 1, "closed")
    ran = adapter_merge("run", "demo/adapter@v2", "--verify", "weights")
    assert ran.code == 0
    assert "closed" in ran.out
    assert [pull.status for pull in world.api.get_repo_discussions(MERGED)] == ["closed"]


def test_a_dry_run_downloads_no_weight_and_writes_nothing(world: World, adapter_merge: Command) -> None:
    before = world.answers()
    ran = adapter_merge("run", "demo/adapter", "--dry-run")
    assert ran.code == 0
    assert not world.api.repo_exists(MERGED)
    asked = world.hub.requests[before:]
    assert not [path for method, path, _ in asked if method == "POST" and ("create" in path or "commit" in path)]


def test_plan_reads_headers_only(world: World, adapter_merge: Command) -> None:
    before = world.answers()
    ran = adapter_merge("plan", "demo/adapter", "--json")
    plan = json.loads(ran.out)
    assert ran.code == 0
    assert {op["op"] for op in plan["ops"]} == {"AddDelta", "Copy"}
    assert plan["refusals"] == []
    # Weights are asked for by range, and a range gets 206; a 200 would be a download.
    weights = [
        (path, status)
        for _, path, status in world.hub.requests[before:]
        if "safetensors" in path and "json" not in path
    ]
    assert weights
    assert not [pair for pair in weights if pair[1] == 200]


def test_a_published_merge_is_proven_again_from_what_it_names(world: World, adapter_merge: Command) -> None:
    assert adapter_merge("run", "demo/adapter", "--verify", "weights").code == 0
    ran = adapter_merge("verify", MERGED, "--verify", "weights", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["verdict"] == "verified"


def test_a_published_merge_that_somebody_touched_is_not_proven(
    world: World, adapter_merge: Command, tmp_path: Path
) -> None:
    assert adapter_merge("run", "demo/adapter", "--verify", "weights").code == 0
    shard = published(world, "model-00002-of-00004.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    changed = tmp_path / "changed"
    changed.write_bytes(content)
    world.api.upload_file(path_or_fileobj=changed, path_in_repo=shard.name, repo_id=MERGED)
    ran = adapter_merge("verify", MERGED, "--verify", "weights", "--json")
    assert ran.code == 4
    failed = {check["id"] for check in json.loads(ran.out)["checks"] if check["status"] == "fail"}
    assert "pins" in failed
    assert failed & {"touched", "untouched"}


def test_it_is_said_whose_base_it_was_held_against(world: World, adapter_merge: Command, tmp_path: Path) -> None:
    """With the commits, and by nobody's word but that of the repo's owners: no proposal, no path, no other model's card."""
    out = tmp_path / "out"
    assert adapter_merge("merge", "demo/adapter", "-o", out, "--verify", "files").code == 0
    ran = adapter_merge("verify", out, "--verify", "files")
    assert ran.code == 0, ran.err
    for repo in ("demo/base", "demo/adapter"):
        assert f"{repo} @ {world.api.model_info(repo).sha}" in ran.out

    card = (out / "README.md").read_text()
    (out / "README.md").write_text(card.replace("base_model: demo/base", "base_model: big/name"))
    ran = adapter_merge("verify", out, "--verify", "files")
    assert ran.code == 4
    assert "The card names big/name as its base" in ran.out + ran.err
    world.api.move_repo("demo/base", "demo/renamed")
    (out / "README.md").write_text(card)
    assert adapter_merge("verify", out, "--verify", "files").code == 0

    report = (out / "verification.json").read_text()
    sha = json.loads(report)["inputs"]["base"]["sha"]
    proposed = world.api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="demo/renamed", create_pr=True).oid
    (out / "verification.json").write_text(report.replace(sha, proposed))
    ran = adapter_merge("verify", out, "--verify", "files")
    assert ran.code == 3
    assert "anybody may have proposed it" in ran.err
    (out / "verification.json").write_text(report.replace('"repo": "demo/base"', '"repo": "/etc"'))
    assert adapter_merge("verify", out, "--verify", "files").code == 2


def test_merge_and_publish_in_two_steps(world: World, adapter_merge: Command, tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    assert adapter_merge("merge", "demo/adapter", "--output", folder, "--verify", "weights").code == 0
    assert not world.api.repo_exists("demo/elsewhere")
    ran = adapter_merge("publish", folder, "--to", "demo/elsewhere")
    assert ran.code == 0, ran.err
    assert world.api.file_exists("demo/elsewhere", "verification.json")
    assert folder.is_dir()
    before = (folder / "README.md").read_text()
    assert adapter_merge("publish", folder, "--to", "demo/third", "--dry-run").code == 0
    assert adapter_merge("publish", folder, "--to", "demo/fourth").code == 0
    assert (folder / "README.md").read_text() == before
    card = Path(world.api.hf_hub_download("demo/fourth", "README.md")).read_text()
    assert "demo/fourth" in card
    assert "demo/elsewhere" not in card
    assert not world.api.repo_exists("demo/third")


def test_a_folder_that_was_changed_after_its_proof_is_not_published(
    world: World, adapter_merge: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "merged"
    assert adapter_merge("merge", "demo/adapter", "--output", folder, "--verify", "weights").code == 0
    config = folder / "config.json"
    config.write_text(config.read_text().replace("silu", "gelu"))
    ran = adapter_merge("publish", folder, "--to", "demo/elsewhere")
    assert ran.code == 4
    assert not world.api.repo_exists("demo/elsewhere")


def test_two_folders_are_merged_without_any_hub(
    tiny: tuple[Path, Path], adapter_merge: Command, tmp_path: Path
) -> None:
    base, adapter = tiny
    ran = adapter_merge("merge", adapter, "--base", base, "-o", tmp_path / "out", "--verify", "weights", "--json")
    assert ran.code == 0, ran.err
    outcome = json.loads(ran.out)
    assert outcome["status"] == "merged"
    assert outcome["report"]["inputs"]["base"] == {"repo": None, "sha": outcome["base"]["sha"]}
    assert str(tmp_path) not in json.dumps(outcome["report"])
    same = adapter_merge("compare", tmp_path / "out", tmp_path / "out", "--json")
    assert json.loads(same.out) == {"equal": 21, "different": []}
    other = json.loads(adapter_merge("compare", tmp_path / "out", base, "--json").out)
    assert (other["equal"], len(other["different"])) == (7, 14)
    again = adapter_merge("verify", tmp_path / "out", "--verify", "weights")
    assert again.code == 2
    assert "--adapter" in again.err
    assert (
        adapter_merge("verify", tmp_path / "out", "--base", base, "--adapter", adapter, "--verify", "weights").code == 0
    )


@pytest.mark.slow
def test_the_main_job_also_runs_by_xet(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = tiny
    with DevHub(tmp_path / "hub", xet=True) as hub:
        environment = os.environ | hub.environment() | {"HF_HOME": str(tmp_path / "home")}
        environment.pop("HF_HUB_DISABLE_XET")
        upload = (
            "import sys; from huggingface_hub import HfApi; api = HfApi()\n"
            "for repo, folder in zip(sys.argv[1::2], sys.argv[2::2]):\n"
            "    api.create_repo(repo); api.upload_folder(repo_id=repo, folder_path=folder)\n"
        )
        subprocess.run(
            [sys.executable, "-c", upload, "demo/base", base, "demo/adapter", adapter], env=environment, check=True
        )
        command = [sys.executable, "-m", "bot", "run", "demo/adapter", "--verify", "weights"]
        first, second = (subprocess.run(command, env=environment, capture_output=True, text=True) for _ in range(2))
        assert first.returncode == 0, first.stderr
        assert "pushed to demo/adapter-merged" in first.stdout
        assert "✓ unchanged" in second.stdout
        assert any("xet-write-token" in path for _, path, _ in hub.requests)
        assert any("xet-read-token" in path for _, path, _ in hub.requests)
