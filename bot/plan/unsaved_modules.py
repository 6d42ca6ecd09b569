"""Modules that the adapter's class has and that nobody saved: random while it was trained, and lost.

DeBERTa's classifier has a pooler that its base does not have, and PEFT saves the classifier only: such an adapter gives other
answers at every load, merged or not. Which modules a class has outside of its body is in heads.json (tools/make_heads.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bot.checkpoint.families import ModelFamily, family_of, star
from bot.plan.claims import KeyClaims
from bot.plan.new_heads import modules_of, new_class
from bot.plan.refusal_texts import SHOWN
from bot.records import Json, Refusal

TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def unsaved_modules(adapter_config: Json, config: Json, keys: Iterable[str], claims: KeyClaims) -> list[Refusal]:
    """The refusal of an adapter whose class has modules that are neither among the base's `keys` nor in the adapter."""
    trained = _trained_class(adapter_config, config)
    wanted = modules_of(trained) if trained and trained not in (config.get("architectures") or ()) else ()
    if not wanted:
        return []
    family = family_of({**config, "architectures": [trained]})
    there = {star(name) for name in (*claims.new, *claims.values)}
    there |= {star(whole.parameter) for whole in claims.values.values()}
    lost = [module for module in wanted if not _is_there(module, there, family)]
    names = {star(name) for key in keys for name in (key, *family.conversions.route(key).targets)}
    lost = [module for module in lost if not _is_there(module, names, family)]
    lost += _lost_body(family_of(config).prefix, family.prefix, names)
    if not lost:
        return []
    shown = ", ".join(lost[:SHOWN]) + (f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else "")
    reason = f"{trained} has modules that neither the base nor the adapter holds, so that they were random in training: {shown}."
    remedy = "Train it again with them in modules_to_save, or name a base that has them with --base."
    return [Refusal(code="unsaved-modules", reason=reason, remedy=remedy)]


def _trained_class(adapter_config: Json, config: Json) -> str | None:
    """The class that the adapter was trained with, where its config says it, or its task one with a head of its own."""
    mapping = adapter_config.get("auto_mapping")
    named = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if isinstance(named, str):
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
