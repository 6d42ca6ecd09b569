"""What a contributor runs: make's targets, the hooks before a commit, and the lint, which CI runs once."""

from __future__ import annotations

import re
import shlex
import tomllib

import yaml

from tests.workflows.files import ROOT, WORKFLOWS, steps

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]


def test_make_quick_names_tests_that_exist() -> None:
    listed = re.search(r"^QUICK := ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
    assert listed
    paths = listed[1].replace("\\\n", " ").split()
    assert "tests/house" in paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_github_lints_the_code_once() -> None:
    runs = [step["run"] for path in WORKFLOWS for step in steps(path) if "run" in step]
    targets = [
        word for run in runs for words in re.findall(r"^make (.+)$", run, re.MULTILINE) for word in words.split()
    ]
    assert targets.count("lint") == 1
    assert targets.count("lint-actions") == 1
    assert not {"test", "quick"} & set(targets), "they lint too"
    assert "ARGS=--ignore=tests/workflows" in targets, "lint-actions runs these"


def test_the_hooks_before_a_commit_are_the_projects_own_tools() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["lint"]
    ours = {re.split(r"[^\w-]", requirement)[0] for requirement in lint} | {"python"}
    assert [repo["repo"] for repo in HOOKS] == ["local"], "another repo would be fetched, in a version of its own"
    for hook in HOOKS[0]["hooks"]:
        assert hook["language"] == "system"
        assert hook.keys() >= {"id", "name", "entry"}
        program, *arguments = shlex.split(hook["entry"])
        assert program.removeprefix(".venv/bin/") in ours
        assert all((ROOT / word).exists() for word in arguments if word.startswith("tests/"))
