"""Special tokens: whose tokenizer the folder has, whole, and whether what generates stops at that tokenizer's end.

Read from the files, as transformers does: tokenizer_config.json, then special_tokens_map.json where that has no
`added_tokens_decoder`; numbers from there, from added_tokens.json, and from the added tokens of tokenizer.json.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bot.checks.case import Case
from bot.checks.expected.adapter_claims import adapter_claims
from bot.checks.expected.config_changes import Declared, at, text_paths
from bot.checks.finding import counted, finding, graded
from bot.checks.reading.folders import list_files, read_json
from bot.records import Finding

TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FOLLOWED = ("eos_token", "pad_token")  # in generation_config.json and config.json
CONFIG, MAP, ADDED, WHOLE = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"
GENERATION = "generation_config.json"
# Files that a tokenizer's vocabulary is in.
VOCABULARIES = (
    WHOLE, "tokenizer.[0-9]*.json", "tokenizer.model*", "tiktoken.model*", "vocab.json", "vocab.txt", "merges.txt", "*.tiktoken",
    "spiece.model", "sentencepiece*.model", "source.spm", "target.spm", "bpe.codes", "emoji.json", "dict.txt", "normalizer.json",
    "tekken.json", "spm.model", "spm_char.model", "target_vocab.json", "entity_vocab.json", "vocab-src.json", "vocab-tgt.json",
    "prophetnet.tokenizer", "byte_maps.json", "word_shape.json", "word_pronunciation.json",
)  # fmt: skip
# Models that count positions from the padding token's number: config.json must keep it, whatever the tokenizer says.
PADDED = frozenset(
    "altclip altclip_text_model bridgetower bridgetower_text_model camembert clap clap_text_model data2vec-text esm evolla "
    "fsmt ibert kosmos-2 kosmos-2.5 kosmos_2_5_text_model kosmos_2_text_model layoutlmv3 lilt longformer luke m2m_100 "
    "markuplm mpnet nllb-moe roberta roberta-prelayernorm seamless_m4t seamless_m4t_v2 speech_to_text speecht5 trocr "
    "xlm-roberta xlm-roberta-xl xmod".split()
)
DIGITS = 11  # of a token's number
WHY = "the adapter's tokenizer has another"


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """A folder's special tokens as a loader takes them: their texts, and the numbers that its files give to texts.

    `left_to_class`: those that no file speaks of, where a loader takes what its class has (GPT-2 and BERT ship like this).
    """

    texts: dict[str, str]
    numbers: dict[str, int]
    left_to_class: frozenset[str] = frozenset()

    def number(self, name: str) -> int | None:
        """The number of a special token, where a file says it."""
        return self.numbers.get(self.texts.get(name, ""))


def vocabulary_files(folder: Path) -> set[str]:
    """The folder's files that hold a vocabulary."""
    files = [name for name in list_files(folder) if "/" not in name]
    return {name for name in files if any(fnmatchcase(name, pattern) for pattern in VOCABULARIES)}


def foreign_to_the_tokenizer(case: Case) -> set[str]:
    """Tokenizer files of the base that are none of the result's, since the adapter brings a tokenizer of its own."""
    base, adapter = case.subject.base, case.subject.adapter
    own = {name for name in (CONFIG, MAP, ADDED) if (adapter / name).is_file()}
    mine = vocabulary_files(adapter)
    if not mine:
        return {MAP} - own if CONFIG in own else set()
    left = {MAP, ADDED} - own
    if WHOLE in mine and _bytes(adapter / WHOLE) == _bytes(base / WHOLE):
        return left  # one vocabulary: its other spellings may stay
    return left | (vocabulary_files(base) - mine)


