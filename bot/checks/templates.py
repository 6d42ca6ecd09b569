"""What a tokenizer makes of the files beside it: the chat template in effect, and what re-saving may change.

Precedence as in transformers' `PreTrainedTokenizerBase._from_pretrained`: chat_template.jinja and the files of
additional_chat_templates/ replace what tokenizer_config.json says; processors kept theirs in chat_template.json.
"""

from __future__ import annotations

from pathlib import Path

from bot.checks.case import read_json

# Slow-tokenizer files that transformers 5 no longer writes; a fast tokenizer does without them.
OPTIONAL_FOR_OTHERS = frozenset(
    {"special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"}
)
MEANING = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")


def effective(folder: Path) -> dict[str, str]:
    """{name: template} as a loader would see them; empty where there is none."""
    files = _from_files(folder)
    if files:
        return files
    for name in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
        found = _named((read_json(folder / name) or {}).get("chat_template"))
        if found:
            return found
    return {}


def _from_files(folder: Path) -> dict[str, str]:
    found = {}
    if (folder / "chat_template.jinja").is_file():
        found["default"] = (folder / "chat_template.jinja").read_text()
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = path.read_text()
    return found


def _named(template: object) -> dict[str, str]:
    if isinstance(template, str):
        return {"default": template}
    if isinstance(template, dict):
        return {str(name): str(text) for name, text in template.items()}
    if isinstance(template, list):
        return {str(one["name"]): str(one["template"]) for one in template if isinstance(one, dict)}
    return {}


def foreign_verdict(here: Path, original: Path, otherwise: str) -> str | None:
    """What a file that somebody re-saved deserves: nothing if it says the same, a warning if only the rest changed."""
    mine, theirs = read_json(here), read_json(original)
    if mine is None or theirs is None:
        return otherwise
    if mine == theirs:
        return None
    if here.name == "tokenizer.json":
        return "warn" if all(mine.get(part) == theirs.get(part) for part in MEANING) else otherwise
    return "warn"  # settings: transformers adds and drops defaults from version to version
