"""A new head: tensors of modules_to_save that the base does not have, such as a classifier on a language model.

The output is then a checkpoint of the class that the adapter was trained with: its name goes into `architectures`, its
labels into the config, and what only the base's own head had is left out. heads.json is made by tools/make_heads.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from bot.checkpoint.conversions import known
from bot.checkpoint.families import family_of, star
from bot.plan.claims import KeyClaims
from bot.records import Json, Stored

BY_TASK = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_2_SEQ_LM": "ForConditionalGeneration",
    "FEATURE_EXTRACTION": "Model",
}
ENDINGS = ("LMHeadModel", "ForMaskedLM", "ForPreTraining", "ForImageClassification", *BY_TASK.values())
LABELLED = ("score", "classifier", "qa_outputs")


def new_class(adapter: Json, config: Json) -> str | None:
    """The class that the adapter was trained with; None where neither its config nor its task says it."""
    mapping = adapter.get("auto_mapping")
    named = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if isinstance(named, str) and _is_class(named):
        return named
    suffix = BY_TASK.get(str(adapter.get("task_type")))
    for name in config.get("architectures") or ():
        stems = [str(name).removesuffix(ending) for ending in ENDINGS if str(name).endswith(ending)]
        if suffix and stems and _is_class(stems[0] + suffix):
            return stems[0] + suffix
    return None


def dropped_keys(config: Json, head_class: str, keys: Iterable[str], claims: KeyClaims) -> list[str]:
    """Base keys that belong to the old head alone: those outside the shared body, which the new class does not have.

    ModernBERT's masked-language model has `head.dense`, and so has its classifier: such keys stay.
    """
    family = family_of({**config, "architectures": [head_class]})
    stored, modules = list(keys), modules_of(head_class)
    if not family.prefix or not any(key.startswith(f"{family.prefix}.") for key in stored):
        return []
    outside = [key for key in stored if not key.startswith(f"{family.prefix}.") and key not in claims.values]
    names = {key: [star(name) for name in (key, *family.conversions.route(key).targets)] for key in outside}
    return [key for key in outside if not any(name.startswith(f"{m}.") for name in names[key] for m in modules)]


@cache
def _table() -> Json:
    """heads.json: rows, and by class, which of them."""
    content: Json = json.loads(files("bot.checkpoint").joinpath("heads.json").read_text())
    return content


def modules_of(name: str) -> tuple[str, ...]:
    """What a class has outside of its body, and its pooler; numbers stand as `*`. () where nothing is known of it."""
    row = _table()["classes"].get(name)
    return () if row is None else tuple(_table()["rows"][row])


def _is_class(name: str) -> bool:
    return name in known()["classes"]


def label_edits(wholes: Iterable[tuple[str, Stored]]) -> dict[str, Any]:
    """`id2label` and `label2id` for as many labels as the head has rows; names nobody saved are LABEL_0, LABEL_1, …"""
    counts = [
        values.shape[0]
        for parameter, values in wholes
        if len(values.shape) == 2 and any(part in LABELLED for part in parameter.split("."))
    ]
    if not counts:
        return {}
    labels = [f"LABEL_{number}" for number in range(min(counts))]
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
