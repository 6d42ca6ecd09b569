"""One merge over several machines: each makes a part, one makes the commit; the result is that of one machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stories.conftest import Command, World
from tests.stories.test_one_weight_file_after_the_other import report_of, weights_of

PARTS = 3
MERGED = "demo/adapter-merged"


@pytest.fixture
def pinned(world: World) -> tuple[str, ...]:
    """The adapter and the base at their commits: what every machine is told."""
    sha = {name: world.api.model_info(f"demo/{name}").sha for name in ("adapter", "base")}
    return f"demo/adapter@{sha['adapter']}", "--base", f"demo/base@{sha['base']}", "--verify", "weights"


@pytest.fixture
def receipts(world: World, adapter_merge: Command, pinned: tuple[str, ...], tmp_path: Path) -> list[Path]:
    """All parts made, one after the other."""
    paths = [tmp_path / f"receipt-{number}.json" for number in range(1, PARTS + 1)]
    for number, path in enumerate(paths, 1):
        ran = adapter_merge("merge", *pinned, "--shard", f"{number}/{PARTS}", "--receipt", path, "--to", MERGED)
        assert ran.code == 0, ran.err
        assert f"✓ part {number}/{PARTS} made, proven and sent" in ran.out
    return paths


def change(path: Path, how: Callable[[dict[str, Any]], object]) -> Path:
    document = json.loads(path.read_text())
    how(document)
    path.write_text(json.dumps(document))
    return path


def test_the_same_bytes_report_and_commit_as_of_one_machine(
    world: World, adapter_merge: Command, receipts: list[Path], pinned: tuple[str, ...]
) -> None:
    assert not any(name.startswith("model") for name in world.api.list_repo_files(MERGED)), "nothing is visible"
    ran = adapter_merge("finish", *receipts)
    assert ran.code == 0, ran.err
    assert adapter_merge("run", *pinned, "--to", "demo/whole").code == 0
    assert weights_of(world, MERGED) == weights_of(world, "demo/whole")
    assert report_of(world) == report_of(world, "demo/whole")
    assert len(world.api.list_repo_commits(MERGED)) == len(world.api.list_repo_commits("demo/whole"))
    again = adapter_merge("finish", *receipts)
    assert again.code == 0, again.err
    assert len(world.api.list_repo_commits(MERGED)) == len(world.api.list_repo_commits("demo/whole"))


def test_a_missing_part_is_named_and_made_alone(
    world: World, adapter_merge: Command, receipts: list[Path], pinned: tuple[str, ...]
) -> None:
    receipts[1].unlink()
    ran = adapter_merge("finish", receipts[0], receipts[2])
    assert ran.code == 3
    assert "No receipt is of part 2/3." in ran.err
    ran = adapter_merge("merge", *pinned, "--shard", "2/3", "--receipt", receipts[1], "--to", MERGED)
    assert ran.code == 0, ran.err
    assert adapter_merge("finish", *receipts).code == 0


def of_the_first_file(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["files"][0].update(changes)


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], int]] = {
    "and receipt-1.json are not of one merge": (lambda d: d.update(fingerprint="0" * 64), 3),
    "are not of one merge": (lambda d: d.update(target="demo/elsewhere"), 3),
    "No receipt is of part 3/3": (lambda d: d.update(part=[2, 3]), 3),
    "were asked for differently": (lambda d: d["request"]["options"].update(dtype="float16"), 3),
    "No receipt holds": (lambda d: d.update(files=[]), 3),
    "is no file of its part": (lambda d: d["files"].append(dict(d["files"][0], name="model-9.safetensors")), 3),
    "is not base plus adapter": (lambda d: next(iter(d["files"][0]["tallies"].values())).update(wrong=1), 4),
    "The Hub no longer holds what part 3/3 sent": (of_the_first_file(sha256="0" * 64), 5),
    "is no receipt of this version": (lambda d: d.update(receipt=99), 3),
    "could not be proven": (of_the_first_file(tallies={}), 4),
}


def test_a_receipt_that_does_not_fit_is_refused_and_nothing_is_published(
    world: World, adapter_merge: Command, receipts: list[Path]
) -> None:
    right = receipts[2].read_text()
    for why, (damage, code) in DAMAGES.items():
        receipts[2].write_text(right)
        change(receipts[2], damage)
        ran = adapter_merge("finish", *receipts)
        assert why in ran.err, ran.err
        assert ran.code == code, why
        assert not any(name.startswith("model") for name in world.api.list_repo_files(MERGED))


def test_receipts_of_another_adapters_version_are_stale(
    world: World, adapter_merge: Command, receipts: list[Path]
) -> None:
    sha = world.new_version("v2", seed=7)
    for path in receipts:
        change(path, lambda d: d["request"].update(adapters=[f"demo/adapter@{sha}"]))
    ran = adapter_merge("finish", *receipts)
    assert ran.code == 3
    assert "The receipts are of another merge" in ran.err


def test_parts_are_made_by_processes_of_their_own_at_the_same_time(
    world: World, pinned: tuple[str, ...], adapter_merge: Command, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "bot", "merge", *pinned, "--to", MERGED]
    paths = [tmp_path / f"receipt-{number}.json" for number in (1, 2)]
    running = [
        subprocess.Popen([*command, "--shard", f"{number}/2", "--receipt", str(path)], env=os.environ.copy())
        for number, path in enumerate(paths, 1)
    ]
    assert [process.wait() for process in running] == [0, 0]
    ran = adapter_merge("finish", *paths)
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (("--shard", "4/3", "--receipt", "r.json"), "'4/3' is no part of a merge"),
        (("--shard", "1/3"), "needs a receipt"),
        (("--shard", "1/3", "--receipt", "r.json", "-o", "x"), "goes to the Hub, not into a folder"),
        (("--shard", "1/3", "--receipt", "r.json", "--report", "x"), "no report, statement, signature or evaluation"),
        (("--receipt", "r.json", "-o", "x"), "A receipt is of a part of a merge"),
        (("--to", "demo/x", "-o", "x"), "merge publishes nothing"),
        ((), "Missing option '--output'"),
    ],
)
def test_what_makes_no_sense_is_said(adapter_merge: Command, asked: tuple[str, ...], why: str) -> None:
    ran = adapter_merge("merge", "demo/adapter", *asked)
    assert ran.code == 2
    assert why in ran.err


def test_more_parts_than_files_leave_some_without_any() -> None:
    from types import SimpleNamespace
    from typing import cast

    from bot.by_shard.receipts import Part
    from bot.shard_needs import ShardNeeds
    from bot.share_out import needs_of

    needs = [cast("ShardNeeds", SimpleNamespace(shard=SimpleNamespace(size=size))) for size in (5, 1, 5, 9)]
    for count in (1, 2, 3, 4, 9):
        shares = [needs_of(Part(number=number, of=count), needs) for number in range(1, count + 1)]
        assert [need for share in shares for need in share] == needs
