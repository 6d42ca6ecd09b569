"""Which files of a source count: those that a merge reads or copies, or may refuse for. The rest (what a trainer keeps to go
on training, earlier checkpoints, the same weights in other formats) is neither fetched nor hashed, and is in no fingerprint."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from bot import assets
from bot.pull import texts
from bot.records import Role, Source

# What a plan refuses or tells by name: rows of new tokens, and modules of sentence-transformers that are pickles.
REFUSED = {
    "adapter": re.compile(r"new_embeddings\.safetensors"),
    "base": re.compile(r"(\w+_)?\d+_\w+/[^/]+\.(bin|pt|pth|ckpt|pkl)"),
}


def counting(source: Source, weights: Collection[str]) -> Source:
    """The source with no other files than those that count. `weights`: the names of its weight files."""
    files = tuple(entry for entry in source.files if entry.name in weights or is_read(entry.name, source.role))
    return replace(source, files=files)


def is_read(name: str, role: Role) -> bool:
    """Whether a merge reads or copies a file of that name, which is no weight."""
    known = texts.NAMES.fullmatch(name) or REFUSED[role].fullmatch(name)
    return known is not None or assets.kind_of(name, role) is not None
