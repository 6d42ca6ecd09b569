"""One place for an option: its field in bot/options.py. What is typed elsewhere is held to it here."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from bot.cli import cli
from bot.cli.option_groups import GROUPS
from bot.options import Combination, Option, Options, every_option, options_of
from bot.plan import fingerprint
from bot.report_document import FIELDS

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
WORKFLOW = yaml.load((ROOT / ".github" / "workflows" / "merge.yml").read_text(), yaml.BaseLoader)["on"]
COMMAND_LINE = (ROOT / "docs" / "command-line.md").read_text()
# The action's inputs that are no option: what it merges, tokens, reports, and where it runs.
OF_THE_ACTION = {
    *("adapter", "adapter-revision", "base-revision", "hf-token", "hf-read-token", "github-token", "report", "debug"),
    *("runtime", "gpus", "image", "cache-dir"),
}
LEFT_OPEN = {option.field for option in options_of(Combination)}  # nothing is combined unless it is asked for
SPELLED = r"--overflow\b|\boverflow:|\boverflow=|\.overflow\b|[\"']overflow[\"']"

each_option = pytest.mark.parametrize("option", every_option(), ids=lambda option: option.name)
each_input = pytest.mark.parametrize(
    "option", [option for option in every_option() if option.input], ids=lambda option: option.name
)


def default_of(option: Option) -> str:
    """The default as a workflow writes it: empty where it is left open."""
    if option.field in LEFT_OPEN or option.default is None:
        return ""
    return str(option.default).lower() if option.type is bool else option.default


def other_than_default(option: Option) -> Any:
    if option.field == "quantization":
        return (("bnb_4bit_quant_type", "fp4"),)
    return not option.default if option.type is bool else option.choices[-1]


def test_the_actions_inputs_are_the_options_and_its_own() -> None:
    assert ACTION.keys() == {option.input for option in every_option() if option.input} | OF_THE_ACTION


@each_input
def test_an_input_has_the_options_default_and_names_its_choices(option: Option) -> None:
    given = ACTION[option.input]
    assert given["default"] == default_of(option)
    for choice in option.choices:
        assert re.search(rf"\b{choice}\b", given["description"]), choice


@each_input
@pytest.mark.parametrize("event", ["workflow_dispatch", "workflow_call"])
def test_merge_yml_has_the_options_default_and_choices(option: Option, event: str) -> None:
    inputs = WORKFLOW[event]["inputs"]
    if option.input not in inputs:
        assert event == "workflow_dispatch"  # the form leaves out what is rare
        assert option.field in LEFT_OPEN | {"disk"}
        return
    given = inputs[option.input]
    assert given.get("default", "") == default_of(option)
    assert given["type"] == "boolean" if option.type is bool else given["type"] in ("choice", "string")
    if given["type"] == "choice":
        assert tuple(given["options"]) == option.choices


@each_option
def test_the_command_line_has_the_options_choices_and_default(option: Option) -> None:
    parameter = next(each for each in cli.commands["run"].params if f"--{option.name}" in each.opts)
    assert isinstance(parameter, click.Option)
    assert parameter.help == option.help
    assert (tuple(parameter.type.choices) if isinstance(parameter.type, click.Choice) else ()) == option.choices
    if option.choices and option.field not in LEFT_OPEN:
        assert parameter.default == option.default


@each_option
def test_the_docs_table_has_the_options_choices(option: Option) -> None:
    choices = " " + r"\|".join(option.choices) if option.choices else ""
    assert f"| `--{option.name}{choices}" in COMMAND_LINE


def options_of_the_bot() -> set[str]:
    """Every option of the bot's commands as it is shown first, without those that all commands have."""
    bot = cli.commands["bot"]
    assert isinstance(bot, click.Group)
    commands = [*(cli.commands[name] for name in ("serve", "poll", "dispatch")), *bot.commands.values()]
    named = {each.opts[0] for command in commands for each in command.params if isinstance(each, click.Option)}
    return named - {"--json", "--quiet", "--debug", "--help"}


def test_the_docs_table_has_the_bots_options_and_no_others() -> None:
    table = COMMAND_LINE.partition("## Options of the bot")[2].partition("## ")[0]
    rows = re.findall(r"^\| (`--.+?`) \|", table, re.MULTILINE)
    assert {flag for row in rows for flag in re.findall(r"`(--[a-z-]+)", row)} == options_of_the_bot()


@each_option
def test_an_option_stands_under_a_heading_of_the_help(option: Option) -> None:
    assert [title for title, flags in GROUPS if f"--{option.name}" in flags]


@pytest.mark.parametrize("option", options_of(Options), ids=lambda option: option.name)
def test_the_fingerprint_knows_what_decides_the_bytes_and_nothing_else(option: Option) -> None:
    def printed(options: Options) -> str:
        return fingerprint("base", "adapter", options, "simulate-nf4")

    changed = replace(Options(), **{option.field: other_than_default(option)})
    # Of the weights to merge into, what they turned out to be is in it: `auto` is one of the others.
    assert (printed(changed) != printed(Options())) == (option.decides and option.field != "base_weights")


def test_the_fingerprints_of_earlier_versions_are_still_those() -> None:
    assert fingerprint("base", "adapter", Options(), "stored").startswith("69bdabf847c40db5")
    clamped = Options(overflow="clamp", quantization=(("bnb_4bit_quant_type", "fp4"),))
    assert fingerprint("base", "adapter", clamped, "simulate-nf4").startswith("cb5f39c445cd9abf")


def test_the_report_has_the_options_that_decide_the_bytes() -> None:
    assert FIELDS["merge"]["options"].keys() == {option.field for option in options_of(Options) if option.decides}


def files_of_bot(pattern: str) -> list[str]:
    paths = (path for path in (ROOT / "bot").rglob("*.py") if re.search(pattern, path.read_text()))
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def test_six_files_at_most_name_an_option() -> None:
    """What one like `overflow` takes: its field, its heading in --help, the two engines that advise it where they refuse,
    and the reading of an older report. The command line, the action, the fingerprint, the report, its reader and the card
    are made from the field."""
    naming = files_of_bot(SPELLED)
    assert "bot/options.py" in naming
    assert len(naming) <= 6, naming


def test_what_obeys_an_option_does_not_spread() -> None:
    """`clamps` is what the code obeys: the merger's arithmetic on three paths (rows, PEFT's layers, the look for an effect),
    and, written apart from it on purpose, the verifier's in two rooms (element by element, and in the worker process that
    runs the models). That is the feature, not the option; the number may fall, not rise."""
    obeying = files_of_bot(r"\bclamps\b")
    assert len(obeying) <= 18, obeying
