"""The files under test, parsed. YAML is read with every scalar as text, so that `on` stays a word and `true` a word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
EXAMPLES = sorted((GITHUB / "examples").glob("*.yml"))
PAGES = sorted((ROOT / "docs").glob("*.md"))
OURS = "adapter-merge/adapter-merge"  # the one name that examples, docs and README use
Yaml = dict[str, Any]

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
each_file = pytest.mark.parametrize("path", [*WORKFLOWS, *EXAMPLES], ids=lambda path: path.name)
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


def read(path: Path) -> Yaml:
    """One YAML file."""
    return dict(yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader))


def action() -> Yaml:
    """action.yml."""
    return read(ROOT / "action.yml")


def jobs(path: Path) -> Iterator[tuple[str, Yaml]]:
    """The jobs of a workflow by id."""
    yield from read(path)["jobs"].items()


def steps(path: Path) -> Iterator[Yaml]:
    """All steps of all jobs."""
    for _, job in jobs(path):
        yield from job.get("steps", [])


def uses(path: Path) -> Iterator[tuple[str, Yaml]]:
    """Everything a workflow uses: (reference, the step or job that does)."""
    for _, job in jobs(path):
        for user in (job, *job.get("steps", [])):
            if "uses" in user:
                yield user["uses"], user


def is_ours(reference: str) -> bool:
    """Whether a step uses this repository's action (not one of its workflows)."""
    return reference in ("./", "./.adapter-merge") or reference.partition("@")[0] == OURS


def fences(path: Path, *languages: str) -> list[str]:
    """The code blocks of a page in these languages ("" for those that name none)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]
