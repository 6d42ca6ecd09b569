"""Bad input: one sentence of what happened, one of what to do, the right exit code, and nothing left half-done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bot import pipeline
from bot.devhub import Fault
from tests.factory import save_adapter
from tests.stories.conftest import Command, Ran, World, name_base

Folders = tuple[Path, Path]


def assert_said(ran: Ran, code: int, words: str) -> None:
    """The right exit code; what happened holds `words`; then what to do. No traceback."""
    said = ran.err[ran.err.rfind("✗") :].strip().splitlines()
    assert ran.code == code, ran.err
    assert words in " ".join(said), ran.err
    assert len(said) >= 2, "it does not say what to do"
    assert "Traceback" not in ran.err


def assert_nothing_left(folder: Path) -> None:
    """Neither a finished folder nor a part of one."""
    assert [path.name for path in folder.iterdir() if "merged" in path.name] == []


# --- what a merge of two folders refuses --------------------------------------------------------------------------


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def first(tensors: dict[str, torch.Tensor], part: str) -> torch.Tensor:
    return tensors[next(key for key in sorted(tensors) if part in key)]


def put(part: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: first(tensors, part).view(-1)[:1].fill_(value)


def renamed(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], object]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if old in key]:
            tensors[key.replace(old, new)] = tensors.pop(key)

    return change


def other_width(base: Path, adapter: Path) -> None:
    edit_tensors(
        adapter / WEIGHTS, lambda ts: ts.update({k: t[:, :-1].clone() for k, t in ts.items() if "lora_A" in k})
    )


def two_names(base: Path, adapter: Path) -> None:
    for layer, name in enumerate(("one", "other")):
        part = f"{layer}.mlp.down_proj.lora_A."
        edit_tensors(adapter / WEIGHTS, renamed(part, f"{part}{name}."))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def lie_in_header(path: Path, change: Callable[[dict[str, dict[str, list[int]]]], object]) -> None:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    entries = json.loads(raw[8 : 8 + length])
    change(entries)
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def overlap(entries: dict[str, dict[str, list[int]]]) -> None:
    names = [name for name in entries if name != "__metadata__"]
    entries[names[1]]["data_offsets"] = entries[names[0]]["data_offsets"]


def out_of_range(entries: dict[str, dict[str, list[int]]]) -> None:
    name = next(name for name in entries if name != "__metadata__")
    entries[name]["data_offsets"][1] += 1 << 40


def point_outside(base: Path, adapter: Path) -> None:
    path = base / INDEX
    index = json.loads(path.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../../secret.safetensors")
    path.write_text(json.dumps(index))


def as_pickle(base: Path, adapter: Path) -> None:
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()


def as_pointer(base: Path, adapter: Path) -> None:
    (adapter / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")


WEIGHTS, INDEX, CONFIG = "adapter_model.safetensors", "model.safetensors.index.json", "adapter_config.json"
SHARD = "model-00002-of-00004.safetensors"

# name: (what to break, exit code, words that must be said)
BROKEN: dict[str, tuple[Callable[[Path, Path], object], int, str]] = {
    "an adapter for another base, by shape": (other_width, 3, "do not fit the base"),
    "an adapter for another base, by name": (
        lambda b, a: edit_tensors(a / WEIGHTS, renamed("layers.1", "layers.7")), 3, "are not in the base",
    ),
    "an adapter that matches nothing": (
        lambda b, a: edit_tensors(a / WEIGHTS, renamed("model.layers", "model.blocks")), 3, "None of the adapter's",
    ),
    "half a pair": (
        lambda b, a: edit_tensors(a / WEIGHTS, lambda ts: ts.pop(next(k for k in sorted(ts) if "lora_B" in k))), 3,
        "lack their other half",
    ),
    "a rank that the config denies": (lambda b, a: edit_json(a / CONFIG, r=8), 3, "another rank"),
    "an unknown peft_type": (lambda b, a: edit_json(a / CONFIG, peft_type="TELEPATHY"), 3, "TELEPATHY"),
    "a DoRA without its magnitudes": (
        lambda b, a: edit_json(a / CONFIG, use_dora=True), 3, "14 adapter modules lack a part: model.layers.0.mlp.down_proj has no",
    ),
    "a base that CorDA changed": (lambda b, a: edit_json(a / CONFIG, init_lora_weights="corda"), 3, "CorDA changes the base by"),
    "a setting that nobody knows": (
        lambda b, a: edit_json(a / CONFIG, use_telepathy=True), 3, "settings that this version does not know: use_telepathy",
    ),
    "several adapters in a file": (two_names, 3, "The adapter file holds several adapters: one, other."),
    "layers that the base has not, replicated": (
        lambda b, a: edit_json(a / CONFIG, layer_replication=[[0, 2], [1, 5]]), 3, "replicates layers up to 4; the base has 2",
    ),
    "matrices that FSDP left flat": (
        lambda b, a: edit_tensors(a / WEIGHTS, lambda ts: ts.update({k: t.flatten() for k, t in ts.items() if "0.mlp.up_proj" in k})),
        3, "1 adapter tensors are no matrices: model.layers.0.mlp.up_proj: A is 256, B is 512",
    ),
    "a truncated adapter": (lambda b, a: truncate(a / WEIGHTS), 3, "not a whole safetensors file"),
    "a truncated shard": (lambda b, a: truncate(b / SHARD), 3, "not a whole safetensors file"),
    "overlapping offsets": (lambda b, a: lie_in_header(b / SHARD, overlap), 3, "not a whole safetensors file"),
    "an offset out of range": (lambda b, a: lie_in_header(a / WEIGHTS, out_of_range), 3, "not a whole safetensors file"),
    "a missing shard": (lambda b, a: (b / SHARD).unlink(), 3, SHARD),
    "an index that names files outside the folder": (point_outside, 3, "no safetensors file inside its folder"),
    "an adapter that is only a pickle": (as_pickle, 3, "pickle"),
    "an adapter that git-lfs did not fetch": (as_pointer, 3, "git"),
    "no adapter weights": (lambda b, a: (a / WEIGHTS).unlink(), 3, WEIGHTS),
    "no adapter config": (lambda b, a: (a / CONFIG).unlink(), 3, CONFIG),
    "an adapter config that is not JSON": (lambda b, a: (a / CONFIG).write_text("{"), 3, CONFIG),
    "no config of the base": (lambda b, a: (b / "config.json").unlink(), 3, "config.json"),
    "a NaN in the adapter": (lambda b, a: edit_tensors(a / WEIGHTS, put("lora_B", float("nan"))), 3, "NaN or Inf"),
    "an Inf in the adapter": (lambda b, a: edit_tensors(a / WEIGHTS, put("lora_A", float("inf"))), 3, "NaN or Inf"),
    "a NaN in a weight that is merged": (lambda b, a: edit_tensors(b / SHARD, put("proj", float("nan"))), 3, "NaN or Inf"),
    "a base with code of its own": (
        lambda b, a: edit_json(b / "config.json", auto_map={"AutoModel": "x.Y"}), 3, "code of its own",
    ),
}  # fmt: skip


@pytest.fixture
def folders(tiny: Folders, tmp_path: Path) -> Folders:
    base, adapter = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in tiny)
    return base, adapter


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_input_is_refused_by_name(case: str, folders: Folders, adapter_merge: Command, tmp_path: Path) -> None:
    base, adapter = folders
    break_it, code, words = BROKEN[case]
    break_it(base, adapter)
    ran = adapter_merge("merge", adapter, "--base", base, "--output", tmp_path / "merged")
    assert_said(ran, code, words)
    assert_nothing_left(tmp_path)


def test_an_engine_that_does_not_have_the_method_is_refused(
    folders: Folders, adapter_merge: Command, tmp_path: Path
) -> None:
    base, adapter = folders
    ran = adapter_merge("merge", adapter, "--base", base, "-o", tmp_path / "merged", "--engine", "phantom")
    assert_said(ran, 3, "LoRA is merged by the streaming engine, not by phantom.")
    assert "Leave --engine at auto." in ran.err
    assert_nothing_left(tmp_path)


def test_a_gpu_that_is_asked_for_and_not_there_is_said(
    folders: Folders, adapter_merge: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = folders
    look = pipeline.look
    monkeypatch.setattr(pipeline, "look", lambda folder: replace(look(folder), gpus=(), cuda=True))
    ran = adapter_merge("merge", adapter, "--base", base, "-o", tmp_path / "merged", "--device", "cuda")
    assert_said(ran, 6, "--device cuda was asked for, and this machine has no GPU.")
    assert_nothing_left(tmp_path)


def test_a_nan_in_a_weight_that_is_copied_fails_the_proof(
    folders: Folders, adapter_merge: Command, tmp_path: Path
) -> None:
    base, adapter = folders
    edit_tensors(base / "model-00004-of-00004.safetensors", put("", float("nan")))
    ran = adapter_merge("merge", adapter, "--base", base, "--output", tmp_path / "merged", "--verify", "weights")
    assert_said(ran, 4, "finite")
    assert not (tmp_path / "merged").exists()
    assert json.loads((tmp_path / "merged.unverified/verification.json").read_text())["verdict"] == "not-verified"


def test_a_pickle_is_read_when_allowed_and_gives_the_same_bytes(
    folders: Folders, adapter_merge: Command, tmp_path: Path
) -> None:
    base, adapter = folders
    plain, pickled = tmp_path / "from-safetensors", tmp_path / "from-pickle"
    common = ("--base", base, "--verify", "weights")
    assert adapter_merge("merge", adapter, *common, "-o", plain).code == 0
    as_pickle(base, adapter)
    assert adapter_merge("merge", adapter, *common, "-o", pickled, "--allow-pickle").code == 0
    assert (plain / SHARD).read_bytes() == (pickled / SHARD).read_bytes()


def test_a_pickle_that_was_read_once_is_read_again_from_another_folder(
    folders: Folders, adapter_merge: Command, tmp_path: Path
) -> None:
    base, adapter = folders
    as_pickle(base, adapter)
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    for number, folder in enumerate((adapter, moved)):
        ran = adapter_merge(
            *("merge", folder, "--base", base, "--verify", "files", "--allow-pickle", "-o", tmp_path / f"{number}")
        )
        assert ran.code == 0, ran.err


def test_an_existing_folder_is_not_overwritten_unless_told(
    folders: Folders, adapter_merge: Command, tmp_path: Path
) -> None:
    base, adapter = folders
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/precious").write_text("mine")
    asked = ("merge", adapter, "--base", base, "-o", tmp_path / "merged", "--verify", "files")
    assert_said(adapter_merge(*asked), 2, "exists")
    assert_said(adapter_merge(*asked, "--force"), 2, "not a merge of ours")
    assert (tmp_path / "merged/precious").read_text() == "mine"
    shutil.rmtree(tmp_path / "merged")
    assert adapter_merge(*asked).code == 0
    (tmp_path / "merged/stale").write_text("from before")
    assert adapter_merge(*asked, "--force").code == 0
    assert not (tmp_path / "merged/stale").exists()
    assert not list(tmp_path.glob(".merged*"))


@pytest.mark.parametrize("place", [".", "..", "base", "adapter", "base/.."])
def test_no_force_removes_an_input_or_the_working_folder(
    place: str, folders: Folders, adapter_merge: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    base, adapter = folders
    before = sorted(path.name for path in tmp_path.rglob("*"))
    output = place if place.startswith(".") else tmp_path / place
    asked = ("merge", adapter, "--base", base, "-o", output, "--verify", "files", "--force")
    assert_said(adapter_merge(*asked), 2, "must stay")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_an_output_that_cannot_be_made_is_a_usage_error(
    folders: Folders, adapter_merge: Command, tmp_path: Path
) -> None:
    base, adapter = folders
    (tmp_path / "file").write_text("")
    ran = adapter_merge("merge", adapter, "--base", base, "-o", tmp_path / "file/merged", "--verify", "files")
    assert_said(ran, 2, "cannot be made")


def test_an_unproven_merge_prints_one_json_document(folders: Folders, adapter_merge: Command, tmp_path: Path) -> None:
    base, adapter = folders
    edit_tensors(base / "model-00004-of-00004.safetensors", put("", float("nan")))
    ran = adapter_merge("merge", adapter, "--base", base, "-o", tmp_path / "m", "--verify", "weights", "--json")
    assert ran.code == 4
    assert json.loads(ran.out)["status"] == "not-verified"


def test_a_base_with_module_weights_of_its_own_is_refused(
    folders: Folders, adapter_merge: Command, tmp_path: Path
) -> None:
    base, adapter = folders
    (base / "2_Dense").mkdir()
    shutil.copy(base / SHARD, base / "2_Dense/model.safetensors")
    ran = adapter_merge("merge", adapter, "--base", base, "-o", tmp_path / "merged", "--verify", "files")
    assert_said(ran, 3, "weights of their own")


@pytest.mark.parametrize(("field", "words"), [("disk_free", "disk"), ("memory_available", "memory")])
def test_a_machine_that_is_too_small_says_what_is_needed(
    field: str, words: str, folders: Folders, adapter_merge: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = folders
    look = pipeline.look
    monkeypatch.setattr(pipeline, "look", lambda folder: replace(look(folder), **{field: 1000}))
    ran = adapter_merge("merge", adapter, "--base", base, "--output", tmp_path / "merged", "--verify", "weights")
    assert_said(ran, 6, words)
    assert_nothing_left(tmp_path)


def test_too_little_memory_for_a_proof_is_a_level_lower_or_a_refusal(
    folders: Folders, adapter_merge: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = folders
    look = pipeline.look
    monkeypatch.setattr(pipeline, "look", lambda folder: replace(look(folder), memory_available=500 << 20))
    plan = json.loads(adapter_merge("plan", adapter, "--base", base, "--json").out)
    assert plan["verify"]["level"] == "weights"
    assert "memory" in plan["verify"]["not_run"][0]["reason"]
    assert_said(adapter_merge("plan", adapter, "--base", base, "--verify", "full"), 6, "memory")
    monkeypatch.setattr(pipeline, "look", lambda folder: replace(look(folder), memory_available=300 << 20))
    for level in ("auto", "weights"):
        ran = adapter_merge("plan", adapter, "--base", base, "--verify", level)
        assert_said(ran, 6, "The proof of the weights needs 471.9 MB of memory and 314.6 MB are available.")
    assert adapter_merge("plan", adapter, "--base", base, "--verify", "files").code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_disk_that_fills_up_leaves_nothing_behind(
    folders: Folders, adapter_merge: Command, tmp_path: Path, monkeypatch
) -> None:
    base, adapter = folders
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("this sandbox mounts nothing")
    try:
        look = pipeline.look
        monkeypatch.setattr(pipeline, "look", lambda folder: replace(look(folder), disk_free=1 << 40))
        ran = adapter_merge("merge", adapter, "--base", base, "--output", small / "merged", "--verify", "weights")
        assert_said(ran, 6, "disk is full")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


# --- interrupted --------------------------------------------------------------------------------------------------


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bot", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.fixture(scope="session")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A base of some 60 MB in five shards, so that there is time to interrupt its merge."""
    from transformers import AutoConfig, AutoModelForCausalLM

    root = tmp_path_factory.mktemp("larger")
    config = AutoConfig.for_model(
        "llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8, vocab_size=1000
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(root / "base", max_shard_size="16MB")
    return root / "base", save_adapter(root / "base", "llama", root / "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_ctrl_c_says_so_and_takes_no_final_name(sent: signal.Signals, larger: Folders, tmp_path: Path) -> None:
    base, adapter = larger
    running = start("merge", adapter, "--base", base, "-o", tmp_path / "merged", "--verify", "weights")
    while not list(tmp_path.glob(".merged.partial-*/*")):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(sent)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert_said(Ran(130, "", err), 130, "Interrupted")
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_a_killed_merge_goes_on_from_its_finished_shards(
    larger: Folders, tmp_path: Path, adapter_merge: Command
) -> None:
    base, adapter = larger
    asked = ("merge", adapter, "--base", base, "--verify", "files", "-o")
    assert adapter_merge(*asked, tmp_path / "whole").code == 0
    running = start(*asked, tmp_path / "merged")
    while not list(tmp_path.glob(".merged.partial-*/*.safetensors")):
        assert running.poll() is None
        time.sleep(0.002)
    running.kill()
    running.communicate()
    assert not (tmp_path / "merged").exists()
    (partial,) = tmp_path.glob(".merged.partial-*")
    for name in ("README.md", "verification.json"):  # as after a kill just before the folder gets its name
        (partial / name).write_text("of an earlier run")
    ran = adapter_merge(*asked, tmp_path / "merged")
    assert ran.code == 0, ran.err
    assert "is there from an earlier run" in ran.err
    for path in [tmp_path / "whole" / "README.md", *(tmp_path / "whole").glob("model*")]:
        assert path.read_bytes() == (tmp_path / "merged" / path.name).read_bytes()
    assert not list(tmp_path.glob(".merged*"))


def test_two_merges_into_one_folder_do_not_meet(folders: Folders, adapter_merge: Command, tmp_path: Path) -> None:
    from bot.partial_folder import locked_partial_dir
    from tests.steps import plan_folders

    base, adapter = folders
    with locked_partial_dir(tmp_path / "merged", plan_folders(base, adapter).fingerprint):
        ran = adapter_merge("merge", adapter, "--base", base, "-o", tmp_path / "merged", "--verify", "files")
    assert_said(ran, 2, "Another merge into this folder is running")


# --- the Hub ------------------------------------------------------------------------------------------------------


def test_a_repo_that_is_not_there(world: World, adapter_merge: Command) -> None:
    assert_said(adapter_merge("run", "demo/nothing"), 5, "demo/nothing")


def test_a_revision_that_is_not_there(world: World, adapter_merge: Command) -> None:
    assert_said(adapter_merge("run", "demo/adapter@v9"), 5, "v9")


def test_a_reference_that_is_neither_a_repo_nor_a_folder(adapter_merge: Command) -> None:
    assert_said(adapter_merge("plan", "what is this?"), 2, "neither a Hub repo nor a folder")


def test_a_base_named_by_a_path_is_not_followed_for_a_hub_adapter(world: World, adapter_merge: Command) -> None:
    name_base(world.adapter, str(world.base))
    world.api.upload_folder(repo_id="demo/adapter", folder_path=world.adapter)
    assert_said(adapter_merge("plan", "demo/adapter"), 3, "names")


def test_a_gated_base_without_access(world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    world.api.update_repo_settings("demo/base", gated="manual")
    guest = world.hub.create_token(world.hub.create_user("guest"), "write")
    monkeypatch.setenv("HF_TOKEN", guest)
    assert_said(adapter_merge("run", "demo/adapter", "--to", "guest/merged"), 5, "gated")


def test_a_token_that_cannot_read_a_private_base(
    world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.api.update_repo_settings("demo/base", visibility="private")
    guest = world.hub.create_token(world.hub.create_user("guest"), "write")
    monkeypatch.setenv("HF_TOKEN", guest)
    assert_said(adapter_merge("run", "demo/adapter", "--to", "guest/merged"), 5, "demo/base")


def test_a_token_that_cannot_write(world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", world.hub.create_token("demo", "read"))
    before = world.answers()
    ran = adapter_merge("run", "demo/adapter", "--verify", "weights")
    assert_said(ran, 5, "token")
    assert not world.api.repo_exists("demo/adapter-merged")
    shards = [path for _, path, _ in world.hub.requests[before:] if "model-0000" in path and "resolve" in path]
    assert len(shards) <= 4, "it downloaded the weights before it looked at the token"


def test_a_token_that_is_not_one(world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 20)
    assert_said(adapter_merge("run", "demo/adapter"), 5, "token")


def test_a_target_that_changes_between_plan_and_commit(world: World, adapter_merge: Command) -> None:
    assert adapter_merge("run", "demo/adapter@v1", "--verify", "weights").code == 0
    world.new_version("v2", seed=5)
    raced = []

    def race(repo: str, revision: str) -> None:
        if repo == "demo/adapter-merged" and not raced:
            raced.append(revision)
            world.api.upload_file(path_or_fileobj=b"me first", path_in_repo="config.json", repo_id=repo)

    world.hub.before_commit = race
    before = world.api.model_info("demo/adapter-merged").sha
    ran = adapter_merge("run", "demo/adapter@v2", "--verify", "weights", "--publish", "push")
    world.hub.before_commit = None
    assert_said(ran, 5, "demo/adapter-merged")
    assert raced
    commits = [commit.commit_id for commit in world.api.list_repo_commits("demo/adapter-merged")]
    assert commits.index(before) == 1, "only the other's commit came on top"


def test_a_hub_that_is_away(world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.hub.connection.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert_said(adapter_merge("plan", "demo/elsewhere"), 5, "127.0.0.1:9")


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(
    world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.hub.connection.time.sleep", lambda seconds: None)
    world.hub.faults.add(Fault(method="GET", path="/api/models/demo/base", status=503, times=2))
    assert adapter_merge("plan", "demo/adapter").code == 0


def test_a_download_that_is_cut_goes_on(world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    world.hub.faults.add(Fault(path=".", origin="cdn", cut_after=20_000, times=2))
    ran = adapter_merge("run", "demo/adapter", "--verify", "weights")
    assert ran.code == 0, ran.err


def test_an_error_is_json_when_json_was_asked_for(adapter_merge: Command) -> None:
    ran = adapter_merge("plan", "what is this?", "--json")
    assert json.loads(ran.out)["error"]["exit_code"] == ran.code == 2


def test_a_bug_of_ours_is_called_one(adapter_merge: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.pipeline.plan_merge", lambda *_: 1 / 0)
    ran = adapter_merge("plan", "demo/adapter")
    assert ran.code == 70
    assert "ZeroDivisionError" in ran.err
    assert "bug in adapter-merge" in ran.err
