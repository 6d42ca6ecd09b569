"""Language, data sets, tags, metrics and task out of somebody's card: as the Hub takes them, or left out and said so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from bot.metadata import hub_lists
from bot.records import Json
from bot.untrusted.markdown import one_line

MOST = 100  # values of one field
LONGEST = 100  # letters of one value
SHOWN = 3  # of the values that were left out
AMONG = re.compile(r"\s*(?:[,;/|&+]|\band\b)\s*")
# Codes of countries that are written for their languages, and older codes of the same languages.
INSTEAD = {
    "jp": "ja", "cn": "zh", "kr": "ko", "cz": "cs", "dk": "da", "gr": "el", "vn": "vi", "ua": "uk", "se": "sv",
    "iw": "he", "ji": "yi", "mandarin": "zh", "farsi": "fa", "greek": "el", "punjabi": "pa",
    "ger": "de", "fre": "fr", "chi": "zh", "cze": "cs", "dut": "nl", "gre": "el", "per": "fa", "rum": "ro", "slo": "sk",
}  # fmt: skip
DATASET = re.compile(r"(?!.*(?:--|\.\.))(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9_][\w.-]{0,95}(?<![.-])")
DATASET_URL = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/|hf://datasets/|datasets/)")
FILE = re.compile(
    r".*\.(jsonl?|csv|tsv|parquet|txt|arrow|zip|t?gz|tar|pkl|bin|ya?ml|md|py|xlsx?|db|zst)", re.IGNORECASE
)
NO_DATASET = {"none", "null", "n/a", "na", "unknown", "unknown_dataset", "custom", "private", "local", "train", "data"}


@dataclass
class Left:
    """What a card says that the Hub would refuse: `changed` (field, before, after) and `dropped` (field, value)."""

    changed: list[tuple[str, str, str]] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)

    def sentences(self, whose: str) -> list[str]:
        """One sentence, or none where nothing was left. `whose`: the card's owner."""
        changes = [f"{name} {_excerpt(before)} becomes {after}" for name, before, after in self.changed[:SHOWN]]
        changes += [f"{name} {_excerpt(value)} is left out" for name, value in self.dropped[:SHOWN]]
        more = len(self.changed) + len(self.dropped) - len(changes)
        tail = f" and {more} more" if more else ""
        return [f"The Hub would not take all that {whose}'s card says: {', '.join(changes)}{tail}."] if changes else []


def _excerpt(value: str) -> str:
    text = one_line(value)
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def languages(card: Json, left: Left) -> list[str]:
    """Codes that the Hub lists: `zh-CN` and `Chinese` are `zh`."""
    return _taken(card, "language", _languages, left)


def datasets(card: Json, left: Left) -> list[str]:
    """Ids of data sets on the Hub; prose, paths and files are none."""
    return _taken(card, "datasets", _datasets, left)


def tags(card: Json, left: Left) -> list[str]:
    """Tags, each a short line."""
    return _taken(card, "tags", lambda text: [text] if len(text) <= LONGEST else [], left)


def metrics(card: Json, left: Left) -> list[str]:
    """Names of metrics, each a short line."""
    return _taken(card, "metrics", lambda text: [text] if len(text) <= LONGEST else [], left)


def task(card: Json, left: Left) -> str | None:
    """The card's `pipeline_tag`, where the Hub lists it."""
    tag = card.get("pipeline_tag")
    if isinstance(tag, str) and tag in hub_lists.tasks():
        return tag
    if tag not in (None, ""):
        left.dropped.append(("pipeline_tag", str(tag)))
    return None


def _taken(card: Json, name: str, read: Callable[[str], Iterable[str]], left: Left) -> list[str]:
    """The values of a field, each once; what cannot be read, or is read as something else, is noted."""
    given = card.get(name)
    values: dict[str, None] = {}
    for value in given if isinstance(given, list) else [given]:
        text = _text(name, value)
        taken = list(read(text)) if text else []
        if not taken and value not in (None, ""):
            left.dropped.append((name, str(value)))
        elif taken and taken != [text]:
            left.changed.append((name, str(value), " and ".join(taken)))
        values |= dict.fromkeys(taken)
    return list(values)[:MOST]


def _text(name: str, value: Any) -> str:
    """A value of a list as text: numbers are tags too, and YAML 1.1 reads the code of Norwegian as False."""
    if name == "language" and value is False:
        return "no"
    if isinstance(value, int | float) and not isinstance(value, bool) and name == "tags":
        return str(value)
    return one_line(value) if isinstance(value, str) and not _is_broken(value) else ""


def _is_broken(text: str) -> bool:
    """Whether it has letters that no file in UTF-8 can hold."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


@cache
def _by_name() -> dict[str, str]:
    return {name.lower(): code for code, name in hub_lists.language_names().items()}


def _languages(text: str) -> list[str]:
    whole = _language(text)
    parts = [whole] if whole else [_language(part) for part in AMONG.split(text)]
    return [part for part in dict.fromkeys(parts) if part] if all(parts) else []


def _language(text: str) -> str | None:
    word = text.strip().lower()
    if word in hub_lists.languages():
        return word
    first = re.split(r"[-_]", word)[0]  # of a BCP 47 tag
    known = INSTEAD.get(word) or _by_name().get(word)
    if known or not re.fullmatch(r"[a-z]{2,3}([-_][a-z0-9]{2,8})+", word):
        return known
    return first if first in hub_lists.languages() else None


def _datasets(text: str) -> list[str]:
    parts = [DATASET_URL.sub("", part.strip(), count=1).rstrip("/") for part in text.split(",")]
    return list(dict.fromkeys(parts)) if all(map(is_dataset, parts)) else []


def is_dataset(text: str) -> bool:
    """Whether it can be the id of a data set on the Hub."""
    return bool(DATASET.fullmatch(text)) and not FILE.fullmatch(text) and text.lower() not in NO_DATASET
