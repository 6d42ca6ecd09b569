"""From a module, as the adapter names it, to a key, as the checkpoint names it. No model code runs.

Adapters name modules as transformers did when they were trained; checkpoints keep the names they were published with.
Most agree. The rest differ by a model prefix on one side (`transformer.h.0…` against `h.0…`), or by renames that
transformers applies on load, which stand in `RENAMES`. A module that finds no key, or two, is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bot.records import Json, Stored

# transformers' load-time renames, turned round: a module's name → the checkpoint's, by `model_type`. The source is
# transformers.conversion_mapping (5.23); tests/oracle holds each line to what transformers itself loads and saves.
_VIT = (
    (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
    (r"attention\.q_proj$", "attention.attention.query"),
    (r"attention\.k_proj$", "attention.attention.key"),
    (r"attention\.v_proj$", "attention.attention.value"),
    (r"attention\.o_proj$", "attention.output.dense"),
    (r"mlp\.fc1$", "intermediate.dense"),
    (r"mlp\.fc2$", "output.dense"),
)
_DINOV2 = (
    (r"attention\.q_proj$", "attention.attention.query"),
    (r"attention\.k_proj$", "attention.attention.key"),
    (r"attention\.v_proj$", "attention.attention.value"),
    (r"attention\.o_proj$", "attention.output.dense"),
)
RENAMES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": _DINOV2,
    "gpt_neox": ((r"^lm_head$", "embed_out"),),
}

# Modules that transformers builds as Conv1D, whose weight is stored in × out. PEFT goes by the module's type and only
# then by `fan_in_fan_out`, which it saves as whatever the last module needed: the config alone cannot be trusted.
_GPT2_CONV1D = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})
CONV1D: Mapping[str, frozenset[str]] = {
    "gpt2": _GPT2_CONV1D,
    "openai-gpt": _GPT2_CONV1D,
    "imagegpt": _GPT2_CONV1D,
    "decision_transformer": _GPT2_CONV1D,
}

# The head of a model whose output embedding may be the input embedding itself.
HEADS = frozenset({"lm_head", "embed_out", "proj_out", "generator_lm_head", "vocab_projector", "decoder"})


class Ambiguous(Exception):
    """Two prefixes fit the whole adapter and lead to different tensors; `args` are the two keys of one module."""


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """`keys`: module → checkpoint key, for the modules that have one. `missing`: the modules that have none."""

    keys: dict[str, str]
    missing: tuple[str, ...]


def map_modules(modules: Sequence[str], base_keys: Iterable[str], model_type: str | None) -> Mapped:
    """Find the checkpoint key of every module. One prefix rule must serve the whole adapter. Raises Ambiguous."""
    weights = {key.removesuffix(".weight") for key in base_keys if key.endswith(".weight")}
    spelled = {module: _spellings(module, model_type) for module in modules}
    candidates = [_apply(rule, spelled, weights) for rule in _rules(spelled, weights)]
    complete = [mapped for mapped in candidates if not mapped.missing]
    if complete:
        first = complete[0]
        if first is not candidates[0]:  # the identity, always the first candidate, needs no rival
            _refuse_rivals(first, complete)
        return first
    return max(candidates, key=lambda mapped: len(mapped.keys))


def is_conv1d(module: str, model_type: str | None) -> bool:
    """Whether transformers builds this module as Conv1D."""
    return module.rpartition(".")[2] in CONV1D.get(model_type or "", frozenset())


def is_tied_head(module: str, config: Json) -> bool:
    """Whether this module's weight is the input embedding's (`tie_word_embeddings`, True where a config is silent)."""
    parts = module.split(".")
    is_head = (len(parts) <= 2 and parts[-1] in HEADS) or module.endswith("predictions.decoder")
    text_config = config.get("text_config")
    inner = text_config.get("tie_word_embeddings", True) if isinstance(text_config, dict) else True
    tied = config.get("tie_word_embeddings", inner)
    return is_head and bool(tied)


def fits(stored: Stored, out_features: int, in_features: int, *, transposed: bool) -> bool:
    """Whether a stored weight has the shape that a delta of out × in needs."""
    return stored.shape == ((in_features, out_features) if transposed else (out_features, in_features))


def _spellings(module: str, model_type: str | None) -> tuple[str, ...]:
    renamed = module
    for pattern, replacement in RENAMES.get(model_type or "", ()):
        renamed = re.sub(pattern, replacement, renamed)
    return (module,) if renamed == module else (renamed, module)


def _rules(spelled: Mapping[str, tuple[str, ...]], weights: set[str]) -> list[tuple[str, str]]:
    """(drop, add) prefixes worth trying: the identity first, then those that any one module suggests."""
    rules: dict[tuple[str, str], None] = {("", ""): None}
    by_tail: dict[str, list[str]] = {}
    for weight in weights:
        by_tail.setdefault(weight.rpartition(".")[2], []).append(weight)
    for spellings in spelled.values():
        for spelling in spellings:
            for weight in by_tail.get(spelling.rpartition(".")[2], ()):
                if spelling.endswith("." + weight):
                    rules[spelling.removesuffix(weight), ""] = None
                elif weight.endswith("." + spelling):
                    rules["", weight.removesuffix(spelling)] = None
    return list(rules)


def _apply(rule: tuple[str, str], spelled: Mapping[str, tuple[str, ...]], weights: set[str]) -> Mapped:
    drop, add = rule
    keys: dict[str, str] = {}
    for module, spellings in spelled.items():
        for spelling in spellings:
            # A head that stands beside the prefixed body (`lm_head`) keeps its name under either rule.
            for name in (add + spelling.removeprefix(drop), spelling):
                if name in weights and module not in keys:
                    keys[module] = name + ".weight"
    return Mapped(keys=keys, missing=tuple(module for module in spelled if module not in keys))


def _refuse_rivals(first: Mapped, complete: list[Mapped]) -> None:
    for rival in complete:
        for module, key in first.keys.items():
            if rival.keys[module] != key:
                raise Ambiguous(key, rival.keys[module])
