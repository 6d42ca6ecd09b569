"""doctor tells beforehand what a run would meet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bot.devhub import Fault
from bot.doctor import NEEDED, examine
from bot.numerics.rounder import CLONES
from bot.project import REPOSITORY
from bot.records import Gpu, Machine
from tests.publish.given import TARGET
from tests.pull.given import hub_client

GB = 1_000_000_000
MACHINE = Machine(
    memory=64 * GB, memory_available=32 * GB, disk_free=500 * GB, platform="Linux",
    versions=dict.fromkeys(NEEDED, "1.0"),
)  # fmt: skip


def seen(hub, target=TARGET, machine=MACHINE):
    lines = examine(target, hub, machine)
    for line in lines:
        assert line.sentence.endswith(".")
        assert (line.status == "ok") == (not line.remedy)
        assert "hf_" not in line.sentence + line.remedy
    return {line.topic: line for line in lines}


def test_a_healthy_setup_is_all_ok(hub, owner):
    owner.existing()
    assert {line.status for line in seen(hub).values() if line.topic != "compiled" or CLONES} == {"ok"}
    assert seen(hub)["token"].sentence == "The token is demo's, of role write."


def test_an_installation_without_a_compiler_is_told_what_it_costs(hub, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "twice as long" in seen(hub)["compiled"].sentence


def test_a_target_that_would_be_created(hub):
    assert "would be created" in seen(hub)["target"].sentence


@pytest.mark.parametrize(("role", "token", "target"), [("read", "warn", "fail"), ("write", "ok", "ok")])
def test_the_tokens_role_decides(dev, owner, tmp_path, role, token, target):
    owner.existing()
    found = seen(hub_client(dev, tmp_path, token=dev.create_token("demo", role)))
    assert (found["token"].status, found["target"].status) == (token, target)


def test_a_narrow_token_names_its_scope(dev, owner, tmp_path):
    found = seen(hub_client(dev, tmp_path, token=dev.create_token("demo", "fine-grained", ["demo/other"])))
    assert "limited to demo/other" in found["token"].sentence


def test_a_target_that_was_renamed_is_looked_at_by_its_new_name(dev, owner, tmp_path):
    owner.existing()
    owner.api.move_repo(TARGET, "demo/new-name")
    may = ("repo.content.read", "repo.write", "discussion.write")
    narrow = dev.create_token("demo", "fine-grained", ["demo/new-name"], permissions=may)
    assert seen(hub_client(dev, tmp_path, token=narrow))["target"].status == "ok"


def test_a_token_that_the_hub_tells_nothing_of_is_no_failure(dev, hub, owner):
    """It can push; a pull request of its own would not be known again."""
    dev.faults.add(Fault(path="/api/whoami", status=403, times=None, body='{"error": "not for this token"}'))
    found = seen(hub, "demo/new")
    assert (found["token"].status, found["target"].status) == ("warn", "ok")
    owner.existing()
    line = seen(hub)["target"]
    assert line.status == "warn"
    assert "may write to it, but open no pull request. The Hub does not say whose this token is" in line.sentence


def test_a_bad_token_and_none(dev, tmp_path):
    assert seen(hub_client(dev, tmp_path, token="hf_notatoken"))["token"].status == "fail"
    nobody = seen(hub_client(dev, tmp_path, token=False))
    assert (nobody["token"].status, nobody["target"].status) == ("warn", "fail")


def test_somebody_elses_namespace(hub):
    assert "demo is not in acme" in seen(hub, "acme/model")["target"].sentence
    assert seen(hub, "no/such/thing")["target"].status == "fail"


def test_a_hub_that_is_away(dev, tmp_path):
    hub = hub_client(dev, tmp_path)
    dev.close()
    found = seen(hub)
    assert found["hub"].status == "fail"
    assert "target" not in found


def test_a_small_machine(hub):
    small = replace(MACHINE, disk_free=GB, memory_available=GB, versions={**MACHINE.versions, "peft": None})
    found = seen(hub, None, small)
    assert [found[topic].status for topic in ("disk", "memory", "versions")] == ["warn", "warn", "fail"]
    assert "peft" in found["versions"].sentence


def test_a_gpu_that_torch_is_not_built_for_is_said_to_be_left_alone(hub):
    line = seen(hub, None, replace(MACHINE, gpus=(Gpu(name="NVIDIA H200", uuid="GPU-1"),), cuda=False))["gpu"]
    assert line.status == "ok"
    assert "the installed torch is not built for it, so that merges and proofs run on the CPU" in line.sentence


def test_advice_to_install_can_be_followed(hub, monkeypatch):
    # It was advised to install the name from an index, and none has it.
    lame = seen(hub, None, replace(MACHINE, versions={**MACHINE.versions, "torch": None}))["versions"]
    assert lame.sentence == "Not installed: torch."
    assert f"`pip install .` in a clone of {REPOSITORY}" in lame.remedy
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install --force-reinstall --no-deps ." in seen(hub)["compiled"].remedy
