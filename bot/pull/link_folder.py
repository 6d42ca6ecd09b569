"""A folder of links to files that lie in several places, each under the name that a merge knows it by."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def gather(home: Path, files: Mapping[str, Path]) -> Path:
    """The folder `home` with a link for every file; copies, where the filesystem has no links. What is there stays."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, path in files.items():
        link, real = home / name, path.resolve()
        if link.exists() and (not link.is_symlink() or link.resolve() == real):
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh = link.with_name(f".{link.name}.{os.getpid()}")
        try:
            fresh.symlink_to(real)
        except OSError:
            shutil.copyfile(real, fresh)
        fresh.replace(link)
    return home
