"""The added tokens of a tokenizer.json: its beginning, where an adapter brings a tokenizer of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bot.pull.weights import read_span
from bot.records import Source
from bot.special_tokens import HEAD, SETTINGS, VOCABULARY

if TYPE_CHECKING:
    from bot.hub import Hub


def with_added_tokens(source: Source, other: Source, hub: Hub) -> Source:
    """The source with the beginning of its tokenizer.json, where `other` has another tokenizer. A few kilobytes of many."""
    entry = next((entry for entry in source.files if entry.name == VOCABULARY), None)
    if entry is None or is_read(source) or SETTINGS not in source.texts or _have_same_tokenizer(source, other):
        return source
    head = read_span(source, VOCABULARY, 0, min(HEAD, entry.size), hub)
    return replace(source, small={**source.small, VOCABULARY: head})


def is_read(source: Source) -> bool:
    """Whether the beginning of its tokenizer.json is at hand."""
    return VOCABULARY in source.small


def _have_same_tokenizer(source: Source, other: Source) -> bool:
    held = [{e.name: e.sha256 for e in either.files if e.name == VOCABULARY} for either in (source, other)]
    return (
        held[0] == held[1] and None not in held[0].values() and source.texts.get(SETTINGS) == other.texts.get(SETTINGS)
    )
