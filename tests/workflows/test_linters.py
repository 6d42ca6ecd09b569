"""The linters, as they run in CI too: offline, strict, without findings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflows.files import EXAMPLES, GITHUB, ROOT, WORKFLOWS


def lint(tool: str, *arguments: str | Path) -> None:
    """Run a linter; it must have nothing to say. Skips where the tool is missing, but never on GitHub."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which(tool, path=beside)
    if program is None:
        reason = f"{tool} is not installed; the extra `lint` of pyproject.toml brings it"
        assert os.environ.get("GITHUB_ACTIONS") != "true", reason
        pytest.skip(reason)
    done = subprocess.run([program, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_yaml_file_is_written_cleanly() -> None:
    lint("yamllint", "--strict", ".github", ".yamllint.yml", ".pre-commit-config.yaml", "action.yml")


@pytest.mark.parametrize(
    ("schema", "paths"),
    [
        ("vendor.github-workflows", [*WORKFLOWS, *EXAMPLES]),
        ("custom.github-workflows-require-timeout", [*WORKFLOWS, *EXAMPLES]),
        ("vendor.github-actions", [ROOT / "action.yml"]),
        ("vendor.dependabot", [GITHUB / "dependabot.yml"]),
        ("vendor.github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
        ("vendor.github-issue-forms", sorted(GITHUB.glob("ISSUE_TEMPLATE/[!c]*.yml"))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_file_has_the_shape_that_github_publishes(schema: str, paths: list[Path]) -> None:
    assert paths
    lint("check-jsonschema", "--builtin-schema", schema, *paths)


def test_zizmor_finds_no_weakness_in_the_workflows_the_examples_and_the_action() -> None:
    lint("zizmor", "--offline", "--strict-collection", "--quiet", ".", *EXAMPLES)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    lint("hadolint", "Dockerfile")


def test_actionlint_agrees() -> None:
    """It is no Python package that installs offline, so it runs only where somebody has put it on the PATH."""
    if shutil.which("actionlint") is None:
        pytest.skip("actionlint is not on the PATH")
    lint("actionlint", *WORKFLOWS, *EXAMPLES)
