"""The end and the padding token: where an adapter's tokenizer changes them, generation_config.json and config.json follow.

From small files, as transformers reads them (tokenization_utils_base: `_from_pretrained`): tokenizer_config.json, after
which an older special_tokens_map.json is read where it has no `added_tokens_decoder`. A token's number stands there, in
added_tokens.json, or among the `added_tokens` at the beginning of tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bot.assets import read_json
from bot.records import Asset, ConfigChange, Json, Source

NAMES = ("eos_token", "pad_token")
GENERATION = "generation_config.json"
SETTINGS, VOCABULARY = "tokenizer_config.json", "tokenizer.json"
NESTED = ("text_config", "decoder", "llm_config", "language_config", "thinker_config")  # may hold a text model's
LONGEST = 12  # digits of a token's number
HEAD = 4 << 20  # bytes of tokenizer.json that are read: `added_tokens` stands before the vocabulary
# Their positions begin behind the padding token's number (transformers' modeling files): it must stay in config.json.
COUNTS_FROM_PADDING = frozenset(
    "altclip altclip_text_model bridgetower bridgetower_text_model camembert clap clap_text_model data2vec-text esm evolla "
    "fsmt ibert kosmos-2 kosmos-2.5 kosmos_2_5_text_model kosmos_2_text_model layoutlmv3 lilt longformer luke m2m_100 "
    "markuplm mpnet nllb-moe roberta roberta-prelayernorm seamless_m4t seamless_m4t_v2 speech_to_text speecht5 trocr "
    "xlm-roberta xlm-roberta-xl xmod".split()
)


@dataclass(frozen=True, kw_only=True)
class Special:
    """A special token: its text, and its number where a small file says it."""

    text: str
    number: int | None


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What changes with the tokenizer: generation_config.json, and fields of config.json by their dotted path."""

    asset: Asset | None = None
    edits: Mapping[str, Any] = field(default_factory=dict)
    changes: tuple[ConfigChange, ...] = ()
    notes: tuple[str, ...] = ()


def follow(base: Source, adapter: Source, config: Json) -> Followed:
    """What must name another token because the adapter's tokenizer does. `config`: the base's config.json."""
    if SETTINGS not in adapter.texts:
        return Followed()
    before, after = specials(base), specials(adapter)
    changed = {name: after[name] for name in NAMES if name in after and _differ(before.get(name), after[name])}
    notes = [f"The adapter's tokenizer has another {name} ({token.text!r}), whose number no small file says: what generates keeps "
             "the base's." for name, token in changed.items() if token.number is None]  # fmt: skip
    numbers = {name: token.number for name, token in before.items()}
    known = {name: (numbers.get(name), new.number) for name, new in changed.items() if new.number is not None}
    asset, changes = _generation(base, adapter, known)
    alone = GENERATION not in {entry.name for entry in (*base.files, *adapter.files)}
    return Followed(asset=asset, edits=_edits(config, known, alone), changes=changes, notes=tuple(notes))


def is_token(path: str) -> bool:
    """Whether a declared change is of a token's number."""
    return path.endswith(tuple(f"{name}_id" for name in NAMES))


def _differ(before: Special | None, after: Special) -> bool:
    if before is None or before.text != after.text:
        return True
    return None not in (before.number, after.number) and before.number != after.number


def specials(source: Source) -> dict[str, Special]:
    """The end and the padding token of a source's tokenizer, by NAMES; a token that it lacks is left out."""
    config = read_json(source, SETTINGS)
    if "added_tokens_decoder" not in config:
        config = {**config, **read_json(source, "special_tokens_map.json")}
    numbers = _numbers(source, config)
    texts = {name: _text(config.get(name)) for name in NAMES}
    return {name: Special(text=text, number=numbers.get(text)) for name, text in texts.items() if text is not None}


def _numbers(source: Source, config: Json) -> dict[str, int]:
    """Token → number, of every token that was added to the vocabulary."""
    numbers = {entry["content"]: entry["id"] for entry in _added(source.small.get(VOCABULARY, b""))}
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        listed = [(_text(entry), at) for at, entry in decoder.items() if at.isdecimal() and len(at) < LONGEST]
        numbers |= {text: int(at) for text, at in listed if text is not None}
    else:
        added = read_json(source, "added_tokens.json").items()
        numbers |= {text: number for text, number in added if type(number) is int}
    return numbers


def _added(head: bytes) -> list[Json]:
    """tokenizer.json's `added_tokens`, from its beginning; [] where they are not whole in it."""
    text = head.decode("utf-8", errors="ignore")
    at = text.find('"added_tokens"')
    start = text.find("[", at)
    if at < 0 or start < 0:
        return []
    try:
        entries = json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        return []
    entries = [entry for entry in entries if isinstance(entry, dict)]
    return [entry for entry in entries if type(entry.get("id")) is int and isinstance(entry.get("content"), str)]


def _text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _generation(
    base: Source, adapter: Source, known: Mapping[str, tuple[int | None, int | None]]
) -> tuple[Asset | None, tuple[ConfigChange, ...]]:
    """The base's generation_config.json with the new numbers; an adapter's own is taken as it is."""
    if GENERATION in {entry.name for entry in adapter.files} or GENERATION not in base.texts:
        return None, ()
    config = read_json(base, GENERATION)
    changes = []
    for name, (before, after) in known.items():
        value = config.get(f"{name}_id")
        follows = _all_ends(value, before, after) if name == "eos_token" else after
        if follows != value:
            changes.append(ConfigChange(path=f"{GENERATION}: {name}_id", before=value, after=follows))
            config[f"{name}_id"] = follows
    if not changes:
        return None, ()
    why = "generation config, with the numbers of the adapter's tokenizer"
    content = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return Asset(name=GENERATION, source="base", why=why, content=content), tuple(changes)


def _all_ends(value: Any, before: int | None, after: int | None) -> Any:
    """The tokens that end a text: the new one in place of the tokenizer's old one, or in front of the others."""
    ends = value if isinstance(value, list) else [] if value is None else [value]
    if after in ends:
        return value
    kept = [end for end in ends if end != before]
    return [after, *kept] if kept or isinstance(value, list) else after


def _edits(
    config: Json, known: Mapping[str, tuple[int | None, int | None]], alone: bool, path: str = ""
) -> dict[str, Any]:
    """Fields of config.json that said the old number; `alone`: without a generation_config.json, which ends a text."""
    edits: dict[str, Any] = {}
    for name, (before, after) in known.items():
        value = config.get(f"{name}_id")
        if name == "pad_token" and str(config.get("model_type")) in COUNTS_FROM_PADDING:
            continue
        numbers = value if isinstance(value, list) else [value]
        if value is not None and after not in numbers and (before in numbers or (alone and name == "eos_token")):
            edits[f"{path}{name}_id"] = _all_ends(value, before, after) if name == "eos_token" else after
    for nested in () if path else NESTED:
        inner = config.get(nested)
        edits |= _edits(inner, known, alone, f"{nested}.") if isinstance(inner, dict) else {}
    return edits
