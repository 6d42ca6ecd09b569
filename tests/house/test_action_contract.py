"""action.yml, the outputs that are written and the tables in docs/action.md say the same; of the inputs: test_options.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from bot.action.outputs import OUTPUTS, STATUS_OF
from bot.cli import cli

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
PAGE = (ROOT / "docs" / "action.md").read_text()


def test_debug_is_an_option_of_every_command_too() -> None:
    # A group has commands of its own, and itself does nothing.
    every = [inner for outer in cli.commands.values() for inner in getattr(outer, "commands", {"": outer}).values()]
    assert all("--debug" in {flag for option in command.params for flag in option.opts} for command in every)


@pytest.mark.parametrize("name", ACTION["inputs"])
def test_the_pages_table_has_the_inputs_own_words(name: str) -> None:
    assert f"| `{name}` | {ACTION['inputs'][name]['description'].strip()} |" in PAGE


@pytest.mark.parametrize("name", ACTION["outputs"])
def test_the_pages_table_has_the_outputs_own_words(name: str) -> None:
    assert f"| `{name}` | {ACTION['outputs'][name]['description'].strip()} |" in PAGE


def test_the_action_has_the_outputs_that_are_written() -> None:
    assert tuple(ACTION["outputs"]) == OUTPUTS


@pytest.mark.parametrize("status", ["published", "unchanged", "dry-run", "failed", *STATUS_OF.values()])
def test_every_status_is_told(status: str) -> None:
    assert re.search(rf"\b{status}\b", ACTION["outputs"]["status"]["description"])


@pytest.mark.parametrize("name", ACTION["inputs"])
def test_every_input_reaches_the_launcher_by_its_environment(name: str) -> None:
    variable = "INPUT_" + name.upper().replace("-", "_")
    assert ACTION["runs"]["steps"][0]["env"][variable] == f"${{{{ inputs.{name} }}}}"
