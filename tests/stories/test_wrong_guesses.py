"""What people write instead: an option of another tool, a dtype by its short name, a tag or a repo that is nearly there."""

from __future__ import annotations

import json

import click
import pytest

from bot.action.inputs import OPTIONS
from bot.checks import CHECKS
from bot.cli import cli
from bot.cli.option_groups import ADVICE, COMMANDS, GROUPS
from bot.devhub import Fault
from bot.terminal.spelling import HINTS, SYNONYMS
from bot.verdict_text import PROVEN_BY
from tests.stories.conftest import Command, World
from tests.stories.test_bad_input import assert_said

FLAGS = {name: {flag for param in command.params for flag in param.opts} for name, command in cli.commands.items()}


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "do"),
    [
        (("run", "x", "--revision", "v1"), "owner/name@revision"),
        (("run", "x", "--token", "hf_x"), "Set HF_TOKEN"),
        (("run", "x", "--target", "a/b"), "--to owner/name"),
        (("run", "x", "--hub-model-id", "a/b"), "--to owner/name"),
        (("run", "x", "--push-to-hub"), "--publish push"),
        (("merge", "x", "--out", "y"), "--output DIR"),
        (("merge", "x", "--output_dir", "y"), "--output DIR"),
        (("run", "x", "--base-model", "y"), "--base owner/name"),
        (("run", "x", "--base_modle", "y"), "--base owner/name"),
        (("run", "--adapter", "y"), "without an option"),
        (("run", "x", "--subfolder", "checkpoint-500"), "owner/name/checkpoint-500"),
        (("run", "x", "--torch-dtype", "bf16"), "--dtype bfloat16"),
        (("run", "x", "--load-in-4bit"), "simulate-nf4"),
        (("plan", "x", "--target", "a/b"), "run and publish have --to"),
        (("plan", "x", "--publish", "pr"), "run and publish have --publish"),
        (("run", "x", "--overflows", "clamp"), "Did you mean --overflow?"),
        (("run", "x", "--qqqq"), "`adapter-merge run --help` shows all"),
        (("run", "x", "--dtype", "int4"), "--quantize's"),
        (("run", "x", "--quantize", "4bit"), "none, nf4, fp4, int8, fp8, same. Four bits are nf4"),
        (("run", "x", "--quantize", "8bit"), "Eight bits are int8"),
        (("run", "x", "--quantize", "bnb"), "nf4, fp4 and int8"),
        (("run", "x", "--quantize", "gguf"), "its own tool"),
        (("run", "x", "--verify", "weigths"), "Did you mean weights?"),
        (("push", "x"), "Did you mean publish?"),
        (("verfy", "x"), "Did you mean verify?"),
        (("--token", "x", "run"), "Write the command first"),
    ],
)  # fmt: skip
def test_a_wrong_guess_is_answered_with_what_to_write(adapter_merge: Command, words: tuple[str, ...], do: str):
    ran = adapter_merge(*words)
    assert_said(ran, 2, "")
    assert do in ran.err
    assert json.loads(adapter_merge(*words, "--json").out)["error"]["exit_code"] == 2


