"""Adapters that lie deeper in a repo: a trainer's checkpoints, and those that PEFT saved under names of their own.

A source in a folder of a repo has the names that its files have in that folder. What the folder does not have is the repo's: its
license and its card hold for all that lies in it, and a tokenizer beside several checkpoints is theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from bot.assets import kind_of
from bot.hub.names import counted
from bot.records import FileEntry, Json, Source

CONFIG = "adapter_config.json"
CARD = "README.md"
# Which kinds of files come from one place, as one.
SETS = {"tokenizer": "tokenizer", "chat template": "tokenizer", "processor": "processor", "generation config": "config"}
SHOWN = 8


def adapters_in(files: Iterable[FileEntry]) -> list[str]:
    """The folders that hold an adapter, as people count: checkpoint-500 before checkpoint-1000."""
    folders = (entry.name.removesuffix(f"/{CONFIG}") for entry in files if entry.name.endswith(f"/{CONFIG}"))
    return sorted(folders, key=counted)


def listed(folders: Sequence[str]) -> str:
    """A few of them by name; the last ones, which were trained longest, where there are many."""
    if len(folders) <= SHOWN:
        return ", ".join(folders)
    return f"{folders[0]}, …, {', '.join(folders[-(SHOWN - 2) :])} ({len(folders)} in all)"


def named(source: Source, folder: str) -> str:
    """How to name an adapter in a folder of the source."""
    at = f"@{source.revision}" if source.repo and source.revision else ""
    return f"{source.called.removesuffix('/')}/{folder}{at}"


def below(files: Sequence[FileEntry], subfolder: str) -> tuple[FileEntry, ...]:
    """The files of a folder in a repo under the names that they have in it, and those of the repo that count for it."""
    named = {entry.name: entry for entry in _inside(files, subfolder)}
    others = adapters_in(files)
    for folder in _above(subfolder):
        outer = [
            entry for entry in _inside(files, folder) if not _is_below(f"{folder}/{entry.name}".lstrip("/"), others)
        ]
        sets = {SETS.get(kind_of(name, "adapter") or "") for name in named} - {None}
        for entry in outer:
            kind = kind_of(entry.name, "adapter")
            if kind == "license" or entry.name == CARD or (kind in SETS and SETS[kind] not in sets):
                named.setdefault(entry.name, entry)
    return tuple(sorted(named.values(), key=lambda entry: entry.name))


def cards_above(files: Iterable[FileEntry], subfolder: str) -> list[str]:
    """The cards of the folders around one, the nearest first, by their names in the repo."""
    there = {entry.name for entry in files}
    return [name for folder in _above(subfolder) if (name := f"{folder}/{CARD}".lstrip("/")) in there]


def with_cards(card: Json, above: Iterable[Json]) -> Json:
    """A checkpoint's card, which its trainer wrote, with what only the repo's says: its license, above all."""
    for outer in above:
        card = {**outer, **{name: value for name, value in card.items() if value not in (None, "", [])}}
    return card


def _above(subfolder: str) -> list[str]:
    """The folders around one, from the nearest to the root, which is ""."""
    return ["" if parent == PurePosixPath() else str(parent) for parent in PurePosixPath(subfolder).parents]


def _inside(files: Iterable[FileEntry], folder: str) -> Iterator[FileEntry]:
    start = f"{folder}/" if folder else ""
    for entry in files:
        if entry.name.startswith(start):
            yield replace(entry, name=entry.name.removeprefix(start), path=entry.name)


def _is_below(name: str, folders: Iterable[str]) -> bool:
    return any(name.startswith(f"{folder}/") for folder in folders)
