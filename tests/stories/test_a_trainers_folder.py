"""An adapter as a trainer leaves it, beside what it keeps to go on training: that is no part of any merge."""

from __future__ import annotations

import json
import os
from pathlib import Path

from bot.pull.folders import folder_sha
from tests.stories.conftest import Command, World

KEPT = ("optimizer.pt", "training_args.bin", "runs/now/events.out.tfevents.1", "checkpoint-5/adapter_config.json")


def keep(adapter: Path) -> None:
    for name in KEPT:
        (adapter / name).parent.mkdir(parents=True, exist_ok=True)
        (adapter / name).write_bytes(os.urandom(100))


def test_the_merge_is_the_same_whatever_lies_beside_the_adapter(world: World, adapter_merge: Command):
    words = (world.adapter, "--base", world.base, "--json")
    before = json.loads(adapter_merge("plan", *words).out)["fingerprint"]
    keep(world.adapter)
    ran = adapter_merge("plan", *words)
    assert json.loads(ran.out)["fingerprint"] == before
    assert f"{world.adapter}/checkpoint-5 names one" in ran.err


def test_a_report_that_names_a_folder_by_all_of_its_files_still_holds(
    world: World, adapter_merge: Command, tmp_path: Path
):
    """Those made before only what a merge reads counted."""
    from hashlib import sha256

    keep(world.adapter)
    out, given = tmp_path / "out", ("--base", world.base)
    assert adapter_merge("merge", world.adapter, *given, "-o", out, "--verify", "files").code == 0
    path = out / "verification.json"
    report = json.loads(path.read_text())
    files = [one for one in world.adapter.rglob("*") if one.is_file() and one.name != "README.md"]
    before = folder_sha((f.relative_to(world.adapter).as_posix(), sha256(f.read_bytes()).hexdigest()) for f in files)
    assert report["inputs"]["adapter"]["sha"] != before
    report["inputs"]["adapter"]["sha"] = before
    path.write_text(json.dumps(report))
    words = ("verify", out, *given, "--adapter", world.adapter, "--verify", "files")
    ran = adapter_merge(*words)
    assert ran.code == 0, ran.out
    (world.adapter / "optimizer.pt").write_bytes(b"of another training")
    assert adapter_merge(*words).code == 4
