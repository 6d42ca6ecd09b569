"""The docs say what is there: links, commands, options, examples, refusal codes, messages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from bot.checks import CHECKS
from bot.cli import cli
from tests.workflows.files import (
    EXAMPLES,
    OURS,
    PAGES,
    ROOT,
    action,
    each_page,
    fences,
)
from tests.workflows.said import everything_said, refusal_codes

TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md") if (ROOT / name).exists())]
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
EMBEDDED = re.compile(r"<!-- (\.github/examples/\S+) -->\n+```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text()

each_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)


# --- lines -----------------------------------------------------------------------------------------------------------


@each_text
def test_no_line_of_prose_is_over_120_characters(path: Path) -> None:
    prose = re.sub(r"^```.*?^```$|^\|[^\n]*$|<!--.*?-->", "", path.read_text(), flags=re.M | re.S)
    assert not [line for line in prose.splitlines() if len(line) > 120]


# --- links --------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_text
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    for target in LINK.findall(re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


@each_page
def test_every_page_can_be_reached_from_the_index(path: Path) -> None:
    index = ROOT / "docs" / "index.md"
    assert path == index or f"({path.name})" in index.read_text()


@each_text
def test_every_path_of_this_repository_named_in_the_text_exists(path: Path) -> None:
    named = re.findall(r"`((?:bot|tests|tools|docs|bench|\.github)/[\w./-]*)`", path.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


# --- examples -----------------------------------------------------------------------------------------------------


@each_page
def test_a_workflow_shown_on_a_page_is_the_example_itself(path: Path) -> None:
    text = path.read_text()
    shown = EMBEDDED.findall(text)
    assert len(shown) == text.count("<!-- .github/examples/")
    for name, block in shown:
        assert block == (ROOT / name).read_text(), f"{path.name} shows another {name}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_shown_on_a_page(path: Path) -> None:
    assert any(f"<!-- .github/examples/{path.name} -->" in page.read_text() for page in PAGES)


@each_text
def test_every_yaml_shown_parses_and_gives_our_action_only_inputs_that_it_has(path: Path) -> None:
    for block in fences(path, "yaml"):
        for given in _given(yaml.load(block, Loader=yaml.BaseLoader)):
            assert set(given) <= set(action()["inputs"])


def _given(node: object) -> Iterator[dict[str, str]]:
    """Every `with:` of a step that uses our action, however deep."""
    if isinstance(node, dict):
        if str(node.get("uses", "")).startswith(f"{OURS}@"):
            yield node.get("with", {})
        for value in node.values():
            yield from _given(value)
    elif isinstance(node, list):
        for value in node:
            yield from _given(value)


@each_text
def test_the_action_has_one_name(path: Path) -> None:
    for found in re.findall(r"uses: ([\w.-]+/adapter-merge\S*)", path.read_text()):
        assert found.startswith(
            (f"{OURS}@v1", *(f"{OURS}/.github/workflows/{name}.yml@v1" for name in ("merge", "huge")))
        )


def test_before_a_release_the_action_is_pinned_by_commit_and_the_image_by_digest() -> None:
    page = ROOT / "docs" / "before-a-release.md"
    steps = [step for step in _steps(page) if str(step.get("uses", "")).startswith("acme/merge-action@")]
    assert len(steps) == 2
    for step in steps:
        assert re.fullmatch(r"acme/merge-action@[0-9a-f]{40}", step["uses"])
        assert set(step["with"]) <= set(action()["inputs"])
        if "image" in step["with"]:
            assert re.fullmatch(r"ghcr\.io/acme/merge-action@sha256:[0-9a-f]{64}", step["with"]["image"])


def _steps(path: Path) -> Iterator[dict[str, Any]]:
    """Every step of every workflow shown on a page."""
    for block in fences(path, "yaml"):
        found = yaml.load(block, Loader=yaml.BaseLoader)
        for job in found.get("jobs", {"": found}).values():
            yield from job.get("steps", [])


# --- commands -----------------------------------------------------------------------------------------------------


def commands_shown(path: Path) -> Iterator[list[str]]:
    """The words of every `adapter-merge …` on a page, in blocks and between backticks."""
    text = path.read_text()
    lines = [line for block in fences(path, "", "bash", "console", "sh") for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    for line in lines:
        found = re.match(r"(?:\$ )?adapter-merge (.+)", line.strip())
        if found:
            yield shlex.split(found[1], comments=True)


@each_text
def test_every_command_shown_exists_with_the_options_shown(path: Path) -> None:
    for words in commands_shown(path):
        name = words[0] if words else ""
        if name.startswith("-"):
            continue
        assert name in cli.commands, " ".join(words)
        command = cli.commands[name]
        if isinstance(command, click.Group):
            assert len(words) > 1, " ".join(words)
            command = command.commands[words[1]]
        known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        for word in words[1:]:
            if word.startswith("-"):
                assert word.partition("=")[0] in known | {"--help"}, " ".join(words)


@each_text
def test_every_option_named_in_the_text_exists_somewhere(path: Path) -> None:
    every = [inner for outer in cli.commands.values() for inner in (outer, *getattr(outer, "commands", {}).values())]
    known = {flag for command in every for parameter in command.params for flag in parameter.opts}
    others = {
        "--network",
        "--build-arg",
        "--torch-backend",
        "--index-url",
        "--gpus",
        "--labels",
        "--offline",
        "--strict-collection",
        "--runtime",
        "--output",
        "--version",
        "--help",
    }
    named = {
        match
        for code in re.findall(r"`([^`\n]+)`", path.read_text())
        for match in re.findall(r"(?<!\S)--[a-z-]+", code)
    }
    assert named <= known | others


# --- messages -----------------------------------------------------------------------------------------------------


def rows() -> list[list[str]]:
    """The cells of every row of every table on the page."""
    found = [line.strip().strip("|").split("|") for line in TROUBLE.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in cells] for cells in found]


def messages() -> set[str]:
    """The messages of the page: the cell that ends like a sentence or has a `…`, in tables that have a way out."""
    found = set()
    for cells in rows():
        if len(cells) == 3 and cells[0] not in ("message", "---", "exit code"):
            found.add(cells[0])
        elif len(cells) == 4 and cells[0] not in ("code", "---"):
            found.add(cells[1])
    return found - {"2", "3", "4", "5", "6", "70", "130"}


def test_every_message_of_the_code_stands_on_the_page() -> None:
    shown = messages()
    missing = {
        said.text: said.where
        for said in everything_said()
        if said.text not in shown and not (said.where == "bot/launch.sh" and said.text.startswith(tuple(shown)))
    }
    assert not missing, "add to docs/troubleshooting.md:\n" + "\n".join(
        f"| {text} | why | what to do |   ({where})" for text, where in missing.items()
    )


def test_every_message_on_the_page_is_one_of_the_codes() -> None:
    said = everything_said()
    texts = {one.text for one in said}
    launcher = tuple(one.text for one in said if one.where == "bot/launch.sh")
    stale = [m for m in messages() if m not in texts and not any(text.startswith(m) for text in launcher)]
    assert not stale


def test_every_refusal_code_stands_on_the_page_and_no_other() -> None:
    shown = {code for cells in rows() if len(cells) == 4 for code in re.findall(r"`([a-z0-9-]+)`", cells[0])}
    assert shown == refusal_codes()


def test_every_check_stands_on_the_page_and_no_other() -> None:
    section = TROUBLE.partition("| check | when it fails |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE) == [check.id for check in CHECKS]


def test_every_exit_code_stands_on_the_page() -> None:
    help_text = cli.get_help(click.Context(cli))
    for code in re.findall(r"\b(\d+) [a-z]", help_text.partition("Exit codes:")[2]):
        assert code == "0" or re.search(rf"^\| {code} \|", TROUBLE, re.MULTILINE), code
