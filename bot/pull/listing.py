"""Checks a folder before anything else walks it: its depth, its number of files, and their names."""

from __future__ import annotations

import os
from pathlib import Path

from bot.errors import Refused
from bot.untrusted.links import BOOKKEEPING

DEEPEST = 40  # folders within each other; a repo on the Hub has three or four
MOST = 200_000  # files and folders


def require_usable(folder: Path, *, hidden: bool = False) -> None:
    """Raises Refused for a folder that is too deep or too full, and for a name that is no text (a repo could not hold it).

    `hidden`: hidden folders are walked too, as a result's are; nobody looks into those of an input (a trainer's `.venv`, a
    disk's `.Trash-1000`). Links are not followed. Without recursion, so that no depth is too deep to be refused.
    """
    level, depth, count = [str(folder)], 0, 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise _unusable(folder, f"has folders within folders, more than {DEEPEST} deep")
        below: list[str] = []
        for path in level:
            with os.scandir(path) as entries:
                for entry in entries:
                    count += 1
                    _require_text(folder, entry.name)
                    passed = entry.name in BOOKKEEPING if hidden else entry.name.startswith(".")
                    if not passed and entry.is_dir(follow_symlinks=False):
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
