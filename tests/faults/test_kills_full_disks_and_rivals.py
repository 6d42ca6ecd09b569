"""What the world does to a merge: it is killed, the disk fills up, a rival writes there too, the base changes under it."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bot.errors import MachineTooSmall, Refused
from bot.events import Emit, Event, Note, StepProgress, silent
from bot.hub import Hub
from bot.machine import look
from bot.merge import merge
from bot.partial_folder import locked_partial_dir, note_of
from bot.plan import make_plan
from bot.pull import fetch
from bot.records import Local, Options, Plan
from tests.steps import sources_of

SHARDS = 10
KILLS = 50


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base of some 25 MB in ten shards, and an adapter on every layer of it."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4, vocab_size=512
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size="2200KB")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder / "adapter")
    assert len(list((folder / "base").glob("*.safetensors"))) >= SHARDS
    return folder / "base", folder / "adapter"


def command(inputs: tuple[Path, Path], output: Path) -> list[str]:
    base, adapter = inputs
    given = [str(adapter), "--base", str(base), "--output", str(output), "--verify", "files", "--quiet"]
    return [sys.executable, "-m", "bot", "merge", *given]


def hashes(folder: Path) -> dict[str, str]:
    """Of every file but the report, which says how long things took."""
    names = sorted(path.name for path in folder.iterdir() if path.name != "verification.json")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def partial_shards(output: Path) -> dict[str, int]:
    """The finished shards of an unfinished merge, with the time of their last change."""
    return {path.name: path.stat().st_mtime_ns for path in partial_paths(output)}


def partial_paths(output: Path) -> Iterator[Path]:
    return output.parent.glob(f".{output.name}.partial-*/*.safetensors")


def ended_within(running: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        running.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


@pytest.mark.slow
def test_fifty_kills_at_random_moments_never_leave_a_wrong_folder(inputs, tmp_path: Path) -> None:
    began = time.monotonic()
    subprocess.run(command(inputs, tmp_path / "once" / "merged"), check=True)
    usual = time.monotonic() - began
    expected = hashes(tmp_path / "once" / "merged")
    output, dice = tmp_path / "killed" / "merged", random.Random(0)
    kills, kept = 0, 0
    while kills < KILLS:
        before = partial_shards(output)
        running = subprocess.Popen(command(inputs, output))
        if dice.random() < 0.7:
            ended_within(running, dice.uniform(0.3, 1.0) * usual)
        else:  # the merge is a small part of the time: some kills look for it
            while len(list(partial_paths(output))) <= len(before) and not ended_within(running, 0.001):
                pass
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
            running.wait()
            kills += 1
            assert not output.exists() or hashes(output) == expected
        else:
            assert running.returncode == 0
        after = {path.name: path.stat().st_mtime_ns for path in output.glob("*.safetensors")} or partial_shards(output)
        assert before.items() <= after.items(), "a finished shard was written again"
        kept += len(before)
        if output.exists():
            assert hashes(output) == expected
            assert not partial_shards(output)
            shutil.rmtree(output)
    subprocess.run(command(inputs, output), check=True)
    assert hashes(output) == expected
    assert kept, "no kill came between two shards, so this test says nothing about going on"


@pytest.mark.parametrize("lost", ["its bytes", "its length", "what was noted"])
def test_a_finished_shard_that_a_power_cut_has_emptied_is_written_again(lost: str, inputs, tmp_path: Path) -> None:
    subprocess.run(command(inputs, tmp_path / "once"), check=True)
    expected, output = hashes(tmp_path / "once"), tmp_path / "merged"
    plan, notes = planned(inputs), []
    given = Local(base=inputs[0], adapter=inputs[1])

    def cut() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), locked_partial_dir(output, plan.fingerprint) as partial:
        merge(plan, given, partial, when_half_is_written(cut))
    first, *kept = sorted(partial.glob("*.safetensors"))
    assert kept
    if lost == "what was noted":
        note_of(partial).write_text('{"half of i')
    else:  # the name is on the disk, and the bytes are not
        size = first.stat().st_size
        first.write_bytes(bytes(size) if lost == "its bytes" else b"")
    with locked_partial_dir(output, plan.fingerprint) as partial:
        merged = merge(plan, given, partial, notes.append)
        partial.rename(output)
    said = sorted(event.text for event in notes if isinstance(event, Note))
    assert said == ([] if lost == "what was noted" else [f"{path.name} is there from an earlier run." for path in kept])
    assert merged.sha256 == {shard.name: expected[shard.name] for shard in plan.shards}
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.iterdir()} == {
        name: sha256 for name, sha256 in expected.items() if name != "README.md"
    }
    assert not list(tmp_path.glob(".merged*"))


def planned(inputs: tuple[Path, Path]) -> Plan:
    """A plan that takes the disk for endless."""
    base, adapter = inputs
    machine = replace(look(adapter), disk_free=1 << 60)
    return make_plan(sources_of(base, adapter), Options(), machine)


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest):
    """A tmpfs of as many bytes as the test's parameter says."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("small_disk", [1 << 16, 1 << 20, 5 << 20, 9_300_000, 17 << 20], indirect=True)
