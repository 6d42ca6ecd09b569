"""Every way to end: its exit code, its outputs, its summary, one sentence of what happened and one of what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bot import pipeline
from bot.action import phases
from bot.action.outputs import OUTPUTS
from bot.devhub.faults import Fault
from bot.events import Emit
from bot.records import Local, Merged, Plan
from tests.action.conftest import Runner, Step
from tests.stories.conftest import World
from tests.stories.test_bad_input import as_pointer, edit_json, edit_tensors, put

Run = Callable[..., Step]

# inputs: words that must be said
NONSENSE: dict[str, tuple[dict[str, str], str]] = {
    "no adapter": ({"adapter": ""}, "adapter is empty"),
    "an unknown dtype": ({"dtype": "int3"}, "dtype cannot be 'int3'"),
    "an unknown way to publish": ({"publish": "maybe"}, "publish cannot be 'maybe'"),
    "a base-weights that there is not": ({"base_weights": "simulate-int8"}, "base-weights cannot be 'simulate-int8'"),
    "a quantize that there is not": ({"quantize": "int2"}, "quantize cannot be 'int2'"),
    "an unknown report": ({"report": "summary, pigeon"}, "report cannot be 'pigeon'"),
    "a flag that is no flag": ({"force": "perhaps"}, "force cannot be 'perhaps'"),
    "two revisions": ({"adapter": "demo/adapter@v1", "adapter_revision": "v2"}, "names one revision"),
    "a revision for a folder": ({"adapter": "./x", "adapter_revision": "v1", "target_repo": "a/b"}, "is a folder"),
    "a revision without its base": ({"base_revision": "v1"}, "base-revision is given without base-model"),
    "a folder without a target": ({"adapter": "./x"}, "Name the target with `target-repo: owner/name`"),
    "a target that is no repo": ({"target_repo": "merged"}, "'merged' is not a Hub repo"),
    "one target for two adapters": ({"adapter": "a/b,c/d", "target_repo": "e/f"}, "target-repo has 1 entries for 2"),
    "two adapters into one repo": ({"adapter": "a/b,c/d", "target_repo": "e/f,E/F"}, "the same target repo"),
    "weights without a way to combine": ({"adapter": "a/b,c/d", "weights": "1,2"}, "weights is given, and combine is empty"),
    "a way to combine that there is not": ({"combine": "blend"}, "combine cannot be 'blend'"),
    "weights that are no numbers": ({"adapter": "a/b,c/d", "combine": "cat", "weights": "1,much"}, "weights cannot be 'much'"),
    "a weight too few": ({"adapter": "a/b,c/d", "combine": "cat", "weights": "1", "target_repo": "e/f"}, "their weights 1"),
    "half a rank": ({"adapter": "a/b,c/d", "combine": "svd", "rank": "7.5", "target_repo": "e/f"}, "It takes whole numbers"),
    "two targets for one model": ({"adapter": "a/b,c/d", "combine": "cat", "target_repo": "e/f,g/h"}, "makes one model"),
    "one model without a name": ({"adapter": "a/b,c/d", "combine": "cat"}, "Name the target with `target-repo: owner/name`"),
    "a device that there is not": ({"device": "tpu"}, "device cannot be 'tpu'"),
    "a debug that is no flag": ({"debug": "very"}, "debug cannot be 'very'"),
    "a license that the Hub does not know": ({"license": "apache-9"}, "'apache-9' is no license id that the Hub knows"),
    "no ref at all": ({"adapter": "what is this?"}, "neither a Hub repo nor a folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", NONSENSE)
def test_an_input_that_makes_no_sense_is_usage(case: str, runner: Runner) -> None:
    inputs, words = NONSENSE[case]
    step = runner.step(**{"adapter": "demo/adapter"} | inputs)
    assert step.code == 2
    (error,) = step.annotations("error")
    assert words in error.replace("%3A", ":")
    assert tuple(step.outputs) == OUTPUTS
    assert (step.outputs["status"], step.outputs["verified"]) == ("failed", "false")
    assert step.summary.startswith("## ✗ Failed")


def test_a_phase_that_does_not_exist(runner: Runner) -> None:
    assert runner.step("merge-and-run").code == 2


@pytest.fixture
def own(runner: Runner, world: World) -> Path:
    """An adapter in the repository."""
    return Path(shutil.copytree(world.adapter, runner.workspace / "adapter"))


def test_a_refusal_is_told_in_outputs_summary_and_annotation(run: Run, own: Path) -> None:
    edit_json(own / "adapter_config.json", use_dora=True)
    step = run(adapter="./adapter", target_repo="demo/mine")
    assert step.code == 3
    assert (step.outputs["status"], step.outputs["verified"]) == ("refused", "false")
    assert step.outputs["base-sha"]
    assert step.outputs["fingerprint"]
    assert step.outputs["report-path"] == ""
    assert "## ✗ Refused: ./adapter" in step.summary
    assert "DoRA" in step.summary
    assert step.annotations("error")[0].startswith("::error title=adapter-merge,file=adapter/adapter_config.json::")


def test_git_lfs_pointers_name_the_checkouts_setting(run: Run, own: Path, world: World) -> None:
    as_pointer(world.base, own)
    step = run(adapter="./adapter", target_repo="demo/mine")
    assert step.code == 3
    assert "lfs: true" in step.annotations("error")[0]
    assert step.outputs["status"] == "refused"


def test_what_is_not_verified_is_not_published(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = pipeline.merge

    def merge_wrongly(plan: Plan, inputs: Local, partial: Path, emit: Emit, **more: bool) -> Merged:
        merged = merge(plan, inputs, partial, emit, **more)
        edit_tensors(partial / "model-00002-of-00004.safetensors", put("proj", 3.0))
        return merged

    monkeypatch.setattr(pipeline, "merge", merge_wrongly)
    step = run(target_repo="demo/mine")
    assert step.code == 4
    assert (step.outputs["status"], step.outputs["verified"], step.outputs["repo"]) == ("not-verified", "false", "")
    assert json.loads(Path(step.outputs["report-path"]).read_text())["verdict"] == "not-verified"
    assert not world.api.repo_exists("demo/mine")
    assert "## ✗ Not verified" in step.summary
    assert "**FAIL**" in step.summary
    assert "Reproduce" not in step.summary


def test_no_token_to_publish_with(run: Run) -> None:
    step = run(hf_token="")
    assert step.code == 5
    assert "id-token: write" in step.annotations("error")[0]


def test_a_hub_that_is_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.hub.connection.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    step = run(adapter="demo/elsewhere")
    assert step.code == 5
    assert (step.outputs["status"], step.summary.splitlines()[0]) == ("failed", "## ✗ Failed: demo/elsewhere")


def test_a_machine_that_is_too_small(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    look = pipeline.look
    monkeypatch.setattr(pipeline, "look", lambda folder: replace(look(folder), disk_free=1000))
    step = run()
    assert step.code == 6
    assert "disk" in step.annotations("error")[0]
    assert step.outputs["status"] == "failed"
    assert step.outputs["base-sha"]
    assert step.summary.startswith("## ✗ This machine cannot do it")


def test_room_on_a_gpu_is_looked_for_by_the_merge_that_gets_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The phase that downloads is shown no GPU: whether `full` fits is not its to say, where torch could use one."""
    look = pipeline.look
    monkeypatch.setattr(pipeline, "look", lambda folder: replace(look(folder), memory_available=500 << 20))
    for later in ("merge", "publish"):
        monkeypatch.setitem(phases.PHASES, later, lambda run: None)
    assert run(verify="full").code == 6
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "void")
    monkeypatch.setattr(phases, "torch_has_cuda", lambda: False)
    assert run(verify="full").code == 6
    monkeypatch.setattr(phases, "torch_has_cuda", lambda: True)
    assert run(verify="full").code == 0


