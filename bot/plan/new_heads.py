"""A new head: tensors of modules_to_save that the base does not have, such as a classifier on a language model.

The output is then a checkpoint of the class that the adapter was trained with: its name goes into `architectures`, its
labels into the config, and what only the base's own head had is left out. Which modules a class has outside of its body is in
heads.json (tools/make_heads.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from bot.adapters.lora_config import stated_class
from bot.checkpoint.conversions import known
from bot.checkpoint.families import ModelFamily, family_of, part_of_class, star
from bot.plan.claims import KeyClaims
from bot.plan.refusal_texts import SHOWN
from bot.records import Json, Refusal, Stored

TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")  # whose classes have heads of their own
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
    """The class that the adapter was trained with; None where neither its config nor its task says it, and where it is that of
    a part of the base, beside which the base has more."""
    named = stated_class(adapter)
    if part_of_class(config, named) is not None:
        return None
    if named is not None and _is_class(named):
        return named
    suffix = BY_TASK.get(str(adapter.get("task_type")))
    for name in config.get("architectures") or ():
        stems = [str(name).removesuffix(ending) for ending in ENDINGS if str(name).endswith(ending)]
        if suffix and stems and _is_class(stems[0] + suffix):
            return stems[0] + suffix
    return None


def dropped_keys(config: Json, head_class: str, keys: Iterable[str], claims: KeyClaims) -> list[str]:
    """Base keys that the new class has no use for: those outside the shared body, which belong to the old head alone, and what its
    body lacks (`lacks` of heads.json).

    ModernBERT's masked-language model has `head.dense`, and so has its classifier: such keys stay. So does BERT's pooler for a
    classifier of texts; one of tokens is built without it, as ViT is for a classifier of images, and CLIP without its other tower.
    """
    family = family_of({**config, "architectures": [head_class]})
    front = f"{family.prefix}."
    names = {
        key: [star(name) for name in (key, *family.conversions.route(key).targets)] for key in keys if family.prefix
    }

    def is_below(key: str, modules: Iterable[str]) -> bool:
        return any(f"{name}.".startswith(f"{module}.") for name in names[key] for module in modules)

    has_prefix = any(key.startswith(front) for key in names)  # else the base is a body, all of whose keys are inside
    modules = modules_of(head_class)
    lacked = [path for module in _table()["lacks"].get(head_class, ()) for path in (module, f"{front}{module}")]
    return [
        key
        for key in names
        if key not in claims.values
        and (is_below(key, lacked) or (has_prefix and not key.startswith(front) and not is_below(key, modules)))
    ]


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


def unsaved_modules(adapter_config: Json, config: Json, keys: Iterable[str], claims: KeyClaims) -> list[Refusal]:
    """The refusal of an adapter whose class has modules that are neither among the base's `keys` nor in the adapter: nobody saved
    them, so that they were random while it was trained, and are lost.

    DeBERTa's classifier has a pooler that its base does not have, and PEFT saves the classifier only: such an adapter gives other
    answers at every load, merged or not.
    """
    trained = _trained_class(adapter_config, config)
    wanted = modules_of(trained) if trained and trained not in (config.get("architectures") or ()) else ()
    if not wanted:
        return []
    family = family_of({**config, "architectures": [trained]})
    there = {star(name) for name in (*claims.new, *claims.values)}
    there |= {star(whole.parameter) for whole in claims.values.values()}
    lost = [module for module in wanted if not _is_there(module, there, family)]
    part = part_of_class(config, trained)
    names = {star(name) for key in keys for name in (key, *family.conversions.route(key).targets)}
    names |= {name.removeprefix(f"{part}.") for name in names if name.startswith(f"{part}.")}
    lost = [module for module in lost if not _is_there(module, names, family)]
    lost += _lost_body(family_of(config).prefix, family.prefix, names) if part is None else []
    if not lost:
        return []
    shown = ", ".join(lost[:SHOWN]) + (f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else "")
    reason = f"{trained} has modules that neither the base nor the adapter holds, so that they were random in training: {shown}."
    remedy = "Train it again with them in modules_to_save, or name a base that has them with --base."
    return [Refusal(code="unsaved-modules", reason=reason, remedy=remedy)]


def _trained_class(adapter_config: Json, config: Json) -> str | None:
    """The class that the adapter was trained with, where its config says it, or its task one with a head of its own."""
    if (named := stated_class(adapter_config)) is not None:
        return named
    return new_class(adapter_config, config) if adapter_config.get("task_type") in TASKS else None


def _is_there(module: str, names: Iterable[str], family: ModelFamily) -> bool:
    """Whether a name is the module's or lies below it, with the body's prefix or without it."""
    spelled = {module, module.removeprefix(f"{family.prefix}.")}
    return any(name == path or name.startswith(f"{path}.") for name in names for path in spelled)


def _lost_body(base: str, trained: str, names: Collection[str]) -> list[str]:
    """The trained class's body, where it has another name than the base class's: transformers loads nothing into it.

    LlamaForQuestionAnswering calls it `transformer`, LlamaForCausalLM `model`: that model was random from end to end.
    """
    if not base or not trained or base == trained or any(name.startswith(f"{trained}.") for name in names):
        return []
    return [trained] if any(name.startswith(f"{base}.") for name in names) else []