@pytest.mark.parametrize("word", ["bf16", "BF16", "torch.bfloat16", "bfloat16"])
def test_a_dtype_has_the_names_that_people_write(world: World, adapter_merge: Command, word: str):
    plans = [
        json.loads(adapter_merge("plan", "demo/adapter", "--dtype", one, "--json").out) for one in (word, "bfloat16")
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(("word", "means"), [("fp16", "float16"), ("half", "float16"), ("fp32", "float32")])
def test_other_dtypes_too(world: World, adapter_merge: Command, word: str, means: str):
    assert json.loads(adapter_merge("plan", "demo/adapter", "--dtype", word, "--json").out)["options"]["dtype"] == means


def test_options_and_their_values_are_spelled_with_either_stroke(world: World, adapter_merge: Command):
    ran = adapter_merge("plan", "demo/adapter", "--base_weights", "stored", "--engine", "in_memory", "--json")
    assert json.loads(ran.out)["options"]["engine"] == "in-memory"


# --- the tables are true ------------------------------------------------------------------------------------------


def test_no_guess_is_an_option_that_is_there():
    everywhere = set.union(*FLAGS.values())
    assert not [name for name in ADVICE if name in everywhere and name not in ("--adapter",)]
    assert {does for _, does in ADVICE.values() if does} <= everywhere
    assert set(COMMANDS.values()) <= FLAGS.keys()
    assert not COMMANDS.keys() & FLAGS.keys()


def test_every_hint_is_of_a_value_that_is_not_taken():
    for table in (SYNONYMS, HINTS):
        for option, values in table.items():
            assert not values.keys() & set(OPTIONS[option].choices), option
    for option, values in SYNONYMS.items():
        assert set(values.values()) <= set(OPTIONS[option].choices)


@pytest.mark.parametrize("name", ["plan", "merge", "run", "verify", "publish", "compare", "doctor"])
def test_every_option_stands_in_one_group_of_the_help(name: str):
    grouped = [flag for _, flags in GROUPS for flag in flags]
    assert len(grouped) == len(set(grouped))
    command = cli.commands[name]
    for param in command.params:
        assert isinstance(param, click.Argument) or set(param.opts) & set(grouped), param.opts
    text = command.get_help(click.Context(command, info_name=name))
    assert "\nOptions:" not in text
    assert all(text.count(f"{flag} ") >= 1 for flag in FLAGS[name] if flag.startswith("--"))


def test_combining_stands_in_one_place_of_the_help(adapter_merge: Command):
    text = adapter_merge("run", "--help").out
    section = text[text.index("Several adapters") : text.index("\nProof:")]
    for flag in ("--each", "--combine", "--weights", "--density", "--seed", "--rank", "--majority-sign"):
        assert f"  {flag} " in section


def test_a_level_is_known_by_a_check_of_that_level():
    levels = {check.id: check.level for check in CHECKS}
    assert all(levels[check] == level for level, checks in PROVEN_BY.items() for check in checks)


# --- what is nearly there -----------------------------------------------------------------------------------------


def test_a_tag_that_is_not_there_is_answered_with_those_that_are(world: World, adapter_merge: Command):
    world.api.create_tag("demo/adapter", tag="v10")
    world.api.create_branch("demo/adapter", branch="next")
    ran = adapter_merge("plan", "demo/adapter@v9")
    assert_said(ran, 5, "demo/adapter has no revision 'v9'")
    assert "It has the tags v10, v1 and the branches next, main." in ran.err
    assert "the branch main." in adapter_merge("plan", "demo/adapter", "--base", "demo/base@master").err


def test_of_many_tags_a_few_are_named(world: World, adapter_merge: Command):
    for number in range(2, 20):
        world.api.create_tag("demo/adapter", tag=f"r{number}")
    said = adapter_merge("plan", "demo/adapter@v9").err
    assert "the tags v1, r19, r18" in said
    assert "and 11 more" in said


@pytest.mark.parametrize("wrong", ["demo/adaptor", "demo/Adapters", "demos/adapter"])
def test_a_mistyped_repo_is_answered_with_the_one_that_is_near(world: World, adapter_merge: Command, wrong: str):
    ran = adapter_merge("plan", wrong)
    assert_said(ran, 5, f"{wrong} does not exist")
    assert "Did you mean demo/adapter?" in ran.err


def test_what_is_not_near_is_not_named(world: World, adapter_merge: Command):
    assert "Did you mean" not in adapter_merge("plan", "nobody/something-else").err


def test_where_the_hub_does_not_list_the_failure_stays_what_it_is(world: World, adapter_merge: Command):
    for path in (r"/api/models\?", "/api/models/demo/adapter/refs"):
        world.hub.faults.add(Fault(method="GET", path=path, status=500, times=None))
    assert_said(adapter_merge("plan", "demo/adaptor"), 5, "demo/adaptor does not exist")
    assert_said(adapter_merge("plan", "demo/adapter@v9"), 5, "has no revision 'v9'")
