"""How the command line is read: options in groups, other spellings of them, and an answer to what people write instead."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

import click

from bot.errors import Usage
from bot.terminal.spelling import describe_choices, resolve_choice

# --help shows the options in this order, under these headings; what is in none comes last.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Inputs", ("--base", "--adapter", "--allow-pickle", "--trust-remote-code")),
    (
        "The merge",
        (
            "--base-weights",
            "--quantization-config",
            "--dtype",
            "--quantize",
            "--overflow",
            "--engine",
            "--device",
            "--disk",
        ),
    ),
    (
        "Several adapters (into one model, or with --each into a model of its own each)",
        ("--each", "--combine", "--weights", "--density", "--seed", "--rank", "--majority-sign"),
    ),
    (
        "Proof",
        (
            "--verify",
            "--eval-text",
            "--eval",
            "--eval-limit",
            "--check-attestation",
            "--signed-by",
            "--attestation",
            "--sign",
            "--report",
            "--exit-code",
        ),
    ),
    (
        "Result",
        (
            "--output",
            "--shard",
            "--receipt",
            "--to",
            "--publish",
            "--publish-report",
            "--private",
            "--license",
            "--force",
            "--dry-run",
        ),
    ),
    ("Output", ("--json", "--verbose", "--quiet", "--debug", "--help")),
)

_TO = ("Name the target with --to owner/name.", "--to")
_OUTPUT = ("Name the folder with --output DIR (or -o).", "--output")
_BASE = ("Name the base with --base owner/name (or a folder).", "--base")
_ADAPTER = ("Name the adapter without an option: adapter-merge run owner/name.", None)
_REVISION = ("Write it behind the name of what it is of: owner/name@revision.", None)
_TOKEN = (
    "Set HF_TOKEN (HF_READ_TOKEN for the inputs), or run `hf auth login`; a command line is seen by others.",
    None,
)
_DEEPER = ("Write the folder behind the repo: owner/name/checkpoint-500.", None)
_DTYPE = ("Name the storage dtype with --dtype bfloat16, float16 or float32.", "--dtype")
_FOUR_BITS = (
    "--base-weights simulate-nf4 merges into the weights that QLoRA trained on; --quantize nf4 stores the result so.",
    "--quantize",
)
_EIGHT_BITS = ("--quantize int8 or fp8 stores the result so.", "--quantize")
_FORCE = ("--force does it again, or over what is there.", "--force")
_PROOF = ("Nothing is published unproven; --verify files is the quickest proof.", "--verify")
_ATTESTATION = ("--attestation FILE writes statements, verify --check-attestation FILE checks them.", "--attestation")
_PUSH = ("--publish push commits to main, --publish pr opens a pull request, none publishes nothing.", "--publish")
_SHARDS = ("Leave it out: the result has the base's files, names and shards, always as safetensors.", None)
_TALK = (
    "Progress is always told on standard error, --debug shows tracebacks, and --verbose (-v) every check.",
    "--verbose",
)
_CACHE = ("Set HF_HOME, or HF_HUB_CACHE.", None)

# What people write → (what to do, the option that does it).
ADVICE: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(
        ("--revision", "--adapter-revision", "--base-revision", "--branch", "--rev", "--commit"), _REVISION
    ),
    **dict.fromkeys(
        ("--token", "--hf-token", "--use-auth-token", "--hf-read-token", "--auth-token", "--api-key"), _TOKEN
    ),
    **dict.fromkeys(
        (
            "--target",
            "--target-repo",
            "--repo",
            "--repo-id",
            "--hub",
            "--hub-id",
            "--hub-model-id",
            "--push-to",
            "--dest",
        ),
        _TO,
    ),
    **dict.fromkeys(("--push", "--push-to-hub", "--pr", "--create-pr", "--no-push", "--no-publish", "--upload"), _PUSH),
    **dict.fromkeys(
        ("--out", "--output-dir", "--out-dir", "--output-path", "--save-dir", "--save-path", "--dir"), _OUTPUT
    ),
    **dict.fromkeys(
        ("--base-model", "--model", "--base-model-name-or-path", "--model-name-or-path", "--model-id"), _BASE
    ),
    **dict.fromkeys(
        (
            "--adapter",
            "--adapters",
            "--lora",
            "--peft",
            "--peft-model",
            "--lora-path",
            "--adapter-path",
            "--adapter-model",
        ),
        _ADAPTER,
    ),
    **dict.fromkeys(("--subfolder", "--checkpoint", "--folder", "--adapter-name"), _DEEPER),
    **dict.fromkeys(("--torch-dtype", "--precision", "--bf16", "--fp16", "--fp32", "--half", "--data-type"), _DTYPE),
    **dict.fromkeys(
        ("--load-in-4bit", "--4bit", "--nf4", "--qlora", "--quantization", "--quant", "--bits"), _FOUR_BITS
    ),
    **dict.fromkeys(("--load-in-8bit", "--8bit", "--int8", "--fp8"), _EIGHT_BITS),
    **dict.fromkeys(
        ("--gpu", "--gpus", "--cuda", "--cpu", "--device-map"), ("Name it with --device cpu or cuda.", "--device")
    ),
    **dict.fromkeys(("--endpoint", "--hub-url", "--hf-endpoint"), ("Set HF_ENDPOINT.", None)),
    **dict.fromkeys(("--cache-dir", "--cache", "--hf-home"), _CACHE),
    **dict.fromkeys(("--offline", "--local-files-only"), ("Set HF_HUB_OFFLINE=1.", None)),
    **dict.fromkeys(("--public", "--visibility"), ("--private false makes a new target public.", "--private")),
    **dict.fromkeys(
        ("--combination", "--combination-type", "--merge-method", "--method"),
        ("Say how several adapters become one with --combine.", "--combine"),
    ),
    **dict.fromkeys(
        ("--weight", "--alpha", "--scale", "--scales"), ("Give one weight each with --weights 0.7,-0.3.", "--weights")
    ),
    **dict.fromkeys(("--overwrite", "--exist-ok", "--resume"), _FORCE),
    **dict.fromkeys(("--provenance", "--attest", "--in-toto"), _ATTESTATION),
    **dict.fromkeys(("--no-verify", "--skip-verify", "--skip-verification", "--no-check", "--level"), _PROOF),
    **dict.fromkeys(("--safe-serialization", "--max-shard-size", "--shard-size", "--safetensors"), _SHARDS),
    **dict.fromkeys(("-vv", "--log-level", "--progress"), _TALK),
    **dict.fromkeys(("--yes", "-y", "--no-input"), ("Leave it out: nothing is asked.", None)),
    "--tag": ("Name the adapter's tag, owner/name@tag: the target gets the same.", None),
    "--tokenizer": ("Leave it out: the tokenizer is the adapter's, where it brings one, else the base's.", None),
}
COMMANDS = {
    **dict.fromkeys(("push", "upload", "release"), "publish"),
    **dict.fromkeys(("check", "prove", "test", "validate"), "verify"),
    **dict.fromkeys(("diff", "cmp"), "compare"),
    "server": "hub",
    **dict.fromkeys(("env", "info", "status", "login"), "doctor"),
    **dict.fromkeys(("dry-run", "show", "inspect"), "plan"),
}


def hyphened(name: str) -> str:
    """Options are spelled with - or _, as one likes."""
    return name.replace("_", "-")


class OneOf(click.Choice[str]):
    """One of a few words, however people spell them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The choice that is meant. Raises Usage."""
        option, choices = param.opts[0].removeprefix("--") if param is not None else "", tuple(self.choices)
        choice = resolve_choice(option, str(value), choices)
        if choice is None:
            raise Usage(f"--{option} cannot be {value!r}.", remedy=describe_choices(option, str(value), choices))
        return choice


class Command(click.Command):
    """A command whose --help is in groups, and that answers options which it does not have."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As ever. Raises Usage for an option that is not there."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise Usage(
                f"{self.name} has no option {error.option_name}.", remedy=_instead(self, ctx, error.option_name)
            ) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options under their headings."""
        left = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        known = {flag for _, flags in GROUPS for flag in flags}
        own = tuple(param.opts[-1] for param in left if not known & set(param.opts))
        for title, flags in (*GROUPS[:-1], ("Options", own), GROUPS[-1]):
            here = [param for flag in flags for param in left if flag in param.opts]
            left = [param for param in left if param not in here]
            records = [record for param in here if (record := param.get_help_record(ctx)) is not None]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Group(click.Group):
    """The commands, with an answer to those that it does not have."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As ever. Raises Usage for an option before the command."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise Usage(
                f"{error.option_name} stands before any command.",
                remedy=f"Write the command first, then its options: {', '.join(self.commands)}.",
            ) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As ever. Raises Usage for a command that is not there."""
        name = args[0] if args else ""
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = COMMANDS.get(name) or next(iter(get_close_matches(name, self.commands, 1)), None)
            hint = f"Did you mean {near}? " if near else ""
            raise Usage(f"There is no command {name!r}.", remedy=f"{hint}There are {', '.join(self.commands)}.")
        return super().resolve_command(ctx, args)


def _instead(command: click.Command, ctx: click.Context, option: str) -> str:
    """What to write in place of an option that a command does not have."""
    own, name = set(_flags(command)), hyphened(option)
    typed = next(iter(get_close_matches(name, ADVICE, 1, 0.85)), name) if name not in own else name
    advice, flag = ADVICE.get(typed, ("", name))
    others = _with(flag, ctx) if flag not in own else []
    if others:
        return f"{advice or 'It is for another command.'} {' and '.join(others)} {'have' if len(others) > 1 else 'has'} {flag}."
    if advice:
        return advice
    near = get_close_matches(name, own, 2, 0.75)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}`adapter-merge {command.name} --help` shows all."


def _with(option: str | None, ctx: click.Context) -> list[str]:
    """The commands that have an option."""
    group = ctx.parent.command if ctx.parent is not None else None
    commands = group.commands if isinstance(group, click.Group) else {}
    return [name for name, command in commands.items() if option in set(_flags(command))]


def _flags(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from parameter.opts
