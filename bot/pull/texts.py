"""The small files that planning reads: which they are, and what a README's metadata block says."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import yaml

from bot.errors import Refused
from bot.records import FileEntry, Json, Source
from bot.untrusted import strict_json

NAMES = re.compile(
    r"(adapter_config|config|tokenizer_config|generation_config|special_tokens_map|added_tokens|quantize_config|"
    r"([a-z]+_)*(pre)?processor_config|chat_template)\.json|model\.safetensors\.index\.json|"
    r"chat_template\.jinja|additional_chat_templates/[^/]+\.jinja|README\.md"
)
LARGEST = 64_000_000  # bytes; DeepSeek-V3's index has 9 MB
LONGEST_CARD = 1_000_000  # bytes of a README's metadata block; one with the results of 500 evaluations has 400,000
DEEPEST_CARD = 50
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built
REPAIR = "Repair the file, or name another revision."
LICENSE_LINE = re.compile(r"^(license(?:_name|_link)?):(.*)$", re.MULTILINE)
ONE_WORD = re.compile(r"""["']([^"']+)["']|([A-Za-z0-9][^#'"\[\]{}&*]*)""")
FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def wanted(files: tuple[FileEntry, ...]) -> list[str]:
    """The files to read whole at pin time. Raises Refused where one is too large to be what its name says."""
    entries = [entry for entry in files if NAMES.fullmatch(entry.name)]
    for entry in entries:
        if entry.size > LARGEST:
            raise Refused(
                f"{entry.name} has {entry.size:,} bytes, too many for such a file.",
                remedy="Check the repo, or name another revision.",
            )
    return [entry.name for entry in entries]


def check(texts: dict[str, bytes], thing: str) -> None:
    """Raises Refused unless every .json file is a JSON object."""
    for name, text in texts.items():
        if not name.endswith(".json"):
            continue
        try:
            value = strict_json.loads(text)
        except ValueError as error:
            raise Refused(f"{name} of {thing} is not valid JSON ({_short(error)}).", remedy=REPAIR) from error
        if not isinstance(value, dict):
            raise Refused(f"{name} of {thing} is not a JSON object.", remedy=REPAIR)
        if wrong := strict_json.misfit(name, value):
            raise Refused(f"{name} of {thing} cannot be used: {wrong}.", remedy=REPAIR)


def _short(error: ValueError) -> str:
    text = "it is not Unicode" if isinstance(error, UnicodeError) else str(error)
    return text if len(text) <= 200 else f"{text[:199]}…"


def read_json(source: Source, name: str) -> Json:
    """One of the source's texts as JSON; {} where it is missing."""
    text = source.texts.get(name)
    value: Any = json.loads(text) if text is not None else {}
    return value if isinstance(value, dict) else {}


def card_of(texts: dict[str, bytes]) -> Json:
    """README.md's metadata block as plain JSON values; {} where there is none. One that cannot be read never stops a merge,
    and still has its license. Raises Refused for one that is too long to be read in good time."""
    text = texts.get("README.md", b"")
    block = FRONT_MATTER.match(text.decode("utf-8", errors="replace"))
    if block is None:
        return {}
    if len(block[1]) > LONGEST_CARD:
        what = f"README.md has a metadata block of {len(block[1]):,} characters, and {LONGEST_CARD:,} are the most that are read."
        raise Refused(what, remedy="Shorten the block between the two lines of ---, or name another revision.")
    try:
        card = _plain(yaml.load(block[1], LOADER)) if _fits(block[1]) else _license_alone(block[1])
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        return _license_alone(block[1])
    return card if isinstance(card, dict) else {}


def _license_alone(block: str) -> Json:
    """The license fields of a block that cannot be read as a whole: a merged model's card must not state less than its inputs.
    `unknown`, which no other license replaces, where a license is stated that cannot be read either."""
    lines = {match[1]: match[2].strip() for match in LICENSE_LINE.finditer(block)}
    if "license" not in lines:
        return {}
    words = {name: word[1] or word[2] for name, line in lines.items() if (word := ONE_WORD.fullmatch(line))}
    return words if "license" in words else {"license": "unknown"}


def _fits(block: str) -> bool:
    """Whether a block may be loaded: without aliases, of which a few lines unfold to more than any memory, and not so deep
    that the loader, which is C and recursive, would take the process down."""
    depth = 0
    for event in yaml.parse(block, Loader=LOADER):
        if isinstance(event, yaml.events.AliasEvent):
            return False
        depth += isinstance(event, yaml.events.CollectionStartEvent) - isinstance(event, yaml.events.CollectionEndEvent)
        if depth > DEEPEST_CARD:
            return False
    return True


def _plain(value: Any) -> Any:
    """A YAML value as JSON would have it: dates and the like as text, keys as text, no number without measure."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value if value is None or isinstance(value, bool) or _is_small(value) else str(value)[:200]


def _is_small(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < strict_json.LARGEST
