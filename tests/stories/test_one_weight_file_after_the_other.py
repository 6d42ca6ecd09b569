"""A model that the disk does not hold: each weight file is fetched, merged, proven, sent and dropped; the result is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download

from bot.devhub import Fault
from tests.factory import save_adapter
from tests.formats.test_carried import READ, TOUCHED, q_and_v, with_cache_scales
from tests.formats.test_parts_in_other_shards import bytes_of, cut
from tests.stories.conftest import Command, World, name_base

MERGED = "demo/adapter-merged"
BY_SHARD = ("--verify", "weights", "--disk", "shards")
SECOND = "model-00002-of-"


def report_of(world: World, repo: str = MERGED) -> dict[str, Any]:
    """The report without what another run would not repeat, or another target."""
    report: dict[str, Any] = json.loads(Path(world.api.hf_hub_download(repo, "verification.json")).read_text())
    for check in report["checks"]:
        del check["seconds"]
    report["merge"]["target"] = None
    return report


def weights_of(world: World, repo: str) -> dict[str, str]:
    """The sha256 of every weight file, as the Hub has it."""
    return {file.path: file.lfs.sha256 for file in world.api.list_repo_tree(repo) if getattr(file, "lfs", None)}


def requests_for(world: World, what: str, method: str = "GET") -> list[str]:
    return [path for verb, path, _ in world.hub.requests if verb == method and what in path]


@pytest.fixture
def narrow(world: World, tmp_path: Path) -> str:
    """An adapter that leaves the last weight files as they are."""
    folder = save_adapter(world.base, "llama", tmp_path / "narrow", target_modules=["q_proj"], layers_to_transform=[0])
    name_base(folder, "demo/base")
    world.api.create_repo("demo/narrow")
    world.api.upload_folder(repo_id="demo/narrow", folder_path=folder)
    return "demo/narrow"


def test_the_same_bytes_the_same_report_and_one_commit(world: World, adapter_merge: Command) -> None:
    ran = adapter_merge("run", "demo/adapter", *BY_SHARD)
    assert ran.code == 0, ran.err
    assert not requests_for(world, "resolve/main/model-"), "weights are fetched by their commit"
    files = [name for name in weights_of(world, MERGED) if name.startswith("model-")]
    assert len(files) > 3
    assert adapter_merge("run", "demo/adapter", *BY_SHARD).out.count("nothing changed") <= 1
    assert adapter_merge("run", "demo/adapter", "--to", "demo/whole", "--verify", "weights").code == 0
    assert weights_of(world, MERGED) == weights_of(world, "demo/whole")
    assert report_of(world) == report_of(world, "demo/whole")
    assert len(world.api.list_repo_commits(MERGED)) == len(world.api.list_repo_commits("demo/whole"))


def test_no_weight_file_stays_on_the_disk(world: World, adapter_merge: Command, tmp_path: Path) -> None:
    from bot.hub import Hub

    hub, sha = Hub(), world.api.model_info("demo/base").sha
    folders = hub.cache_dir / "models--demo--base" / "snapshots" / str(sha), hub.scratch

    def weights() -> set[Path]:
        return {path for folder in folders for path in folder.rglob("*.safetensors") if path.is_file()}

    before = weights()  # of other merges
    assert adapter_merge("run", "demo/adapter", *BY_SHARD).code == 0
    assert weights() <= before


def test_files_that_are_the_bases_own_are_copied_by_the_hub(world: World, adapter_merge: Command, narrow: str) -> None:
    ran = adapter_merge("run", narrow, *BY_SHARD, "--to", "demo/copied")
    assert ran.code == 0, ran.err
    base, merged = weights_of(world, "demo/base"), weights_of(world, "demo/copied")
    same = {name for name in base if base[name] == merged[name]}
    assert same
    assert same != base.keys()
    assert "to be copied by the Hub" in ran.err
    assert requests_for(world, "lfs-files/duplicate", "POST")


def test_a_hub_that_does_not_copy_is_sent_those_files(world: World, adapter_merge: Command, narrow: str) -> None:
    assert adapter_merge("run", narrow, *BY_SHARD, "--to", "demo/copied").code == 0
    world.hub.faults.add(Fault(path="lfs-files/duplicate", status=403, times=None))
    ran = adapter_merge("run", narrow, *BY_SHARD, "--to", "demo/sent")
    assert ran.code == 0, ran.err
    assert "What is the base's is fetched once more, and sent." in ran.err
    assert weights_of(world, "demo/sent") == weights_of(world, "demo/copied")
    assert report_of(world, "demo/sent") == report_of(world, "demo/copied")


def test_a_run_that_was_cut_off_goes_on_and_fetches_only_what_it_lacks(world: World, adapter_merge: Command) -> None:
    fault = world.hub.faults.add(Fault(path="/upload", method="PUT", status=403, times=None, skip=2))
    ran = adapter_merge("run", "demo/adapter", *BY_SHARD)
    assert ran.code == 5, ran.err
    assert not any(name.startswith("model") for name in world.api.list_repo_files(MERGED)), "nothing is visible"
    assert world.hub.faults.hits(fault)
    world.hub.faults.clear()
    world.hub.requests.clear()
    ran = adapter_merge("run", "demo/adapter", *BY_SHARD)
    assert ran.code == 0, ran.err
    kept = ran.err.count("was made, proven and sent by an earlier run")
    assert kept >= 2
    # The client asks by HEAD for what it fetches; the plan reads headers by GET.
    files = [name for name in world.api.list_repo_files("demo/base") if name.endswith(".safetensors")]
    assert len(requests_for(world, "model-0", "HEAD")) == len(files) - kept
    assert adapter_merge("run", "demo/adapter", "--to", "demo/whole", "--verify", "weights").code == 0
    assert report_of(world) == report_of(world, "demo/whole")


def test_what_the_hub_has_lost_meanwhile_is_made_again(world: World, adapter_merge: Command) -> None:
    world.hub.faults.add(Fault(path="/upload", method="PUT", status=403, times=None, skip=2))
    assert adapter_merge("run", "demo/adapter", *BY_SHARD).code == 5
    world.hub.faults.clear()
    with world.hub.site.db.write() as connection:
        connection.execute("DELETE FROM holding WHERE repo = (SELECT max(id) FROM repo)")
    ran = adapter_merge("run", "demo/adapter", *BY_SHARD)
    assert ran.code == 0, ran.err
    assert "of the weight files that were sent: they are made again" in ran.err


def test_a_file_that_comes_with_other_bytes_is_fetched_again_then_refused(
    world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bot.hub import Hub

    fetch, damaged = Hub.download_apart, []

    def damage(self: Hub, repo: str, sha: str, file: str, folder: Path) -> Path:
        path = fetch(self, repo, sha, file, folder)
        if file.startswith(SECOND):
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
            damaged.append(file)
        return path

    monkeypatch.setattr(Hub, "download_apart", damage)
    ran = adapter_merge("run", "demo/adapter", *BY_SHARD)
    assert ran.code == 5
    assert "came with other bytes than its repo states" in ran.err
    assert len(damaged) == 2
    assert not any(name.startswith("model") for name in world.api.list_repo_files(MERGED))


def test_a_wrong_element_in_the_last_file_keeps_all_of_it_from_the_hub(
    world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bot.merge import MergeRun

    write = MergeRun.shard

    def wrong(self: MergeRun, shard: Any, each_piece: Any) -> None:
        def damaged(files: Any, written: int) -> None:
            if shard is self.plan.shards[-1] and written == shard.size:
                with (self.partial / shard.name).open("r+b") as opened:
                    opened.seek(-1, 2)
                    last = opened.read(1)
                    opened.seek(-1, 2)
                    opened.write(bytes([last[0] ^ 0x40]))
            each_piece(files, written)

        write(self, shard, damaged)

    monkeypatch.setattr(MergeRun, "shard", wrong)
    ran = adapter_merge("run", "demo/adapter", *BY_SHARD)
    assert ran.code == 4, ran.err
    assert not any(name.startswith("model") for name in world.api.list_repo_files(MERGED))


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (("--output", "kept"), "The result stays on this disk"),
        (("--verify", "full"), "--verify full runs the whole model"),
        (("--quantize", "nf4"), "A result that is stored quantised"),
        (("--base-weights", "simulate-nf4"), "The weights that simulate-nf4 makes"),
    ],
)
def test_what_has_to_lie_on_the_disk_as_a_whole_is_refused_by_name(
    world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: tuple[str, ...], why: str
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    ran = adapter_merge("run", "demo/adapter", "--disk", "shards", *asked)
    assert ran.code == 3, ran.err
    assert why in ran.err + ran.out


def test_auto_goes_by_weight_files_where_the_whole_does_not_fit(
    world: World, adapter_merge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    import bot.pipeline
    from bot.machine import look

    # What is there whatever the model's size would hide what files of some kilobytes take.
    for name in ("bot.plan.disk.BESIDE", "bot.plan.disk.KEPT", "bot.shard_needs.IN_WORK"):
        monkeypatch.setattr(name, 0)

    def needed() -> tuple[int, int]:
        """By weight files, and as a whole."""
        budget = json.loads(adapter_merge("plan", "demo/adapter", "--disk", "shards", "--json").out)["budget"]
        return budget["by_shard"]["disk"], budget["disk"]

    taken, whole = needed()
    assert taken < whole / 1.5
    monkeypatch.setattr(bot.pipeline, "look", lambda folder: replace(look(folder), disk_free=taken))
    ran = adapter_merge("run", "demo/adapter", "--verify", "weights")
    assert ran.code == 0, ran.err
    assert "one weight file after the other" in ran.err
    taken, _ = needed()  # the adapter is in the cache by now
    monkeypatch.setattr(bot.pipeline, "look", lambda folder: replace(look(folder), disk_free=taken - 1))
    ran = adapter_merge("run", "demo/adapter", *BY_SHARD, "--to", "demo/other")
    assert ran.code == 6
    assert "One weight file after the other needs" in ran.err + ran.out
    ran = adapter_merge("run", "demo/adapter", "--verify", "weights", "--to", "demo/other")
    assert ran.code == 6
    assert "The merge needs" in ran.err + ran.out


def test_the_result_loads(world: World, adapter_merge: Command) -> None:
    assert adapter_merge("run", "demo/adapter", *BY_SHARD).code == 0
    folder = snapshot_download(MERGED, endpoint=world.hub.url, token=world.hub.token)
    assert adapter_merge("verify", folder, "--verify", "weights").code == 0


@pytest.mark.parametrize("caches", [False, True])
def test_a_packed_base_of_which_only_plain_weights_change_goes_by_weight_files(
    world: World, adapter_merge: Command, tmp_path: Path, caches: bool
) -> None:
    """FP8 in the MLP, an adapter on the attention: every packed byte arrives as it is. `caches`: scales of the cache of keys and
    values stand beside the weights that change."""
    base = with_cache_scales(READ["fp8"]()) if caches else READ["fp8"]()
    keys = sorted(base.tensors)
    one = cut(base, tmp_path / "packed", [keys[:6], keys[6:12], keys[12:]])
    adapter = q_and_v(tmp_path / "lora")
    name_base(adapter, "demo/packed")
    for repo, folder in (("demo/packed", one), ("demo/lora", adapter)):
        world.api.create_repo(repo)
        world.api.upload_folder(repo_id=repo, folder_path=folder)
    ran = adapter_merge("run", "demo/lora", *BY_SHARD)
    assert ran.code == 0, ran.err
    merged = Path(world.api.snapshot_download("demo/lora-merged"))
    before, after = bytes_of(one, exact=False), bytes_of(merged)
    assert sorted(key for key in before if before[key] != after[key]) == TOUCHED
    assert adapter_merge("run", "demo/lora", "--to", "demo/whole", "--verify", "weights").code == 0
    assert weights_of(world, "demo/lora-merged") == weights_of(world, "demo/whole")
    again = adapter_merge("verify", "demo/lora-merged", *BY_SHARD)
    assert again.code == 0, again.err
    assert "Compared one weight file after the other" in again.err
