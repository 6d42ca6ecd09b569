"""huge.yml: its steps, run by bash against a local Hub, make the merge that one machine makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.stories.conftest import World, tiny, world
from tests.workflows.files import GITHUB, read

HUGE = GITHUB / "workflows" / "huge.yml"
MERGED = "demo/merged"
__all__ = ["tiny", "world"]


def steps(job: str) -> dict[str, dict[str, Any]]:
    """By name."""
    return {step["name"]: step for step in read(HUGE)["jobs"][job]["steps"]}


def run(step: dict[str, Any], folder: Path, world: World, **given: str) -> dict[str, str]:
    """A step's script as a runner starts it; its outputs. `given` stands for the expressions in its environment."""
    assert step.get("env", {}).keys() - {"HF_TOKEN", "HF_READ_TOKEN"} == given.keys()
    output, variables = folder / "output", folder / "variables"
    output.write_text("")
    bin_folder = Path(sys.executable).parent
    environment = {
        **os.environ,
        **given,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "HF_TOKEN": str(world.hub.token),
        "HF_READ_TOKEN": "",
        "GITHUB_OUTPUT": str(output),
        "GITHUB_ENV": str(variables),
    }
    script = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    subprocess.run(script, env=environment, cwd=folder, check=True)
    return dict(line.split("=", 1) for line in output.read_text().splitlines())


@pytest.mark.slow
def test_its_jobs_make_one_merge_together(world: World, tmp_path: Path) -> None:
    plan, part, finish = steps("plan"), steps("part"), steps("finish")
    runner = tmp_path / "plan"
    runner.mkdir()
    run(plan["The plan"], runner, world, ADAPTER="demo/adapter", BASE="")
    pinned = run(plan["Base and adapter at their commits, and the parts"], runner, world, PARTS="3")
    assert pinned["adapter"] == f"demo/adapter@{world.api.model_info('demo/adapter').sha}"
    parts = json.loads(pinned["parts"])
    assert parts == ["1/3", "2/3", "3/3"]
    last = tmp_path / "finish"
    (last / "receipts").mkdir(parents=True)
    for number, name in enumerate(parts, 1):
        runner = tmp_path / f"part-{number}"
        runner.mkdir()
        run(
            part["Make, prove and send the part"], runner, world, PART=name, ADAPTER=pinned["adapter"], BASE=pinned["base"],
            TARGET=MERGED, PUBLISH="auto", LICENSE="",
        )  # fmt: skip
        (runner / f"receipt-{number}.json").rename(last / "receipts" / f"receipt-{number}.json")
        assert (runner / "variables").read_text() == f"NUMBER={number}\n"
    run(finish["The one commit"], last, world)
    report = json.loads(Path(world.api.hf_hub_download(MERGED, "verification.json")).read_text())
    assert report["verdict"] == "verified"
    for path in (last / "receipts").iterdir():
        path.unlink()
    run(finish["The one commit"], last, world)  # nothing was made, since all was there


def test_the_form_and_the_call_take_the_same() -> None:
    on = read(HUGE)["on"]
    assert on["workflow_dispatch"]["inputs"] == on["workflow_call"]["inputs"]
