"""Weight files that are not here: their names and headers are, their tensors' bytes are not.

The checks of a folder read headers, names and sizes; the proof of the weights reads bytes. A placeholder serves the first, and
fails the second aloud: whoever reads a tensor of it comes to the end of the file.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_whole_size(path: Path, header: bytes, size: int) -> None:
    """A file of that size which holds the header alone, for those who read headers; it takes no more room on the disk than
    that. Its bytes are zeros: to be cut by `cut` before any tensor is read."""
    fresh = path.with_name(f".{path.name}.placeholder")
    fresh.parent.mkdir(parents=True, exist_ok=True)
    with fresh.open("wb") as opened:
        opened.write(header)
        opened.truncate(size)
    fresh.replace(path)


def cut(path: Path, header: bytes) -> None:
    """The same file without any tensor."""
    fresh = path.with_name(f".{path.name}.placeholder")
    fresh.write_bytes(header)
    os.replace(fresh, path)
