"""JSON from untrusted files: refused where it is too deep, too large, or of types that no later step could handle."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

DEEPEST = 100  # lists and objects within each other; real configs have ten
LARGEST = 10**40  # of a whole number; tokenizers say 10^30 for "no limit"
Pairs = Callable[[list[tuple[str, Any]]], Any]


def loads(text: bytes | str, pairs: Pairs | None = None) -> Any:
    """The JSON value. `pairs`: makes each object, as json's object_pairs_hook.

    Raises ValueError, with the reason, for what is not JSON, for nesting and numbers without measure, and for text that is
    not Unicode (half of a surrogate pair), which no file and no terminal could take.
    """
    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_int=_parse_int)
    except RecursionError as error:
        raise ValueError("it is nested without end") from error
    _require_measure(value)
    return value


def _parse_int(digits: str) -> int:
    if len(digits) > 42 or abs(number := int(digits)) >= LARGEST:
        raise ValueError(f"a number of {len(digits)} digits stands in it")
    return number


def _require_measure(value: Any) -> None:
    """Raises ValueError for nesting without end, and for text that is not Unicode. Works without recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError("it is nested without end")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and not item.isascii():
                item.encode()  # UnicodeEncodeError is a ValueError
        level = below


# --- what a field may be --------------------------------------------------------------------------------------------

Kind = Callable[[Any], bool]


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST


def _is(*kinds: type) -> Kind:
    return lambda value: isinstance(value, kinds)


MOST = 100_000  # layers, experts, heads or labels; the largest models have hundreds of each, classifiers thousands
# Only fields that steps read without a look of their own; null is always the same as nothing.
CONFIG: dict[str, tuple[str, Kind]] = {
    "architectures": ("a list of names", _names),
    "model_type": ("a name", _is(str)),
    "quantization_config": ("an object", _is(dict)),
    "text_config": ("an object or a name", _is(dict, str)),
    "tie_word_embeddings": ("true or false", _is(bool)),
    "id2label": ("an object", _is(dict)),
    "label2id": ("an object", _is(dict)),
}
ADAPTER: dict[str, tuple[str, Kind]] = {
    "peft_type": ("a name", _is(str)),
    "task_type": ("a name", _is(str)),
    "peft_version": ("a version", _is(str)),
    "auto_mapping": ("an object", _is(dict)),
    "target_modules": ("names or a pattern", lambda value: isinstance(value, str) or _names(value)),
    "exclude_modules": ("names or a pattern", lambda value: isinstance(value, str) or _names(value)),
    "feedforward_modules": ("names or a pattern", lambda value: isinstance(value, str) or _names(value)),
    "layers_pattern": ("names or a pattern", lambda value: isinstance(value, str) or _names(value)),
    "modules_to_save": ("names", lambda value: isinstance(value, str) or _names(value)),
    "layers_to_transform": ("whole numbers", lambda value: all(type(item) is int for item in _listed(value))),
}
TABLES = {"config.json": CONFIG, "adapter_config.json": ADAPTER}
# What makes a library build as many modules as it says, wherever in a config it stands.
COUNTS = frozenset(
    "num_hidden_layers num_layers n_layer n_layers num_decoder_layers num_encoder_layers encoder_layers decoder_layers "
    "depth num_experts num_local_experts n_routed_experts n_shared_experts moe_num_experts num_blocks num_stages num_labels "
    "num_attention_heads num_key_value_heads n_head n_heads num_nextn_predict_layers num_hidden_groups".split()
)


def misfit(name: str, config: Any) -> str | None:
    """What is wrong with the fields of a config of this file name, as the rest of a sentence; None where nothing is."""
    if not isinstance(config, dict):
        return "it is not a JSON object"
    for field, (wanted, fits) in TABLES.get(name, {}).items():
        if config.get(field) is not None and not fits(config[field]):
            return f"{field} is {_excerpt(config[field])}, where {wanted} belongs"
    return _overcounted(config) if name == "config.json" else None


def _overcounted(config: Any) -> str | None:
    level = [config]
    for part in level:  # which grows; how deep it goes was looked at before
        for field, value in part.items():
            if isinstance(value, dict):
                level.append(value)
            elif field in COUNTS and type(value) is int and not _count(value):
                return f"{field} is {_excerpt(value)}, where a number up to {MOST:,} belongs"
    return None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _excerpt(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- the types that a file has to hold -----------------------------------------------------------------------------


class AllFit:
    """A list, or with `named` an object, whose every value fits."""

    def __init__(self, inner: Any, *, named: bool = False) -> None:
        self.inner, self.named = inner, named


def fitting(text: bytes, fields: dict[str, Any], nullable: frozenset[str]) -> dict[str, Any]:
    """A JSON object whose fields, those of them that it has, are of these types; the `nullable` ones may be null.

    Raises ValueError, with the reason, where one is not.
    """
    value = loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    if odd := _odd(value, fields, nullable, ""):
        raise ValueError(odd)
    return value


def _odd(value: Any, wanted: Any, nullable: frozenset[str], path: str) -> str:
    """Where a value does not fit; "" where it does."""
    if value is None and path.rpartition(".")[2] in nullable:
        return ""
    if isinstance(wanted, AllFit):
        values = value.values() if wanted.named and isinstance(value, dict) else value
        if isinstance(values, str | dict) or not hasattr(values, "__iter__") or wanted.named != isinstance(value, dict):
            return f"{path} is {_excerpt(value)}"
        return next(filter(None, (_odd(item, wanted.inner, nullable, f"{path}[]") for item in values)), "")
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            return f"{path} is {_excerpt(value)}"
        there = [(name, inner) for name, inner in wanted.items() if name in value]
        odd = (_odd(value[name], inner, nullable, f"{path}.{name}".lstrip(".")) for name, inner in there)
        return next(filter(None, odd), "")
    fits = value in wanted if isinstance(wanted, frozenset) and isinstance(value, str) else _is_a(value, wanted)
    return "" if fits else f"{path} is {_excerpt(value)}"


def _is_a(value: Any, wanted: Any) -> bool:
    return not isinstance(wanted, frozenset) and isinstance(value, wanted)
