"""action.yml, Request, the command line and the table in docs/action.md say the same."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import yaml

from bot.cli import cli
from bot.records import Options, Request

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
PAGE = (ROOT / "docs" / "action.md").read_text()

# Each input and the field of Request or Options that it sets; None where it is the launcher's or the reports' own.
FIELDS = {
    "adapter": "adapter", "adapter-revision": "adapter", "base-model": "base", "base-revision": "base",
    "target-repo": "target", "publish": "publish", "dtype": "dtype", "base-weights": "base_weights", "overflow": "overflow",
    "quantize": "quantize", "verify": "verify", "private": "private", "license": "license", "force": "force",
    "trust-remote-code": "trust_remote_code", "allow-pickle": "allow_pickle", "hf-token": None, "hf-read-token": None,
    "github-token": None, "report": None, "runtime": None, "gpus": None, "image": None, "cache-dir": None,
}  # fmt: skip


def test_every_input_is_accounted_for() -> None:
    assert ACTION["inputs"].keys() == FIELDS.keys()


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field])
def test_an_input_sets_a_field_that_exists(name: str) -> None:
    assert FIELDS[name] in Request.__dataclass_fields__ | Options.__dataclass_fields__


@pytest.mark.parametrize("name", ["publish", "dtype", "base-weights", "quantize", "overflow", "verify", "private"])
def test_an_inputs_default_is_the_command_lines_and_its_values_are_told(name: str) -> None:
    option = next(p for p in cli.commands["run"].params if p.name == FIELDS[name])
    assert isinstance(option.type, click.Choice)
    given = ACTION["inputs"][name]
    assert given.get("default", option.default) == option.default
    for choice in option.type.choices:
        assert re.search(rf"\b{choice}\b", given["description"]), f"{name} does not mention {choice}"


@pytest.mark.parametrize(
    "name", [name for name, field in FIELDS.items() if field in ("publish", "private", "license", "force")]
)
def test_an_input_of_one_name_with_an_option_exists_on_the_command_line(name: str) -> None:
    assert f"--{name}" in {flag for parameter in cli.commands["run"].params for flag in parameter.opts}


@pytest.mark.parametrize("name", ACTION["inputs"])
def test_the_pages_table_has_the_inputs_own_words(name: str) -> None:
    assert f"| `{name}` | {ACTION['inputs'][name]['description'].strip()} |" in PAGE


@pytest.mark.parametrize("name", ACTION["outputs"])
def test_the_page_names_every_output(name: str) -> None:
    assert f"`{name}`" in PAGE[PAGE.index("Outputs:") :]


@pytest.mark.parametrize("name", ACTION["inputs"])
def test_every_input_reaches_the_launcher_by_its_environment(name: str) -> None:
    variable = "INPUT_" + name.upper().replace("-", "_")
    assert ACTION["runs"]["steps"][0]["env"][variable] == f"${{{{ inputs.{name} }}}}"
