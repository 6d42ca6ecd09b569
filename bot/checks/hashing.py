"""The sha256 of every file that the document vouches for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPORT = "verification.json"
# The card and .gitattributes may be rewritten by the Hub, and the report cannot contain its own hash.
NOT_VOUCHED = frozenset({"README.md", ".gitattributes", REPORT})
THREADS = 2


def vouched(files: Iterable[str]) -> tuple[str, ...]:
    """The files whose bytes belong to the result."""
    return tuple(name for name in files if name not in NOT_VOUCHED)


def sha256_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """{name: lowercase hex sha256}; hashlib frees the GIL, so two threads keep two disks' worth busy."""
    names = [name for name in names if (folder / name).is_file()]  # a dangling link is for the strays check to name
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name), names), strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
