"""What lies in a folder: the names of its files, and what a JSON file of it says."""

from __future__ import annotations

from pathlib import Path

from bot.records import Json
from bot.untrusted import strict_json

BOOKKEEPING = {".git", ".cache"}  # a clone's and a download's own folders; they are never uploaded


def list_files(folder: Path) -> tuple[str, ...]:
    """Files below a folder as sorted posix paths; links count as the files they lead to."""
    names = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] not in BOOKKEEPING and (path.is_file() or path.is_symlink()):
            names.append(relative.as_posix())
    return tuple(names)


def read_json(path: Path) -> Json | None:
    """A JSON object from a file, or None where there is no such thing."""
    try:
        value = strict_json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
