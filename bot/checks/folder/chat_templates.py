"""What a tokenizer makes of the files beside it: the chat template in effect, and what re-saving may change.

Precedence as in transformers' `PreTrainedTokenizerBase._from_pretrained`: chat_template.jinja and the files of
additional_chat_templates/ replace what tokenizer_config.json says; processors kept theirs in chat_template.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bot.checks.folder.same_tokenizer import same_tokenizer
from bot.checks.folder.special_tokens import CONFIG, listed, special_tokens_of
from bot.checks.reading.folders import read_json
from bot.records import Json

# Slow-tokenizer files that transformers 5 no longer writes; a fast tokenizer does without them.
OPTIONAL_FOR_OTHERS = frozenset("special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt".split())
# What generation starts with and stops at: another one is another model. Padding is no more than a remark: many a trainer sets
# it where the base has none.
STOPS = ("eos_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "eos_token", "bos_token")
PADS = ("pad_token_id", "pad_token")


def effective_templates(folder: Path) -> dict[str, str]:
    """{name: template} as a loader would see them; empty where there is none."""
    files = _from_files(folder)
    if files:
        return files
    for name in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
        templates = _named((read_json(folder / name) or {}).get("chat_template"))
        if templates:
            return templates
    return {}


def _from_files(folder: Path) -> dict[str, str]:
    templates = {}
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = (folder / "chat_template.jinja").read_text()
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text()
    return templates


def _named(template: object) -> dict[str, str]:
    if isinstance(template, str):
        return {"default": template}
    if isinstance(template, dict):
        return {str(name): str(text) for name, text in template.items()}
    if isinstance(template, list):
        return {str(entry["name"]): str(entry["template"]) for entry in template if isinstance(entry, dict)}
    return {}


def foreign_verdict(here: Path, original: Path, otherwise: str) -> str | None:
    """What a file that somebody re-saved deserves: nothing if it says the same, a warning if only the rest changed."""
    mine, theirs = read_json(here), read_json(original)
    if mine is None or theirs is None:
        return otherwise
    if mine == theirs:
        return None
    if here.name == "tokenizer.json":
        return "warn" if same_tokenizer(mine, theirs) else otherwise
    # transformers adds and drops defaults from version to version
    return "fail" if other_stop_tokens(here, original) else "warn"


def other_stop_tokens(here: Path, original: Path) -> list[str]:
    """The tokens that generation starts with or stops at, by their names, which a re-saved settings file has otherwise."""
    return [name for name, _, _ in _other_tokens(here, original) if name in STOPS]


def token_changes(here: Path, original: Path) -> list[str]:
    """The tokens that a re-saved settings file gives otherwise than the original: `eos_token_id is 7, and was 2`."""
    return [f"{name} is {_shown(now)}, and was {_shown(before)}" for name, now, before in _other_tokens(here, original)]


def _other_tokens(here: Path, original: Path) -> Iterator[tuple[str, list[object], list[object]]]:
    """(token, now, before) where they differ. What a tokenizer's own files leave to its class may be written down."""
    mine, theirs = _settings(here), _settings(original)
    left_to_class = special_tokens_of(original.parent).left_to_class if original.name == CONFIG else frozenset()
    for name in (*STOPS, *PADS):
        now, before = _tokens(mine, name), _tokens(theirs, name)
        if now != before and (name not in left_to_class or name in PADS):
            yield name, now, before


def _settings(path: Path) -> Json:
    """The file's, with the special tokens that an older tokenizer has in another file."""
    settings = read_json(path) or {}
    return {**settings, **special_tokens_of(path.parent).texts} if path.name == CONFIG else settings


def _tokens(settings: Json, name: str) -> list[object]:
    """A token's number or text, or several."""
    tokens = listed(settings.get(name))
    return sorted((token.get("content") if isinstance(token, dict) else token for token in tokens), key=str)


def _shown(tokens: list[object]) -> str:
    return ", ".join(map(str, tokens)) or "none"
