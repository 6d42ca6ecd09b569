"""The stages' sentences name the command line's options; here they name the action's inputs instead."""

from __future__ import annotations

import re

INPUTS = {
    "base": "base-model",
    "to": "target-repo",
    "adapter": "adapter",
    "dtype": "dtype",
    "publish": "publish",
    "verify": "verify",
    "private": "private",
    "license": "license",
    "allow-pickle": "allow-pickle",
    "trust-remote-code": "trust-remote-code",
    "force": "force",
}
FLAGS = ("allow-pickle", "trust-remote-code", "force")
VALUE = r"(?: (owner/name(?:@revision)?|\./folder|auto|files|weights|full|true|false|pr|push|none|float32))?"
OPTION = re.compile(rf"--({'|'.join(INPUTS)})(?![\w-]){VALUE}")


def as_inputs(text: str) -> str:
    """`--verify weights` becomes `verify: weights`, `HF_TOKEN` becomes `hf-token`."""
    return re.sub(r"\bHF_TOKEN\b", "hf-token", OPTION.sub(_as_input, text))


def _as_input(found: re.Match[str]) -> str:
    name, value = INPUTS[found[1]], found[2]
    if found[1] in FLAGS:
        return f"`{name}: true`"
    return f"`{name}: {value}`" if value else f"`{name}`"
