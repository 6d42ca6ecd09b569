"""A value of config.json in half a line: a quantization_config by its method, its bits and what else decides the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bot.records import Json
from bot.untrusted.markdown import one_line

LONGEST = 60  # letters of any other value
LEFT_OUT = ("modules_to_not_convert", "llm_int8_skip_modules", "ignore", "ignored_layers")
# field → what is said of its value
FIELDS = {
    "fmt": "{}",
    "format": "{}",
    "quant_type": "{}",
    "bits": "{} bits",
    "group_size": "groups of {}",
    "weight_block_size": "blocks of {}",
    "activation_scheme": "{} activations",
}


def value(name: str, content: Any) -> str:
    """`content`, the value of a field whose dotted path is `name`, as a reader of a plan needs it."""
    if name.endswith("quantization_config") and isinstance(content, dict):
        return quantization(content)
    text = one_line(str(content))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def quantization(config: Json) -> str:
    """`bitsandbytes nf4, double quantisation, 2 modules left out`."""
    method = one_line(str(config.get("quant_method") or _oldest(config)))
    words = [part for part in (*_bitsandbytes(config), *_fields(config), *_groups(config)) if part]
    left = next((names for field in LEFT_OUT if isinstance(names := config.get(field), list) and names), list[Any]())
    more = [f"{len(left)} module{'' if len(left) == 1 else 's'} left out"] if left else []
    first, *rest = words or [""]
    return ", ".join(part for part in (f"{method} {first}".strip(), *rest, *more))[:200]


def _oldest(config: Json) -> str:
    """Before there was `quant_method` only bitsandbytes wrote such a config."""
    return "bitsandbytes" if config.get("load_in_4bit") or config.get("load_in_8bit") else "quantised"


def _bitsandbytes(config: Json) -> Iterator[str]:
    if config.get("load_in_8bit"):
        yield "int8"
    if config.get("load_in_4bit"):
        yield str(config.get("bnb_4bit_quant_type", "fp4"))
        if config.get("bnb_4bit_use_double_quant"):
            yield "double quantisation"


def _fields(config: Json) -> Iterator[str]:
    for name, words in FIELDS.items():
        content = config.get(name)
        if isinstance(content, list) and content and all(isinstance(size, int) for size in content):
            yield words.format(" × ".join(map(str, content)))
        elif isinstance(content, str | int) and not isinstance(content, bool):
            yield words.format(one_line(str(content))[:LONGEST])


def _groups(config: Json) -> Iterator[str]:
    """compressed-tensors: how the weights of each group of layers are stored."""
    groups = config.get("config_groups")
    for group in (groups if isinstance(groups, dict) else {}).values():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and isinstance(weights.get("num_bits"), int):
            yield f"{weights['num_bits']}-bit {weights.get('type', '')} by {weights.get('strategy', 'tensor')}"