def test_a_disk_that_fills_up_is_told_and_leaves_nothing(inputs, small_disk: Path) -> None:
    plan, output = planned(inputs), small_disk / "merged"
    assert shutil.disk_usage(small_disk).free < plan.budget.output
    with pytest.raises(MachineTooSmall) as raised, locked_partial_dir(output, plan.fingerprint) as partial:
        merge(plan, Local(base=inputs[0], adapter=inputs[1]), partial, silent)
    assert raised.value.exit_code == 6
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("small_disk", [17 << 20], indirect=True)
def test_a_full_disk_is_noticed_before_the_work_of_a_shard(inputs, small_disk: Path) -> None:
    plan, begun, output = planned(inputs), [], small_disk / "merged"

    def emit(event: Event) -> None:
        if isinstance(event, StepProgress):
            begun.append(event.done)

    with pytest.raises(MachineTooSmall), locked_partial_dir(output, plan.fingerprint) as partial:
        merge(plan, Local(base=inputs[0], adapter=inputs[1]), partial, emit)
    finished = 0
    wholes = [finished := finished + shard.size for shard in plan.shards]
    assert min(abs(max(begun) - whole) for whole in wholes) < plan.budget.output // 50, "it stopped inside a shard"


@pytest.mark.parametrize("small_disk", [5 << 20], indirect=True)
def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(inputs, small_disk: Path) -> None:
    ran = subprocess.run(command(inputs, small_disk / "merged"), capture_output=True, text=True)
    assert ran.returncode == 6
    assert "disk" in ran.stderr
    assert list(small_disk.iterdir()) == []


def test_of_two_merges_into_one_folder_one_wins_and_the_other_says_so(inputs, tmp_path: Path) -> None:
    plan = planned(inputs)
    with locked_partial_dir(tmp_path / "out", plan.fingerprint):  # the first is at work
        second = subprocess.run(command(inputs, tmp_path / "out"), capture_output=True, text=True)
    assert second.returncode == 2
    assert "Another merge into this folder is running." in second.stderr
    both = [subprocess.Popen(command(inputs, tmp_path / "both"), stderr=subprocess.PIPE) for _ in range(2)]
    codes = sorted(one.wait() for one in both)
    for one in both:
        assert one.stderr
        one.stderr.close()
    assert codes in ([0, 2], [0, 0])
    assert hashes(tmp_path / "both").keys() >= {"config.json", "model.safetensors.index.json"}


def when_half_is_written(do) -> Emit:
    """A listener that does something in the middle of the merge, once."""
    done = []

    def emit(event: Event) -> None:
        if isinstance(event, StepProgress) and event.done * 2 > event.total and not done:
            done.append(True)
            do()

    return emit


@pytest.mark.parametrize("what", ["another byte", "another header", "shorter", "newer"])
def test_a_base_that_changes_under_the_merge_is_noticed(what: str, inputs, tmp_path: Path) -> None:
    base = Path(shutil.copytree(inputs[0], tmp_path / "base"))
    sources = sources_of(base, inputs[1])
    plan = make_plan(sources, Options(), look(tmp_path))
    given = fetch(sources, plan, Hub(), silent)
    victim = base / plan.shards[-1].name  # not read yet when half is written

    def tamper() -> None:
        content = bytearray(victim.read_bytes())
        if what == "newer":
            os.utime(victim)
            return
        content[-1 if what == "another byte" else 20] ^= 1
        victim.write_bytes(content[: -4096 if what == "shorter" else len(content)])

    said = r"not the file that was planned for|changed while|shorter|whole safetensors"
    with pytest.raises(Refused, match=said), locked_partial_dir(tmp_path / "out", plan.fingerprint) as partial:
        merge(plan, given, partial, when_half_is_written(tamper))
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
