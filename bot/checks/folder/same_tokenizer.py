"""Whether two tokenizer.json mean the same: each version of the libraries spells one otherwise when it saves it again.

tokenizers wrote merges as "a b" before 0.20, and as pairs since. transformers 5 builds the tokenizer of a class that it knows
anew, with that class's normalizer and pre-tokenizer: of Llama 2 with a Metaspace, which the Hub's file spells as a normalizer.
"""

from __future__ import annotations

import json
from typing import Any

from bot.records import Json

TABLES = ("model", "added_tokens")  # which token has which number
STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
# What a ByteLevel step says and does nothing with: of offsets, and, where it splits no text, of how to.
IDLE = {
    "pre_tokenizer": {"trim_offsets"},
    "post_processor": {"trim_offsets", "add_prefix_space", "use_regex"},
    "decoder": {"trim_offsets", "add_prefix_space", "use_regex"},
}
# None starts with a space: there transformers 5's Llama has other numbers than the Hub's file, for every base.
TEXTS = (
    "Hello, World! It's 12:45, I'LL pay $1,234.56 (or 7\u202f%).",
    "two  spaces, a\ttab\n\nand  \n lines ",
    "na\u00efve cafe\u0301 \ufb01 \u00c5 \u2581x\u0120y",
    "\u4f60\u597d\uff0c\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \u041f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "def f(x):\n    return x**2 # to_do_list",
    "",
)


def same_tokenizer(first_json: Json, second_json: Json) -> bool:
    """Whether every step is the same, or every text of TEXTS has the same numbers by the same vocabulary, there and back."""
    first, second = _normalised(first_json), _normalised(second_json)
    if first.get("added_tokens") != second.get("added_tokens") or _vocabulary(first) != _vocabulary(second):
        return False
    if all(first.get(part) == second.get(part) for part in (*TABLES, *STEPS)):
        return True
    numbers = _ids_and_texts(first_json)
    return numbers is not None and numbers == _ids_and_texts(second_json)


def _loaded(tokenizer: Json) -> Any:
    """The library's tokenizer; None where it cannot read this."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(tokenizer))
    except Exception:  # the library raises nothing more special
        return None


def _normalised(tokenizer: Json) -> Json:
    """As today's library writes it, without what has no effect; as it stands, where the library cannot read it."""
    loaded = _loaded(tokenizer)
    if loaded is None:
        return tokenizer
    normalised: Json = json.loads(loaded.to_str())
    for step, idle in IDLE.items():
        normalised[step] = _without(normalised.get(step), idle)
    after = normalised["post_processor"] or {}
    if after.get("type") == "ByteLevel" or (after.get("type") == "TemplateProcessing" and not after["special_tokens"]):
        normalised["post_processor"] = None  # it adds nothing
    return normalised


def _without(step: Any, idle: set[str]) -> Any:
    """A step, and those that it is made of, without what its ByteLevels have no use for."""
    if isinstance(step, list):
        return [_without(part, idle) for part in step]
    if not isinstance(step, dict):
        return step
    dropped = idle if step.get("type") == "ByteLevel" else set()
    return {key: _without(value, idle) for key, value in step.items() if key not in dropped}


def _vocabulary(tokenizer: Json) -> tuple[Any, Any]:
    model = tokenizer.get("model")
    return (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)


def _ids_and_texts(tokenizer: Json) -> list[tuple[list[int], str]] | None:
    """Each text's numbers, and what becomes of them when they are read back."""
    loaded = _loaded(tokenizer)
    if loaded is None:
        return None
    numbers = [loaded.encode(text).ids for text in TEXTS]
    return [(ids, loaded.decode(ids)) for ids in numbers]
