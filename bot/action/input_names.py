"""The stages' sentences name the command line's options; here they name the action's inputs instead."""

from __future__ import annotations

import re

from bot.options import every_option

OPTIONS = [each for each in every_option() if each.input]
INPUTS = {each.name: each.input for each in OPTIONS} | {"adapter": "adapter", "debug": "debug"}
FLAGS = {each.name for each in OPTIONS if each.type is bool} | {"debug"}
CHOICES = "|".join(choice for each in OPTIONS for choice in each.choices)
VALUES = rf"owner/name(?:@revision)?|\./folder|{CHOICES}|-?\d[\d.,-]*\d"
OPTION = re.compile(rf"--({'|'.join(INPUTS)})(?![\w-])(?: ({VALUES})(?![\w-]))?")
VARIABLES = {"HF_TOKEN": "hf-token", "HF_HOME": "`cache-dir`", "--output": "ADAPTER_MERGE_WORK"}
VARIABLE = re.compile(r"(?<![\w-])(`?)(HF_TOKEN|HF_HOME|--output)\1(?![\w=-])")  # also as code


def as_inputs(text: str) -> str:
    """`--verify weights` becomes `verify: weights`, `HF_TOKEN` becomes `hf-token`, a folder's name that of where it is set."""
    return VARIABLE.sub(lambda match: VARIABLES[match[2]], OPTION.sub(_as_input, text))


def _as_input(match: re.Match[str]) -> str:
    name, value = INPUTS[match[1]], match[2]
    if match[1] in FLAGS:
        return f"`{name}: true`"
    return f"`{name}: {value}`" if value else f"`{name}`"