def special_tokens_of(folder: Path) -> SpecialTokens:
    """What the folder's files say."""
    config = read_json(folder / CONFIG) or {}
    decoder = config.get("added_tokens_decoder")
    texts = {name: text for name in TOKENS if (text := _text(config.get(name))) is not None}
    added = (read_json(folder / WHOLE) or {}).get("added_tokens")
    added = added if isinstance(added, list) else []
    numbered = [(_text(token), token.get("id")) for token in added if isinstance(token, dict)]
    if isinstance(decoder, dict):
        numbered += [(_text(entry), int(at)) for at, entry in decoder.items() if at.isdecimal() and len(at) <= DIGITS]
    else:
        older = read_json(folder / MAP) or {}
        texts |= {name: text for name in TOKENS if (text := _text(older.get(name))) is not None}
        config = {**older, **config}
        numbered += (read_json(folder / ADDED) or {}).items()
    numbers = {text: number for text, number in numbered if text is not None and type(number) is int}
    return SpecialTokens(texts=texts, numbers=numbers, left_to_class=frozenset(TOKENS) - config.keys())


def special_tokens(case: Case) -> Finding:
    """The folder's special tokens and their numbers are the adapter's, where it has a tokenizer, else the base's.

    A foreign merge may have another padding, as trainers set it, and may write down what the files left to the class.
    """
    subject, allowed = case.subject, "same tokens"
    owner, wanted = _expected_tokens(subject.base, subject.adapter)
    drift = _token_drift(special_tokens_of(subject.folder), wanted, owner)
    remarked = frozenset() if subject.ours else wanted.left_to_class | {"pad_token"}
    fails = [sentence for name, sentence in drift if name not in remarked]
    warns = [sentence for name, sentence in drift if name in remarked]
    if subject.ours:
        mixed = foreign_to_the_tokenizer(case) & set(case.files)
        fails += [f"{name} is the base's, beside the adapter's tokenizer." for name in sorted(mixed)]
    changed = tokens_changed(case)
    right = ("none", "There is no tokenizer that names any.")
    if wanted.texts:
        follow = f"; {', '.join(f'{name}_id' for name in changed)} with them." if changed else "."
        right = (counted(len(wanted.texts), "token"), f"The special tokens are the {owner}'s{follow}")
    return graded("special-tokens", allowed, right, fails=fails, warns=warns)


def _expected_tokens(base: Path, adapter: Path) -> tuple[str, SpecialTokens]:
    """Whose special tokens they are, and which."""
    if not (adapter / CONFIG).is_file():
        return "base", special_tokens_of(base)
    wanted = special_tokens_of(adapter)
    if not vocabulary_files(adapter):
        wanted = replace(wanted, numbers=special_tokens_of(base).numbers | wanted.numbers)
    return "adapter", wanted


def _token_drift(actual: SpecialTokens, wanted: SpecialTokens, owner: str) -> list[tuple[str, str]]:
    """(token, sentence) of every one that is another, or has another number."""
    texts = [(name, f"{name} is {actual.texts.get(name)!r}; the {owner}'s is {wanted.texts.get(name)!r}.")
             for name in TOKENS if actual.texts.get(name) != wanted.texts.get(name)]  # fmt: skip
    return texts + [
        (name, f"{name} is number {actual.number(name)}; the {owner}'s is {wanted.number(name)}.")
        for name in TOKENS
        if None not in (actual.number(name), wanted.number(name)) and actual.number(name) != wanted.number(name)
    ]


def tokens_changed(case: Case) -> dict[str, tuple[int | None, int]]:
    """{token: (the base's number, the adapter's)} of what the adapter's tokenizer changes and a file gives a number to."""
    subject = case.subject
    if not (subject.adapter / CONFIG).is_file():
        return {}
    before, after = special_tokens_of(subject.base), special_tokens_of(subject.adapter)
    changes = {}
    for name in FOLLOWED:
        old, new = before.number(name), after.number(name)
        other = after.texts.get(name) != before.texts.get(name) or (old is not None and old != new)
        if name in after.texts and new is not None and other:
            changes[name] = (old, new)
    return changes


