"""Whether a folder can be walked and named at all, before anybody walks it: its depth, its size, and its files' names."""

from __future__ import annotations

import os
from pathlib import Path

from bot.errors import Refused

DEEPEST = 40  # folders within each other; a repo on the Hub has three or four
MOST = 200_000  # files and folders
BOOKKEEPING = frozenset({".git", ".cache"})  # a clone's and a download's own, which nobody here reads


def require_usable(folder: Path) -> None:
    """Raises Refused for a folder that is too deep or too full, and for a name that is no text (a repo could not hold it).

    Links are not followed. Without recursion, so that no depth is too deep to be refused.
    """
    level, depth, count = [str(folder)], 0, 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise _unusable(folder, f"has folders within folders, more than {DEEPEST} deep")
        below: list[str] = []
        for place in level:
            with os.scandir(place) as entries:
                for entry in entries:
                    count += 1
                    _require_text(folder, entry.name)
                    if entry.name not in BOOKKEEPING and entry.is_dir(follow_symlinks=False):
                        below.append(entry.path)
        if count > MOST:
            raise _unusable(folder, f"has more than {MOST:,} files")
        level = below


def _require_text(folder: Path, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise _unusable(folder, f"holds a file whose name is not UTF-8 ({ascii(name)[:120]})") from error


def _unusable(folder: Path, why: str) -> Refused:
    return Refused(
        f"The folder {ascii(folder.name)[1:-1][:100]} {why}.",
        remedy="Name the folder that PEFT or transformers wrote; take out what does not belong to it.",
    )