def test_our_bug_shows_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*arguments: object) -> None:
        raise ZeroDivisionError("::error::not a command")

    monkeypatch.setattr(phases, "planned", break_down)
    step = run()
    assert step.code == 70
    assert "Traceback" in step.log
    assert "report it" in step.annotations("error")[0]
    assert step.outputs["status"] == "failed"
    assert tuple(step.outputs) == OUTPUTS


def test_a_cancelled_run_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(phases, "planned", cancel)
    step = run()
    assert step.code == 130
    assert "Interrupted" in step.log


def test_inputs_that_change_between_the_phases_are_refused(run: Run, own: Path) -> None:
    inputs = {"adapter": "./adapter", "target_repo": "demo/mine"}
    assert run("fetch", **inputs).code == 0
    edit_tensors(own / "adapter_model.safetensors", lambda ts: [tensor.mul_(2) for tensor in ts.values()])
    step = run("merge", **inputs)
    assert step.code == 3
    assert "changed after it was fetched" in step.annotations("error")[0]


def test_a_failed_phase_stays_failed_in_the_ones_after_it(run: Run) -> None:
    inputs = {"adapter": "demo/base", "target_repo": "demo/mine"}
    assert [run(phase, **inputs).code for phase in ("fetch", "merge", "publish")] == [3, 3, 3]


@pytest.mark.parametrize("how", ["input", "runner"])
def test_a_debugged_run_shows_the_traceback_of_every_error(how: str, run: Run, runner: Runner) -> None:
    asked = {"adapter": "demo/nobody"}
    assert "Traceback" not in run(**asked).log
    if how == "runner":
        runner.environment["RUNNER_DEBUG"] = "1"
    else:
        asked["debug"] = "true"
    step = run(**asked)
    assert step.code == 5
    assert "Traceback" in step.log
    assert "NotFound" in step.log


def test_a_merge_that_could_not_be_published_is_left_and_named(run: Run, world: World) -> None:
    world.hub.faults.add(Fault(path=r"/commit/", status=400, times=None, body='{"error": "not today"}'))
    step = run(target_repo="demo/mine")
    assert step.code == 5
    assert (step.outputs["status"], step.outputs["verified"]) == ("failed", "true")
    assert (Path(step.outputs["folder"]) / "verification.json").exists()
