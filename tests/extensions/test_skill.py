"""The skill for agents: the format that agentskills.io lays down, and commands that are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from bot.cli import cli

SKILL = Path(__file__).parents[2] / ".agents" / "skills" / "adapter-merge" / "SKILL.md"
OPENING, FRONT, BODY = SKILL.read_text(encoding="utf-8").split("---\n", 2)
FIELDS = yaml.safe_load(FRONT)


def test_its_fields_are_those_of_the_format() -> None:
    assert OPENING == ""
    assert FIELDS.keys() <= {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
    assert FIELDS["name"] == SKILL.parent.name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", FIELDS["name"])
    assert len(FIELDS["name"]) <= 64
    assert 0 < len(FIELDS["description"]) <= 1024
    assert len(FIELDS["compatibility"]) <= 500
    assert len(BODY.splitlines()) < 500


def test_its_commands_and_options_exist() -> None:
    shown = re.findall(r"^adapter-merge (.+)$", BODY, re.MULTILINE)
    assert len(shown) > 5
    for line in shown:
        name, *words = shlex.split(line, comments=True)
        known = {flag for parameter in cli.commands[name].params for flag in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known, line
    named = {flag for code in re.findall(r"`(--[a-z-]+)`", BODY) for flag in [code]}
    assert named <= {flag for command in cli.commands.values() for each in command.params for flag in each.opts}
