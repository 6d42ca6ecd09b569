"""The stages' sentences name the command line's options; here they name the action's inputs instead."""

from __future__ import annotations

import re

INPUTS = {
    "base": "base-model",
    "to": "target-repo",
    "adapter": "adapter",
    "dtype": "dtype",
    "base-weights": "base-weights",
    "quantize": "quantize",
    "overflow": "overflow",
    "publish": "publish",
    "verify": "verify",
    "device": "device",
    "combine": "combine",
    "weights": "weights",
    "density": "density",
    "seed": "seed",
    "rank": "rank",
    "majority-sign": "majority-sign",
    "private": "private",
    "license": "license",
    "allow-pickle": "allow-pickle",
    "trust-remote-code": "trust-remote-code",
    "force": "force",
    "debug": "debug",
}
FLAGS = ("allow-pickle", "trust-remote-code", "force", "debug")
WORDS = r"auto|files|weights|full|true|false|pr|push|none|cpu|cuda|original|stored|simulate-nf4|same|clamp|refuse"
VALUES = rf"owner/name(?:@revision)?|\./folder|{WORDS}|bfloat16|float16|float32|nf4|fp4|int8|fp8|cat|svd|-?\d[\d.,-]*\d"
OPTION = re.compile(rf"--({'|'.join(INPUTS)})(?![\w-])(?: ({VALUES})(?![\w-]))?")


VARIABLES = {"HF_TOKEN": "hf-token", "HF_HOME": "`cache-dir`", "--output": "ADAPTER_MERGE_WORK"}
VARIABLE = re.compile(r"(?<![\w-])(`?)(HF_TOKEN|HF_HOME|--output)\1(?![\w=-])")  # also as code


def as_inputs(text: str) -> str:
    """`--verify weights` becomes `verify: weights`, `HF_TOKEN` becomes `hf-token`, a folder's name that of where it is set."""
    return VARIABLE.sub(lambda found: VARIABLES[found[2]], OPTION.sub(_as_input, text))


def _as_input(found: re.Match[str]) -> str:
    name, value = INPUTS[found[1]], found[2]
    if found[1] in FLAGS:
        return f"`{name}: true`"
    return f"`{name}: {value}`" if value else f"`{name}`"
