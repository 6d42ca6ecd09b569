"""action.yml, Request, the command line and the table in docs/action.md say the same."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import yaml

from bot.action.inputs import CHOICES
from bot.action.outputs import OUTPUTS, STATUS_OF
from bot.cli import cli
from bot.records import Combination, Options, Request

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
PAGE = (ROOT / "docs" / "action.md").read_text()

# Each input and the field of Request or Options that it sets; None where it is the launcher's or the reports' own.
FIELDS = {
    "adapter": "adapter", "adapter-revision": "adapter", "base-model": "base", "base-revision": "base",
    "target-repo": "target", "publish": "publish", "dtype": "dtype", "base-weights": "base_weights", "overflow": "overflow",
    "quantize": "quantize", "verify": "verify", "private": "private", "license": "license", "force": "force",
    "trust-remote-code": "trust_remote_code", "allow-pickle": "allow_pickle", "hf-token": None, "hf-read-token": None,
    "github-token": None, "report": None, "runtime": None, "gpus": None, "image": None, "cache-dir": None, "debug": None,
    "device": "device", "combine": "combination", "weights": "weights", "density": "density", "seed": "seed", "rank": "rank",
    "majority-sign": "majority_sign",
}  # fmt: skip


def test_every_input_is_accounted_for() -> None:
    assert ACTION["inputs"].keys() == FIELDS.keys()


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field])
def test_an_input_sets_a_field_that_exists(name: str) -> None:
    assert (
        FIELDS[name] in Request.__dataclass_fields__ | Options.__dataclass_fields__ | Combination.__dataclass_fields__
    )


def test_every_way_to_combine_has_its_input() -> None:
    assert {field if field != "kind" else "combination" for field in Combination.__dataclass_fields__} <= set(
        FIELDS.values()
    )


@pytest.mark.parametrize(
    "name", ["publish", "dtype", "base-weights", "quantize", "overflow", "verify", "device", "private"]
)
def test_an_inputs_default_is_the_command_lines_and_its_values_are_told(name: str) -> None:
    option = next(p for p in cli.commands["run"].params if p.name == FIELDS[name])
    assert isinstance(option.type, click.Choice)
    given = ACTION["inputs"][name]
    assert given.get("default", option.default) == option.default
    for choice in option.type.choices:
        assert re.search(rf"\b{choice}\b", given["description"]), f"{name} does not mention {choice}"


@pytest.mark.parametrize("name", ["combine", "majority-sign"])
def test_an_input_of_the_combination_tells_its_values_and_is_left_open(name: str) -> None:
    option = next(p for p in cli.commands["run"].params if f"--{name}" in p.opts)
    assert isinstance(option.type, click.Choice)
    assert ACTION["inputs"][name]["default"] == ""
    for choice in option.type.choices:
        assert re.search(rf"\b{choice}\b", ACTION["inputs"][name]["description"]), f"{name} does not mention {choice}"


@pytest.mark.parametrize("name", CHOICES)
def test_what_an_input_takes_is_what_the_option_of_that_name_takes(name: str) -> None:
    option = next(p for p in cli.commands["run"].params if f"--{name}" in p.opts)
    assert isinstance(option.type, click.Choice)
    assert set(CHOICES[name]) == set(option.type.choices)


ALIKE = (
    *("publish", "private", "license", "force", "device", "debug"),
    *("combine", "weights", "density", "seed", "rank", "majority-sign"),
)


@pytest.mark.parametrize("name", ALIKE)
def test_an_input_of_one_name_with_an_option_exists_on_the_command_line(name: str) -> None:
    assert f"--{name}" in {flag for parameter in cli.commands["run"].params for flag in parameter.opts}


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
