"""What an adapter's repo says of the base that it was trained on: in four bits, or nothing.

QLoRA trains on a base that bitsandbytes has rounded to four bits, and its adapter belongs to those weights; none of the files
that PEFT reads says so. The trainers' cards do, each in its own way. A pickle (training_args.bin) is never opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from bot.records import Json, Source

LINES = 5_000  # of a card that are read
# unsloth/llama-3-8b-bnb-4bit, unsloth/Qwen3-8B-unsloth-bnb-4bit, somebody/model-nf4
FOUR_BITS = re.compile(r"[\w./-]*[-_.](bnb[-_.]?4bit|nf4|bnb[-_.]nf4)", re.IGNORECASE)
# `load_in_4bit: true` of axolotl and TRL (YAML), `- load_in_4bit: True` of PEFT's own card, `"load_in_4bit": true` (JSON)
QUOTE = r"[`\"']?"
NAMES = "load_in_4bit|adapter|bnb_4bit_quant_type|bnb_4bit_use_double_quant"
SETTING = re.compile(rf"[\s\-*•>]*{QUOTE}({NAMES}){QUOTE}\s*:\s*{QUOTE}(\w+)")
FINETUNED = re.compile(r"\W*finetuned from model\W+([\w.-]+/[\w.-]+)", re.IGNORECASE)  # unsloth's card
AS_QLORA = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": "true"}  # what simulate-nf4 takes by itself


def warnings(adapters: Iterable[Source]) -> tuple[str, ...]:
    """A sentence for each adapter that seems to belong to another base than a plain one."""
    return tuple(warning(evidence) for evidence in map(in_four_bits, adapters) if evidence)


def warning(evidence: str) -> str:
    """What a merge of such an adapter into plain weights is told."""
    return (
        f"The adapter seems to have been trained on a base in four bits (QLoRA): {evidence}. These are the plain weights, which are "
        "others: --base-weights simulate-nf4 merges it into those that it was trained on."
    )


def in_four_bits(adapter: Source) -> str | None:
    """The evidence, in words; None where there is none."""
    return next(filter(None, (_by_name(adapter), _by_tag(adapter), _by_card(adapter))), None)


def _by_name(adapter: Source) -> str | None:
    config: Any = json.loads(adapter.texts.get("adapter_config.json") or b"{}")
    config = config if isinstance(config, dict) else {}
    models = adapter.card.get("base_model")
    named = [("its config", config.get("base_model_name_or_path"))]
    named += [("its card", name) for name in (models if isinstance(models, list) else [models])]
    for where, name in named:
        if isinstance(name, str) and FOUR_BITS.fullmatch(name.strip().rstrip("/")[-200:]):
            return f"{where} names {name.strip().rstrip('/').rpartition('/')[2]} as its base"
    return None


def _by_tag(adapter: Source) -> str | None:
    tags = adapter.card.get("tags")
    for tag in tags if isinstance(tags, list) else [tags]:
        if isinstance(tag, str) and tag.strip().lower() == "qlora":
            return "its card has the tag qlora"
    name = (adapter.repo or "").rpartition("/")[2]
    return f"it is called {name}" if "qlora" in re.split(r"[-_.]", name.lower()) else None


def _by_card(adapter: Source) -> str | None:
    settings: dict[str, str] = {}
    lines = adapter.texts.get("README.md", b"").decode("utf-8", errors="replace").splitlines()[:LINES]
    for line in lines:
        if match := SETTING.match(line[:200]):
            settings.setdefault(match[1], match[2].lower())
        elif (model := FINETUNED.match(line[:300])) and FOUR_BITS.fullmatch(model[1]):
            return f"its card says that it was finetuned from {model[1]}"
    if settings.get("load_in_4bit") == "true":
        return f"its card says load_in_4bit: true{_otherwise(settings)}"
    return "its card says adapter: qlora" if settings.get("adapter") == "qlora" else None


def _otherwise(settings: Json) -> str:
    """Settings with which four bits are other numbers."""
    others = [f"{name}: {settings[name]}" for name, usual in AS_QLORA.items() if settings.get(name, usual) != usual]
    return f" and {', '.join(others)} (which --quantization-config takes)" if others else ""
