"""What users rely on is said the same everywhere: the CLI, the README, the errors, the package."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from bot import errors
from bot.adapters.combine.notation import KINDS
from bot.adapters.methods import METHODS
from bot.cli import cli
from bot.records import Combination, Options, Request

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMAND_LINE = (ROOT / "docs" / "command-line.md").read_text()
WHAT_IT_MERGES = (ROOT / "docs" / "what-it-merges.md").read_text()
IN_ONE_LINE = {text: " ".join(text.split()) for text in (README, WHAT_IT_MERGES)}  # a phrase may run over a line's end
NOT_NAMES = re.compile(
    r"(^|_)(util|utils|helper|helpers|manager|process|handler|legacy|efficient|info|data)(_|$|\.py$)"
)


def option_names(command: click.Command) -> set[str]:
    return {flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")}


def test_every_exit_code_of_the_contract_has_its_error() -> None:
    found = {name: kind.exit_code for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert {"Usage": 2, "Refused": 3, "NotVerified": 4, "Outside": 5, "MachineTooSmall": 6}.items() <= found.items()
    assert errors.OUR_BUG == 70


@pytest.mark.parametrize("code", [0, 2, 3, 4, 5, 6, 70])
def test_the_help_the_readme_and_the_docs_name_every_exit_code(code: int) -> None:
    help_text = cli.get_help(click.Context(cli))
    assert re.search(rf"\b{code}\b", help_text)
    assert re.search(rf"\*\*{code}\*\*", README)
    assert re.search(rf"\*\*{code}\*\*", COMMAND_LINE)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_the_readme_names_every_command(name: str) -> None:
    assert f"`{name}" in README or f"adapter-merge {name}" in README


def test_the_docs_explain_every_option_of_run() -> None:
    table = COMMAND_LINE.partition("## Options")[2].partition("\n## ")[0]
    for option in option_names(cli.commands["run"]):
        assert re.search(rf"^\|.*`{option}\b.*\| \S", table, re.MULTILINE), option


def test_every_field_of_a_request_can_be_set_on_the_command_line() -> None:
    parameters = {parameter.name for parameter in cli.commands["run"].params}
    fields = set(Request.__dataclass_fields__) - {"options"} | set(Options.__dataclass_fields__)
    assert fields - {"adapter", "more", "combination"} | {"adapters", *Combination.__dataclass_fields__} <= parameters


def test_every_kind_of_combination_is_on_the_command_line_and_in_the_docs() -> None:
    option = next(parameter for parameter in cli.commands["run"].params if parameter.name == "kind")
    assert isinstance(option.type, click.Choice)
    assert sorted(option.type.choices) == sorted(KINDS)
    assert all(f"`{kind}`" in COMMAND_LINE for kind in KINDS)


def test_the_docs_name_every_method_that_is_merged_and_every_one_that_is_not() -> None:
    merged, _, refused = IN_ONE_LINE[WHAT_IT_MERGES].partition(" ## What it refuses")
    for method in METHODS.values():
        here = merged if method.engine else refused
        assert re.search(rf"\b{re.escape(method.name)}", here, re.IGNORECASE), method.name


def test_the_readme_and_the_docs_count_the_architectures_that_are_tested() -> None:
    from tests.factory import ALL_ARCHITECTURES

    for text in IN_ONE_LINE.values():
        assert f"on {len(ALL_ARCHITECTURES)} architectures" in text


def test_the_readme_counts_the_methods_as_the_docs_do() -> None:
    others = re.search(r"\*\*(\d+) other methods\*\*", IN_ONE_LINE[WHAT_IT_MERGES])
    assert others
    assert f"{others[1]} other methods" in IN_ONE_LINE[README]


def test_the_readme_is_read_in_a_minute() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_and_every_option_has_help(command: str) -> None:
    found = cli.commands[command]
    assert found.help
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{command} {parameter.opts}"


def test_the_two_commands_stand_on_the_readmes_first_screen() -> None:
    first_screen = "\n".join(README.splitlines()[:60])
    assert "make demo" in first_screen
    assert "make test" in first_screen
    assert "uses:" in first_screen


@pytest.mark.parametrize(
    "path", sorted((ROOT / "bot").rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_names_are_the_fields_own(path: Path) -> None:
    import ast

    names = {path.name}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    assert not [name for name in names if NOT_NAMES.search(name.lower())]


def test_nothing_tracked_names_a_machine_path_or_holds_a_token() -> None:
    import subprocess

    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    secret = re.compile(r"hf_[A-Za-z0-9]{30,}|ghp_[A-Za-z0-9]{30,}|/root/|/work/main")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and name != "tests/house/test_contracts.py":
            found = secret.search(path.read_text(errors="ignore"))
            assert not found, f"{name}: {found}"


def test_nothing_advises_to_install_what_no_index_has() -> None:
    import subprocess

    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    advice = re.compile(r"(?:pip|pipx|uv tool|uv pip) install (?:-\S+ )*[\"']?adapter[-_]merge\b", re.IGNORECASE)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and name != "CHANGELOG.md":
            found = advice.search((ROOT / name).read_text(errors="ignore"))
            assert not found, f"{name}: {found}"


def test_the_picture_in_the_readme_is_drawn_from_the_demos_transcript() -> None:
    from xml.etree import ElementTree

    from docs.picture import PAGE, PICTURE, drawn

    assert "(docs/a-run.svg)" in README
    assert PICTURE.read_text("utf-8") == drawn(PAGE.read_text("utf-8")), "run python docs/picture.py"
    words = " ".join(ElementTree.parse(PICTURE).getroot().itertext())
    for said in ("$ adapter-merge run", "0 of 852,864", "K = ", "✓ verified and published"):
        assert said in words
    assert len(PICTURE.read_bytes()) < 10_000
