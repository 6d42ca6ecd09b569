"""The small files that planning reads: which they are, and what a README's metadata block says."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from bot.errors import Refused
from bot.records import FileEntry, Json, Source

NAMES = re.compile(
    r"(adapter_config|config|tokenizer_config|generation_config|special_tokens_map|added_tokens|quantize_config|"
    r"([a-z]+_)*(pre)?processor_config|chat_template)\.json|[^/]+\.index\.json|"
    r"chat_template\.jinja|additional_chat_templates/[^/]+\.jinja|README\.md"
)
LARGEST = 64_000_000  # bytes; DeepSeek-V3's index has 9 MB
FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def wanted(files: tuple[FileEntry, ...]) -> list[str]:
    """The files to read whole at pin time. Raises Refused where one is too large to be what its name says."""
    found = [entry for entry in files if NAMES.fullmatch(entry.name)]
    for entry in found:
        if entry.size > LARGEST:
            raise Refused(
                f"{entry.name} has {entry.size:,} bytes, too many for such a file.",
                remedy="Check the repo, or name another revision.",
            )
    return [entry.name for entry in found]


def check(texts: dict[str, bytes], thing: str) -> None:
    """Raises Refused unless every .json file is a JSON object."""
    for name, text in texts.items():
        if not name.endswith(".json"):
            continue
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Refused(
                f"{name} of {thing} is not valid JSON ({error}).", remedy="Repair the file, or name another revision."
            ) from error
        if not isinstance(found, dict):
            raise Refused(
                f"{name} of {thing} is not a JSON object.", remedy="Repair the file, or name another revision."
            )


def read_json(source: Source, name: str) -> Json:
    """One of the source's texts as JSON; {} where it is missing."""
    text = source.texts.get(name)
    found: Any = json.loads(text) if text is not None else {}
    return found if isinstance(found, dict) else {}


def card_of(texts: dict[str, bytes]) -> Json:
    """README.md's metadata block; {} where there is none or it cannot be read, which never stops a merge."""
    block = FRONT_MATTER.match(texts.get("README.md", b"").decode("utf-8", errors="replace"))
    if block is None:
        return {}
    try:
        found = yaml.safe_load(block[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