def declared_tokens(case: Case) -> tuple[Declared, ...]:
    """Fields of config.json that name the base's end or padding by its number, and must name the adapter's."""
    config, declared = case.base_config, []
    alone = not any((folder / GENERATION).is_file() for folder in (case.subject.base, case.subject.adapter))
    for name, (old, new) in tokens_changed(case).items():
        for path in text_paths(config, f"{name}_id"):
            section = config if "." not in path else config[path.split(".")[0]]
            value = section.get(f"{name}_id")
            if name == "pad_token" and str(section.get("model_type")) in PADDED:
                continue
            follows = old in listed(value) or (alone and name == "eos_token")
            if value is not None and follows and new not in listed(value):
                right = _ends(value, old, new) if name == "eos_token" else new
                declared.append(Declared(path=path, value=right, why=f"{WHY} {name}"))
    return tuple(declared)


def generation_drift(case: Case) -> dict[str, str] | None:
    """{field: sentence} of what generation_config.json says otherwise than the base's with the adapter's tokens; None where
    nothing was to change."""
    base = read_json(case.subject.base / GENERATION)
    changed = tokens_changed(case)
    if base is None or (case.subject.adapter / GENERATION).is_file() or not changed:
        return None
    wanted = dict(base)
    for name, (old, new) in changed.items():
        value = base.get(f"{name}_id")
        if name == "eos_token" and new not in listed(value):
            wanted[f"{name}_id"] = _ends(value, old, new)
        elif name != "eos_token":
            wanted[f"{name}_id"] = new
    if wanted == base:
        return None
    actual = read_json(case.subject.folder / GENERATION) or {}
    other = [key for key in sorted(wanted.keys() | actual.keys()) if actual.get(key) != wanted.get(key)]
    return {key: f"{GENERATION}: {key} is {actual.get(key)!r}, and must be {wanted.get(key)!r}." for key in other}


def _ends(value: Any, old: int | None, new: int) -> Any:
    others = [number for number in listed(value) if number != old]
    return [new, *others] if others or isinstance(value, list) else new


def listed(value: Any) -> list[Any]:
    """One value or several as a list: 2 and [2] say the same, and so do null and nothing."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _text(value: object) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def vocabulary(case: Case) -> Finding:
    """Whether every id that the merged folder's tokenizer can give has a row in the embedding: one beyond it fails where the
    adapter trains it, since its rows are lost; else it is a remark."""
    config, allowed = case.merged_config or {}, "ids < rows"
    sizes = [size for path in text_paths(config, "vocab_size") if type(size := at(config, path)) is int]
    last = _last_id(case.subject.folder)
    if not sizes or last is None:
        why = "There is no tokenizer.json or no vocabulary to hold it to."
        return finding("vocabulary", "pass", "not told", allowed, why)
    measured = f"{last + 1} ids, {max(sizes)} rows"
    if last < max(sizes):
        return finding("vocabulary", "pass", measured, allowed, "Every id of the tokenizer has its row.")
    why = f"The tokenizer has ids up to {last}, and the embedding has {max(sizes)} rows: such a prompt is an error"
    if last <= (_last_id(case.subject.base) or -1):
        return finding("vocabulary", "warn", measured, allowed, f"{why}, as it is with the base.")
    if case.once(adapter_claims).trains_vocabulary:
        why += ". The adapter trains tokens whose rows are lost."
        return finding("vocabulary", "fail", measured, allowed, why)
    return finding("vocabulary", "warn", measured, allowed, f"{why}, merged or not.")


def _last_id(folder: Path) -> int | None:
    """The highest id of a tokenizer.json; None where there is none that can be read."""
    tokenizer = read_json(folder / "tokenizer.json") or {}
    model = tokenizer.get("model")
    known = model.get("vocab") if isinstance(model, dict) else None
    ids = [len(known) - 1] if isinstance(known, list) and known else []
    ids += [token for token in known.values() if type(token) is int] if isinstance(known, dict) else []
    added = tokenizer.get("added_tokens")
    added = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    ids += [token["id"] for token in added if type(token.get("id")) is int]
    return max(ids, default=None)
